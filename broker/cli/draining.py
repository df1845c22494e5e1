"""`rookery ctl nodes drain`: send the clients of a node away, and wait until they are gone."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import click

from broker.cli.api_client import EXIT_FAILED, Api, ApiFailure, take_api
from broker.cli.manifest import described
from broker.cli.operate import OperationCommand, arguments_of, ask
from broker.values import Duration

POLL_S: Final = 0.5


def drain_command() -> click.Command:
    """The operation, with --wait."""
    operation = described()["nodes.drain"]
    command = OperationCommand(operation)
    [named] = [each for each in command.params if isinstance(each, click.Argument)]
    # Hooks that run in the container of a node have no shell that could tell them its name.
    named.envvar = "ROOKERY_NODE_NAME"
    command.help = f"{command.help}\n\nWithout NODE it is the one that ROOKERY_NODE_NAME names."
    command.params[1:1] = [
        click.Option(["--wait"], is_flag=True, help="Return when the node has no clients any more."),
        click.Option(
            ["--wait-for", "for_"],
            default="10m",
            show_default=True,
            metavar="DURATION",
            help=f"With --wait: how long at most; the exit status is {EXIT_FAILED} then.",
        ),
    ]

    def drain(**given: Any) -> int:
        api = take_api(given)
        try:
            patience_s = Duration().parse(given["for_"])
        except ValueError as error:
            raise click.UsageError(f"--wait-for {given['for_']!r}: {error}") from None
        arguments = arguments_of(operation, given)
        ask(api, "nodes.drain", arguments)
        return _wait(api, arguments["node"], patience_s) if given["wait"] else 0

    command.callback = drain
    return command


def _wait(api: Api, node: str, patience_s: float) -> int:
    end = time.monotonic() + patience_s
    shown = -1
    while True:
        left = _connections(api, node)
        if left != shown and sys.stderr.isatty():
            print(f"\r{left} connections left \x1b[K", end="", file=sys.stderr, flush=True)
            shown = left
        if not left or time.monotonic() >= end:
            break
        time.sleep(POLL_S)
    if shown >= 0:
        print(file=sys.stderr)
    if left:
        print(f"# {node} still has {left} connections", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _connections(api: Api, node: str) -> int:
    try:
        return int(ask(api, "nodes.show", {"node": node})["connections"])
    except ApiFailure as failure:
        if failure.status == 404:  # it has left the cluster meanwhile
            return 0
        raise
