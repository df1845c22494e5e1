"""Writes the generated pages of this folder; with --check only tells whether they are up to date."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from broker.config import SETTINGS, Setting
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


PAGES = {"configuration.md": configuration}


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
            path.write_text(text, "utf-8")
            print(f"wrote docs/{name}")
    if stale and "--check" in arguments:
        print(f"out of date: {', '.join(stale)}; run `make generate`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
