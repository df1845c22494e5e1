"""The manual pages rookery(1) and rookery.toml(5), and the completion scripts that packages bring along."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Final

import click
from click.shell_completion import get_completion_class

from broker import __version__
from broker.config import SETTINGS, Setting
from broker.options import Blocks, Options
from broker.options.listener import ListenerOptions

_NOTICE: Final = '.\\" Written by `make generate` from the declarations of the commands and settings.\n'

_SYNOPSIS: Final = """.SH SYNOPSIS
.B rookery
.I COMMAND
.RI [ OPTION " ...] [" ARGUMENT " ...]"
.SH DESCRIPTION
"""

_END_OF_COMMANDS: Final = """.SH SIGNALS
.TP
.B SIGTERM, SIGINT
The node drains: clients are sent away at the drain rate, then it ends. The second one ends it at once.
.TP
.B SIGHUP
Settings, certificates and files of users and rules are read again.
.SH ENVIRONMENT
.TP
.BI ROOKERY_ SETTING
Any setting, by its name in capitals:
.B ROOKERY_MAX_PACKET_SIZE
is
.BR \\-\\-max\\-packet\\-size .
.TP
.B ROOKERY_API_URL, ROOKERY_API_KEY, ROOKERY_API_KEY_FILE
Which node
.B rookery ctl
asks, and with which key.
.TP
.B NO_COLOR
No colours.
.SH EXIT STATUS
0: done. 1: it could not be done. 2: wrong usage or settings. 130: interrupted.
.B rookery ctl
adds 3 (not allowed), 4 (not found), 5 (no answer) and 6 (the answer is not complete).
.SH EXAMPLES
.nf
rookery serve
rookery serve \\-\\-config /etc/rookery/rookery.toml
rookery ctl nodes
.fi
.SH SEE ALSO
.BR rookery.toml (5)
"""

_FILE: Final = """.SH DESCRIPTION
The file given to
.B rookery serve \\-\\-config
holds settings of a node in TOML. Each of them is an option of
.B rookery serve
and a variable of the environment as well; the command line beats the environment, the environment beats the file. A
name that is not a setting is refused.
.PP
Sizes are bytes or carry KiB, MiB or GiB; durations are seconds or carry ms, s, m, h or d. Text and values with a unit
stand in quotes.
.SH EXAMPLES
.nf
listen = ["tcp://127.0.0.1:1883", "tcp://[::1]:1883"]
max_packet_size = "256KiB"
session_expiry_v3 = "30d"

[[authentication]]
type = "password_file"
path = "/etc/rookery/users"
.fi
"""


def commands_page() -> str:
    """rookery(1): every command that is no operation of the API, with its options."""
    from broker.cli import cli

    context = click.Context(cli, info_name="rookery")
    parts = [_NOTICE, _title("ROOKERY", 1), ".SH NAME\nrookery \\- a clustered MQTT broker\n", _SYNOPSIS]
    parts.append(_paragraphs(cli.help or ""))
    parts.append(".SH COMMANDS\n")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        parts.extend(_command(command, click.Context(command, context, info_name=name)))
    parts.append(_END_OF_COMMANDS)
    return "".join(parts)


def settings_page() -> str:
    """rookery.toml(5): every setting that a file may have."""
    parts = [_NOTICE, _title("ROOKERY.TOML", 5), ".SH NAME\nrookery.toml \\- settings of a node of rookery(1)\n", _FILE]
    for group, settings in groupby(SETTINGS, key=lambda setting: setting.group):
        entries = [entry for setting in settings if setting.in_file for entry in _setting(setting)]
        if entries:
            parts += [f".SH {_text(group.upper())}\n", *entries]
    parts.append(".SH SEE ALSO\n.BR rookery (1)\n")
    return "".join(parts)


def completion_script(shell: str) -> str:
    """The script that completes `rookery` in `bash`, `zsh` or `fish`."""
    from broker.cli import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise ValueError(f"no completion for {shell}")
    made = kind(cli, {}, "rookery", "_ROOKERY_COMPLETE")
    return made.source_template % made.source_vars() + "\n"


def _title(name: str, section: int) -> str:
    return f'.TH {name} {section} "" "rookery {__version__}" "Rookery"\n.ad l\n'


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    pieces = command.collect_usage_pieces(context)
    yield f".SS {_text(' '.join([context.info_name or '', *pieces]))}\n{_paragraphs(command.help or '')}"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                yield f".TP\n.B {_text(f'{context.info_name} {name}')}\n{_text(_sentence(below))}\n"
        return
    if any(parameter.name == SETTINGS[0].attribute for parameter in command.params):
        yield ".PP\nIts options are the settings:\n.BR rookery.toml (5)\nhas them all"
        yield ", an option has hyphens in place of underscores.\n"
        return
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            yield f".TP\n.B {_text(record[0])}\n{_text(record[1])}\n"


def _sentence(command: click.Command) -> str:
    """The first sentence of what a command's help says."""
    return " ".join((command.help or "").replace("\b", "").split("\n\n")[0].split())


def _setting(setting: Setting) -> Iterator[str]:
    facts = [setting.kind.label, f"default {setting.default}" if setting.default else "default: none"]
    if setting.secret:
        facts.append("secret")
    yield f".TP\n.B {_text(setting.name)}\n{_text(setting.help)}\n"
    spelled = f'{_quoted(setting.option)} ", " {_quoted(setting.variable)} ;'
    yield f".RB ( {spelled}\n{_text('; '.join(facts) + ')')}\n"
    if setting.attribute == "listen":
        yield from _options("Options of a listener:", ListenerOptions)
    elif isinstance(setting.kind, Blocks):
        for name, of in setting.kind.types.items():
            yield from _options(f"Type {name}: {of.HELP}", of)


def _options(head: str, of: type[Options]) -> Iterator[str]:
    yield f".RS\n.PP\n{_text(head)}\n"
    for item in of.declared():
        default = "needed" if item.default is None else f"default {item.default or 'none'}"
        yield f".TP\n.B {_text(item.name)}\n{_text(f'{item.help} ({default})')}\n"
    yield ".RE\n"


def _paragraphs(text: str) -> str:
    parts = [" ".join(part.split()) for part in text.replace("\b", "").split("\n\n")]
    return ".PP\n".join(f"{_text(part)}\n" for part in parts if part)


def _quoted(text: str) -> str:
    return f'"{_text(text)}"'


def _text(text: str) -> str:
    """Text that roff shows as it is: every character that it would act upon is escaped."""
    plain = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("^", "\\(ha")
    plain = plain.replace("~", "\\(ti").replace('"', "\\(dq")
    plain = re.sub(r"\\\(ga(.+?)\\\(ga", r"\\fB\1\\fP", plain)  # `code`
    return re.sub(r"^([.'])", r"\\&\1", plain)
