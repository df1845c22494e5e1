"""The page of all commands below `rookery ctl`, for the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click

from broker.cli.api_client import api_parameters
from broker.cli.operate import OperationCommand

_HEAD: Final = """# Commands of `rookery ctl`

<!-- Generated from the declarations in broker/admin and broker/cli by `make generate`. -->

How they are used from day to day: [operating.md](operating.md). `rookery ctl COMMAND --help` says the same.

"""

_STORE: Final = "On the store of a node's configuration, without any running: see `--help` for `--store` and others."

#: Options that many commands have; told once.
_COMMON: Final = {"as_json", "as_lines", "limit", "everything", "count"}

_OUTPUT: Final = """
Commands that list print a table: `--limit N` and `--all` say how much of it. `--json` prints one array of all items,
`--jsonl` one object per line; other commands print with `--json` what the API answers. Commands that follow print one
line per event until Ctrl-C, with `--json` as JSON, and `--count N` ends after so many.
"""


def reference() -> str:
    """Markdown: every command with its arguments and options."""
    from broker.cli.ctl import ctl

    context = click.Context(ctl, info_name="rookery ctl", max_content_width=110)
    lines = [_HEAD, _plain(ctl.help or ""), "\n\n## Options of all commands that ask a node\n\n"]
    lines += [_row(*record) for record in _records(list(api_parameters()), context)]
    lines.append(_OUTPUT)
    for name in ctl.list_commands(context):
        command = ctl.get_command(context, name)
        assert command is not None
        lines.append(f"\n## {name}\n\n{_plain(command.help or '')}\n")
        if name == "api":
            lines.append("\n" + ", ".join(f"`{each}`" for each in command.list_commands(context)) + "\n")  # type: ignore[attr-defined]
        elif isinstance(command, click.Group):
            if command.params and command.params[0].name == "config":
                lines.append(f"\n{_STORE}\n")
            for below in command.list_commands(context):
                found = command.get_command(context, below)
                assert found is not None
                lines += _entry(found, f"{name} {below}", click.Context(found, context, info_name=below))
        else:
            lines += _usage(command, name, click.Context(command, context, info_name=name))
    return "".join(lines)


def _entry(command: click.Command, name: str, context: click.Context) -> Iterator[str]:
    yield f"\n### {name}\n\n{_plain(command.help or '')}\n"
    yield from _usage(command, name, context)


def _usage(command: click.Command, name: str, context: click.Context) -> Iterator[str]:
    pieces = [
        (each.metavar or each.make_metavar(context)).strip()
        for each in command.params
        if isinstance(each, click.Argument)
    ]
    yield f"\n```\n{' '.join(['rookery ctl', name, *pieces, '[OPTIONS]'])}\n```\n"
    if isinstance(command, OperationCommand):
        yield f"\n`{command.operation.name}`: {command.operation.method} {_code_path(command.operation.path)}\n"
    common = {parameter.name for parameter in api_parameters()}
    own = [
        each
        for each in command.params
        if each.name not in common | _COMMON
        and not (each.name or "").startswith(("store", "sentinel", "config"))
        and each.name not in ("namespace", "data_dir")
    ]
    rows = [_row(*record) for record in _records(own, context)]
    if rows:
        yield "\n"
        yield from rows


def _records(
    parameters: list[click.Option] | list[click.Parameter], context: click.Context
) -> Iterator[tuple[str, str]]:
    for parameter in parameters:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            yield record


def _row(spelled: str, text: str) -> str:
    return f"- `{spelled}`: {_plain(text)}\n" if text else f"- `{spelled}`\n"


def _code_path(path: str) -> str:
    return f"`/api/v1{path}`"


def _plain(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.replace("\b", "").split("\n\n"))
