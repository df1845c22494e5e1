"""`rookery ctl publish` and `rookery ctl request`."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import click

from broker.cli.api_client import api_parameters, take_api
from broker.cli.manifest import Described, described
from broker.cli.operate import arguments_of, output_parameters, parameters_of, run


def message_command(operation_name: str, name: str) -> click.Command:
    """A command for an operation that takes a message."""
    operation = described()[operation_name]
    own = {"a_topic", "a_payload", "a_payload_encoding", "a_properties_user_properties"}
    generated = [parameter for parameter in parameters_of(operation) if parameter.name not in own]
    return click.Command(
        name,
        params=[
            click.Argument(["topic"]),
            click.Argument(["payload"], required=False),
            click.Option(["-f", "--file"], metavar="FILE", help="Payload from a file; `-` is standard input."),
            click.Option(["--base64", "encoded"], is_flag=True, help="PAYLOAD is base64."),
            click.Option(
                ["--user-property", "pairs"], multiple=True, metavar="NAME=VALUE", help="A user property. Repeatable."
            ),
            *generated,
            *output_parameters(operation),
            *api_parameters(),
        ],
        help=f"{operation.summary}.\n\n{operation.description}\n\nNeeds the scope {operation.scope}.",
        short_help=operation.summary + ".",
        callback=lambda **given: _send(operation, given),
    )


def _send(operation: Described, given: dict[str, Any]) -> int:
    api = take_api(given)
    arguments = arguments_of(operation, given)
    arguments["topic"] = given["topic"]
    arguments |= _payload(given["payload"], given["file"], given["encoded"])
    pairs = [_pair(each) for each in given["pairs"]]
    if pairs:
        arguments.setdefault("properties", {})["user_properties"] = pairs
    return run(operation, api, arguments, given)


def _payload(text: str | None, file: str | None, encoded: bool) -> dict[str, str]:
    if text is not None and file is not None:
        raise click.UsageError("PAYLOAD and --file: only one of them")
    if file is None:
        return {"payload": text or "", "payload_encoding": "base64" if encoded else "plain"}
    if encoded:
        raise click.UsageError("--base64 is for PAYLOAD; a file is sent as it is")
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise click.UsageError(f"--file {file}: {error.strerror or error}") from None
    try:
        return {"payload": raw.decode(), "payload_encoding": "plain"}
    except UnicodeDecodeError:
        return {"payload": base64.b64encode(raw).decode(), "payload_encoding": "base64"}


def _pair(text: str) -> list[str]:
    name, found, value = text.partition("=")
    if not found:
        raise click.UsageError(f"--user-property {text!r:.60}: write NAME=VALUE")
    return [name, value]
