"""The commands `run`, `list` and `show`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadtest import report, scenario, targets
from loadtest.address import Credentials, TlsOptions, resolve_all
from loadtest.arguments import at_least, output, process_ids
from loadtest.client import LoadError
from loadtest.progress import MODES, Plain, watcher
from loadtest.result import Report, Result, now
from loadtest.running import Target, run_once
from loadtest.scenario import Scenario, ScenarioError

USERNAME_VARIABLE = "ROOKERY_LOADTEST_USERNAME"
PASSWORD_VARIABLE = "ROOKERY_LOADTEST_PASSWORD"  # noqa: S105
#: Keys of scenarios with an option of their own, and how its value is called.
OPTIONS = {
    "seconds": "S",
    "warmup": "S",
    "rate": "N",
    "qos": "0|1|2",
    "size": "BYTES",
    "publishers": "N",
    "subscribers": "N",
    "idle": "N",
    "connect_rate": "N",
    "window": "N",
    "cap": "N",
    "keep_alive": "S",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rookery-loadtest run",
        description="Run scenarios against a broker, one after another, and print what was found.",
        epilog=f"Scenarios that come along: {', '.join(scenario.names())}. Keys: rookery-loadtest list --keys.",
    )
    parser.add_argument("scenarios", nargs="+", metavar="SCENARIO", help="name, or path of a TOML file")
    where = parser.add_argument_group("the broker (without --target: a node of its own, on an embedded store)")
    url: Any = {"action": "append", "default": [], "metavar": "URL"}
    where.add_argument(
        "--target", **url, help="mqtt://HOST:PORT or mqtts://..., again or with commas for several nodes"
    )
    where.add_argument("--publish-to", **url, help="nodes for publishers, instead of --target")
    where.add_argument("--subscribe-to", **url, help="nodes for all others, instead of --target")
    where.add_argument(
        "--nodes", type=at_least(1), default=1, metavar="N", help="nodes to start, on one store [%(default)s]"
    )
    where.add_argument("--broker", metavar="NAME", help="what the report calls it [rookery, or target]")
    where.add_argument(
        "--pid",
        type=process_ids,
        default=(),
        metavar="LIST",
        help="its processes, if here: CPU and memory are measured",
    )
    where.add_argument("--ca", metavar="FILE", help="certificates that are trusted, instead of the system's")
    where.add_argument("--cert", metavar="FILE", help="certificate of the clients")
    where.add_argument("--key", metavar="FILE", help="its key, if that is not in the same file")
    where.add_argument("--insecure", action="store_true", help="do not check the certificates of nodes")
    where.add_argument("--username", metavar="NAME", help=f"or in {USERNAME_VARIABLE}")
    where.add_argument("--password-file", type=Path, metavar="FILE", help=f"or the password in {PASSWORD_VARIABLE}")
    what = parser.add_argument_group("instead of what the scenarios say")
    for name, value in OPTIONS.items():
        key = scenario.keys()[name]
        what.add_argument(f"--{name.replace('_', '-')}", metavar=value, help=key.metadata["help"])
    what.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key; may be repeated")
    what.add_argument("--strict", action="store_true", help="loss is a fault with QoS 0, too")
    told = parser.add_argument_group("what is told")
    told.add_argument("--repeat", type=at_least(1), default=1, metavar="N", help="runs of each; the table has medians")
    told.add_argument("--json", type=output, metavar="FILE", help="write every run there")
    told.add_argument("--html", type=output, metavar="FILE", help="write a page with plots there")
    told.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    told.add_argument("--progress", choices=MODES, default="auto", help="on standard error [%(default)s]")
    return parser


def _scenarios(options: argparse.Namespace) -> list[Scenario]:
    pairs = [f"{name}={value}" for name in OPTIONS if (value := getattr(options, name)) is not None]
    overrides: dict[str, Any] = dict(scenario.override(text) for text in [*pairs, *options.set])
    if options.strict:
        overrides["strict"] = True
    return [scenario.load(name, overrides) for name in options.scenarios]


def _credentials(options: argparse.Namespace) -> Credentials:
    username = options.username or os.environ.get(USERNAME_VARIABLE)
    password = os.environ.get(PASSWORD_VARIABLE)
    if options.password_file is not None:
        try:
            password = options.password_file.read_text("utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"--password-file {options.password_file}: {reason}") from None
    return Credentials(username, None if password is None else password.encode())


@contextmanager
def _target(options: argparse.Namespace) -> Iterator[Target]:
    """The broker that was named, or one that is started."""
    credentials = _credentials(options)
    if options.target or options.publish_to or options.subscribe_to:
        tls = TlsOptions(options.ca, options.cert, options.key, options.insecure)
        publish_to = resolve_all(options.publish_to or options.target, tls)
        subscribe_to = resolve_all(options.subscribe_to or options.target, tls)
        if not (publish_to and subscribe_to):
            raise ValueError("give --target, or both --publish-to and --subscribe-to")
        yield Target(options.broker or "target", publish_to, subscribe_to, options.pid, credentials)
    else:
        with targets.rookery() if options.nodes == 1 else targets.rookery_nodes(options.nodes) as running:
            yield Target.of(options.broker or "rookery", running)


def _run(one: Scenario, target: Target, shown: Plain | None) -> Result:
    try:
        return run_once(one, target, shown)
    except LoadError as error:
        urls = [str(node) for node in target.publish_to]
        return Result(one.name, one.title, target.broker, urls, one.as_dict(), now(), failure=str(error))


def run(arguments: Sequence[str]) -> int:
    """Run scenarios; returns the exit status. What was measured is told, whatever came afterwards."""
    options = _parser().parse_args(arguments)
    results: list[Result] = []
    made = Report(results)
    status = 0
    try:
        shown = watcher(options.progress)
        every = [one for one in _scenarios(options) for _ in range(options.repeat)]
        with _target(options) as target:
            for number, one in enumerate(every, 1):
                if shown is not None:
                    print(
                        f"{one.name}, run {number} of {len(every)}: {report.plain(one.title)}",
                        file=sys.stderr,
                        flush=True,
                    )
                results.append(_run(one, target, shown))
                _tell(results[-1])
                if results[-1].interrupted:
                    break
    except (ScenarioError, ValueError) as error:
        print(report.plain(f"rookery-loadtest: {error}"), file=sys.stderr)
        return 1
    except (LoadError, targets.TargetError, OSError) as error:
        print(f"rookery-loadtest: {report.plain(str(error))}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    if not results:
        return status
    return max(status, report.show(made, markdown=options.markdown, html_path=options.html, json_path=options.json))


def _tell(result: Result) -> None:
    """Say in words what went wrong."""
    failed = [f"failed: {result.failure}"] if result.failure else []
    for text in [*failed, *(each for each in result.messages if each != result.failure)]:
        print(report.plain(f"{result.name}: {text}"), file=sys.stderr)


def list_(arguments: Sequence[str]) -> int:
    """Print the scenarios that come along, or the keys that one may have."""
    parser = argparse.ArgumentParser(
        prog="rookery-loadtest list", description="Print the scenarios that come along, by name."
    )
    parser.add_argument("--keys", action="store_true", help="print the keys of scenarios instead")
    if parser.parse_args(arguments).keys:
        for name, key in scenario.keys().items():
            default = "" if name == "properties" else f" [{key.default!r}]"
            allowed = key.metadata.get("allowed")
            choice = f": {', '.join(str(each) for each in allowed)}" if allowed else ""
            print(f"{name:14} {key.metadata['help']}{choice}{default}")
        return 0
    for name in scenario.names():
        print(f"{name:12} {scenario.load(name).title}")
    return 0


def show(arguments: Sequence[str]) -> int:
    """Print a scenario's file."""
    parser = argparse.ArgumentParser(
        prog="rookery-loadtest show", description="Print a scenario as TOML: a start for one's own."
    )
    parser.add_argument("name", metavar="NAME", help="name of a scenario, or path of a TOML file")
    options = parser.parse_args(arguments)
    try:
        print(scenario.find(options.name).read_text("utf-8"), end="")
    except (ScenarioError, OSError) as error:
        print(f"rookery-loadtest: {error}", file=sys.stderr)
        return 1
    return 0
