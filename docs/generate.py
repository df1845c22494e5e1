"""Writes the generated pages of this folder; with --check only tells whether they are up to date."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path

from broker.admin.api import SCOPES
from broker.admin.operations import OPERATIONS
from broker.cli.manifest import written as operations
from broker.cli.manual import commands_page, completion_script, settings_page
from broker.cli.reference import reference
from broker.config import SETTINGS, Setting
from broker.metrics_catalogue import CATALOGUE, Family
from broker.options import Blocks, Option, Options
from broker.options.listener import ListenerOptions

FOLDER = Path(__file__).parent

_HEAD = """# Settings

<!-- Generated from broker/settings.py and broker/options by `make generate`. -->

Every setting is an option of `rookery serve`, an environment variable and a key of the TOML file given with
`--config`. The command line beats the environment, the environment beats the file, the file beats the default.
A name that is not a setting is refused. `rookery check-config` checks all of it without starting; `rookery config`
prints the effective values and where each comes from.

```toml
# rookery.toml
listen = ["tcp://127.0.0.1:1883", "tcp://[::1]:1883"]
max_packet_size = "256KiB"
session_expiry_v3 = "30d"
```

- Sizes are bytes or carry KiB, MiB or GiB; durations are seconds or carry ms, s, m, h or d. As numbers they need no
  quotes in TOML.
- In the environment a list is separated by commas or spaces: `ROOKERY_LISTEN="tcp://127.0.0.1:1883,tcp://[::1]:1883"`.
- A flag has an option to switch it on and one to switch it off: `--allow-anonymous`, `--no-allow-anonymous`.
- A listener that other machines can reach is refused unless there is `authentication` or `allow_anonymous` is set.
- Listeners, authenticators, rule sources, client attributes and hooks have options of their own, listed where their
  setting is. They are tables in TOML; on the command line and in the environment an option follows the URL or the type:
  `--listen "tls://:8883?certfile=server.pem"`, `--authentication "password_file?path=users"`. There, spaces separate
  several, and other characters than letters, digits and `/:*${}.-_` are percent-encoded.

```toml
[[listen]]
url = "tls://0.0.0.0:8883"
certfile = "/etc/rookery/server.pem"
keyfile = "/etc/rookery/server.key"

[[authentication]]
type = "password_file"
path = "/etc/rookery/users"

[[authorization]]
type = "acl_file"
path = "/etc/rookery/acl"
```

- *Secret*: never printed.
"""


def configuration() -> str:
    """The reference of all settings."""
    parts = [_HEAD]
    for group, settings in groupby(SETTINGS, key=lambda setting: setting.group):
        parts.append(f"\n## {group}\n")
        parts.extend(_entry(setting) for setting in settings)
    return "".join(parts)


def _entry(setting: Setting) -> str:
    facts = [setting.kind.label]
    bounds = _bounds(setting)
    if bounds:
        facts.append(bounds)
    facts.append(f"default {_code(setting.default)}" if setting.default else "default: none")
    if setting.secret:
        facts.append("*secret*")
    key = _code(setting.name) if setting.in_file else "(not in the file)"
    return (
        f"\n### {setting.name}\n\n{setting.help}\n\n"
        f"- {'; '.join(facts)}\n"
        f"- {_code(setting.option)} · {_code(setting.variable)} · {key}\n"
    ) + _options_of(setting)


def _options_of(setting: Setting) -> str:
    """The options of what the setting is a list of."""
    if setting.attribute == "listen":
        return "\nOptions of a listener:\n\n" + _table(ListenerOptions)
    if not isinstance(setting.kind, Blocks):
        return ""
    return "".join(f"\nType `{name}`: {of.HELP}\n\n{_table(of)}" for name, of in setting.kind.types.items())


def _table(of: type[Options]) -> str:
    rows = [(_code(item.name), _default(item), item.help.replace("|", "\\|")) for item in of.declared()]
    return "| option | default | |\n|---|---|---|\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _default(item: Option) -> str:
    if item.default is None:
        return "*needed*"
    text = _code(item.default) if item.default else "none"
    return f"{text}, *secret*" if item.secret else text


def _bounds(setting: Setting) -> str:
    low, high = setting.at_least, setting.at_most
    show = setting.kind.show
    if low is not None and high is not None:
        return f"{show(low)} to {show(high)}"
    if low is not None:
        return f"at least {show(low)}"
    return f"at most {show(high)}" if high is not None else ""


def _code(text: str) -> str:
    return f"`{text}`"


_METRICS_HEAD = """# Metrics

<!-- Generated from broker/metrics_catalogue.py by `make generate`. -->

`http` serves them at `/metrics`, in the text format of Prometheus or, to whoever asks for it, in that of OpenMetrics.
`deploy/prometheus` has a scrape configuration, recording rules and alerts with tests, `deploy/grafana` a dashboard.

- No label has a client id, a user name, an address of a client or, other than filters that an operator chose, a topic:
  ask the API for these.
- There is no label for the node: Prometheus adds `instance`. With `workers` the parent tells the values of its workers
  together: the column *workers* says how. What they count goes on when one of them is started again.
