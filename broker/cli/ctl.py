"""`rookery ctl`: what can be asked of running nodes, and what the nodes of a cluster share."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from broker.cli.api_client import EXIT_FAILED, SHOWN_URL, own_url
from broker.cli.bans import bans
from broker.cli.completing import completion
from broker.cli.draining import drain_command
from broker.cli.keys import keys
from broker.cli.manifest import described
from broker.cli.messages import message_command
from broker.cli.operate import OperationCommand, Subject
from broker.cli.retained import delete_matching_command
from broker.cli.rules import rules
from broker.cli.tracing import Trace, run_command
from broker.cli.users import users

#: What the help says of subjects.
SUBJECTS: Final = {
    "alarms": "What somebody should look after.",
    "bans": "Who is not let in.",
    "clients": "Connected clients and sessions of all nodes.",
    "delayed": "Messages that are published later.",
    "events": "Follow what happens, on all nodes.",
    "groups": "Shared subscriptions: members, lag, pending.",
    "keys": "API keys.",
    "logs": "Warnings and errors of late, and the log level.",
    "messages": "Publish messages.",
    "nodes": "The nodes of the cluster; drain them.",
    "retained": "Retained messages.",
    "rules": "Rules in the cluster's store.",
    "sessions": "Sessions and their queues.",
    "settings": "Settings that are in force, and where they come from.",
    "slow": "Subscribers that are slow.",
    "stats": "Numbers and rates.",
    "subscriptions": "Subscriptions of all clients.",
    "topic_metrics": "Counters of chosen topic filters.",
    "topics": "Who gets messages of which topics.",
    "trace": "Follow a client, a topic or an address: rookery ctl trace CLIENT.",
    "users": "Users in the cluster's store.",
}

#: Commands written by hand in place of generated ones, or beside them.
_BY_HAND: Final[dict[str, Mapping[str, Callable[[], click.Command]]]] = {
    "messages": {
        "publish": lambda: message_command("messages.publish", "publish"),
        "request": lambda: message_command("messages.request", "request"),
    },
    "nodes": {"drain": drain_command},
    "retained": {"delete-matching": delete_matching_command},
    "trace": {"run": run_command},
}


def subject_group(subject: str) -> click.Group:
    """All commands of a subject."""
    kind = Trace if subject == "trace" else Subject
    text = SUBJECTS.get(subject, f"Operations of {subject}.")
    return kind(subject, text, _BY_HAND.get(subject))


def _known_subjects() -> dict[str, str]:
    """Subject by the name of its group."""
    return {each.subject.replace("_", "-"): each.subject for each in described().values()}


class _Subjects(click.Group):
    """Groups of all subjects of the API."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_known_subjects()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        subject = _known_subjects().get(cmd_name)
        return subject_group(subject) if subject is not None else None


class _Ctl(_Subjects):
    """What is done on the store itself has the plain names of its subjects; `api` has all of the API."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        shortcuts = [name for name, (operation, _) in _SHORTCUTS.items() if operation in described()]
        return sorted({*super().list_commands(ctx), *shortcuts})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        operation, make = _SHORTCUTS.get(cmd_name, ("", None))
        if make is not None and operation in described():
            return make()
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Ctl)
def ctl() -> None:
    """Ask a running node, and manage what the nodes of a cluster share.

    Commands ask the HTTP server of any node (ROOKERY_API_URL) with an API key (ROOKERY_API_KEY); answers are those of
    the whole cluster. `users`, `rules`, `bans` and `keys` are different: they change the cluster's store directly, with
    the configuration of a node and without any running; `rookery ctl api users` and so on do it through a node.

    Exit status: 0 done, 1 failed, 2 wrong usage, 3 not allowed, 4 there is no such thing, 5 no answer, 6 the answer is
    not complete because a node did not answer.
    """


@ctl.group(cls=_Subjects)
def api() -> None:
    """Every operation of the API, by its name."""


@ctl.command()
@click.option(
    "--url",
    "--http",
    "url",
    envvar="ROOKERY_API_URL",
    default=own_url,
    show_default=SHOWN_URL,
    show_envvar=True,
    metavar="URL",
    help="HTTP server of the node.",
)
@click.option("--timeout", default=5.0, show_default=True, type=click.FloatRange(0.1, 60), help="Seconds to wait.")
def health(url: str, timeout: float) -> int:
    """Print what /readyz says; exit status 0 if the node is ready."""
    http = url
    url = (http if "://" in http else f"http://{http}").rstrip("/") + "/readyz"
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f"{http!r} is no HTTP address")
    try:
        # No proxy: the node is addressed directly, whatever http_proxy says.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=timeout) as response:
            body, ready = response.read(65536), True
    except urllib.error.HTTPError as error:
        body, ready = error.read(65536), False
    except (OSError, ValueError) as error:
        raise click.ClickException(f"no answer from {url}: {getattr(error, 'reason', error)}") from None
    print(body.decode("utf-8", "replace").rstrip("\n"))
    return 0 if ready else EXIT_FAILED


def _log_level() -> click.Command:
    """Shows or sets."""
    asking, setting = OperationCommand(described()["logs.level"]), OperationCommand(described()["logs.set_level"])
    level = next(parameter for parameter in setting.params if parameter.name == "a_level")
    assert isinstance(level, click.Option)
    positional = click.Argument(["a_level"], required=False, metavar="[LEVEL]", type=level.type)
    known = {parameter.name for parameter in setting.params}
    rest = [parameter for parameter in setting.params if parameter is not level]
    rest += [parameter for parameter in asking.params if parameter.name not in known]

    def run(**given: Any) -> Any:
        chosen = asking if given["a_level"] is None else setting
        assert chosen.callback is not None
        return chosen.callback(**given)

    return click.Command(
        "log-level",
        params=[positional, *rest],
        callback=run,
        help="Print the log level, or set it.",
        short_help="Print the log level, or set it.",
    )


_SHORTCUTS: Final[dict[str, tuple[str, Callable[[], click.Command]]]] = {
    "publish": ("messages.publish", lambda: message_command("messages.publish", "publish")),
    "request": ("messages.request", lambda: message_command("messages.request", "request")),
    "config": ("settings.show", lambda: OperationCommand(described()["settings.show"], "config")),
    "log-level": ("logs.set_level", _log_level),
}

ctl.add_command(bans)
ctl.add_command(completion)
ctl.add_command(keys)
ctl.add_command(rules)
ctl.add_command(users)