- What begins with `mqtt_cluster_` is about the whole cluster, and every node tells the same: use `max()`, not `sum()`.
  What the store has to be asked for (its memory, retained messages, `mqtt_cluster_shared_...`) is as of the last look,
  at most 10 seconds ago; with thousands of shared subscriptions a look at these comes less often.
- A session that ends with its connection is ephemeral, any other is persistent. All subscriptions of a cluster are
  `sum(mqtt_subscriptions) + max(mqtt_cluster_subscriptions)`.
- `mqtt_delivery_seconds`: what is passed on at once is measured by the turn of the event loop in which it was read and
  written: an upper bound for each of its messages. What was stored first, and what came from another node, carries the
  store time at which its node accepted it, in milliseconds; two nodes know that time to about half a round trip. QoS 0
  from other nodes carries no time and is not measured. All end when the receiver's socket was given the message.
- Counters of a reason or result that never occurred are not there yet, gauges of what is not known neither.
- A node that is not ready tells why at `/readyz`. It is overloaded, and not ready, when the event loop was a second
  late three times in a row (it looks twice a second), or when a quarter of the memory of the machine (or of its control
  group) waits for receivers that do not take it; and no more once it was less than 250 ms late for three seconds, and
  less than an eighth waits.
- A scrape looks at all connections, 200 at a time. Scrapes may take a tenth of the time of a node, with bursts of
  100 ms; who asks for more is given the last one again for up to a second. With `metrics_access = "open"` an address
  may ask as often as `http_rate` says.
- `/healthz` and `/readyz` look at nothing but the state of the node (of each worker), and have no limit.
- Of a worker that does not answer its parent there are only counters, as of its last word. `/metrics` and `/readyz`
  wait a second for it the first time, 100 ms from then on.
"""


def metrics() -> str:
    """The reference of all metrics."""
    parts = [_METRICS_HEAD]
    for group, families in groupby(CATALOGUE, key=lambda family: family.group):
        parts.append(f"\n## {group}\n\n| name | type | labels | workers | |\n|---|---|---|---|---|\n")
        for family in families:
            labels = ", ".join(_code(label) for label in family.labels)
            parts.append(f"| {_code(family.name)} | {family.kind} | {labels} | {family.over} | {_told(family)} |\n")
    return "".join(parts)


def _told(family: Family) -> str:
    if not family.bounds:
        return family.text
    return f"{family.text} Buckets: {', '.join(f'{bound:g}' for bound in family.bounds)}."


_OPERATIONS_HEAD = """# Operations of the API

<!-- Generated from the declarations in broker/admin by `make generate`. -->

What each scope of a key adds to those before it ([api.md](api.md)). Paths are below `/api/v1`; arguments, results and
what they mean are in the OpenAPI document of every node, shown at `/api/docs`, and in [ctl.md](ctl.md).
"""


def api_operations() -> str:
    """All operations, by the scope that they need."""
    parts = [_OPERATIONS_HEAD]
    for scope in SCOPES:
        parts.append(f"\n## {scope}\n\n| operation | request | |\n|---|---|---|\n")
        for name, operation in sorted(OPERATIONS.items()):
            if operation.scope == scope:
                request = _code(f"{operation.method} {operation.path}")
                parts.append(f"| {_code(name)} | {request} | {operation.summary}{', as events' * operation.events} |\n")
    return "".join(parts)


def _pictures() -> dict[str, Callable[[], str]]:
    folder = runpy.run_path(str(FOLDER / "pictures.py"))
    return dict(folder["PICTURES"])


def _chart() -> dict[str, Callable[[], str]]:
    return dict(runpy.run_path(str(FOLDER / "chart.py"))["FILES"])


def store_keys() -> str:
    """Every key of the store."""
    return str(runpy.run_path(str(FOLDER / "store_keys.py"))["store_keys"]())


def copied(path: str) -> Callable[[], str]:
    """A file of the repository, as it is: a chart can only read what lies in its own folder."""
    return (FOLDER.parent / path).read_text


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "metrics.md": metrics,
    # What `rookery ctl` knows of the API, and its reference.
    "../broker/cli/operations.json": operations,
    "ctl.md": reference,
    "store-keys.md": store_keys,
    "operations.md": api_operations,
    "../helm/rookery/files/rookery.rules.yml": copied("deploy/prometheus/rookery.rules.yml"),
    "../helm/rookery/files/rookery.json": copied("deploy/grafana/rookery.json"),
    "../share/man/man1/rookery.1": commands_page,
    "../share/man/man5/rookery.toml.5": settings_page,
    "../share/bash-completion/completions/rookery": partial(completion_script, "bash"),
    "../share/zsh/site-functions/_rookery": partial(completion_script, "zsh"),
    "../share/fish/vendor_completions.d/rookery.fish": partial(completion_script, "fish"),
    **_pictures(),
    **_chart(),
}


def main(arguments: list[str]) -> int:
    """Write or check all pages; the status is 1 if a check finds a page out of date."""
    stale = []
    for name, page in PAGES.items():
        path = FOLDER / name
        text = page()
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            print(f"wrote {path.resolve().relative_to(FOLDER.parent)}")
    if stale and "--check" in arguments:
        print(f"out of date: {', '.join(stale)}; run `make generate`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
