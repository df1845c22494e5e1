"""`rookery ctl trace`: begin a trace, print its lines, end it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from broker.cli.api_client import ApiFailure, api_parameters, take_api
from broker.cli.completing import completion_of
from broker.cli.manifest import described
from broker.cli.operate import Result, Subject, ask, follow
from broker.values import Duration


class Trace(Subject):
    """`rookery ctl trace CLIENT` is `rookery ctl trace run CLIENT`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in ("-h", "--help", *self.list_commands(ctx)):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def run_command() -> click.Command:
    """Begins and follows a trace."""
    return click.Command(
        "run",
        params=[
            click.Argument(["client_id"], required=False, shell_complete=completion_of("client_id")),
            click.Option(["--topic"], metavar="FILTER", help="Messages of topics that match, of all clients."),
            click.Option(["--ip"], metavar="CIDR", help="Clients of an address or a network."),
            click.Option(["--for", "for_"], default="60s", show_default=True, metavar="DURATION", help="At most 1h."),
            click.Option(["--payload"], is_flag=True, help="Show the first bytes of payloads, too."),
            click.Option(["--json", "as_json"], is_flag=True, help="One JSON value per line, as the API tells it."),
            *api_parameters(),
        ],
        help="Follow a client, a topic or an address until Ctrl-C or the time is over: every packet and every decision,"
        " on all nodes.\n\nA client called as a command is, `list` for example: rookery ctl trace run list.\n\n"
        f"Needs the scope {described()['trace.start'].scope}.",
        short_help="Follow a client, a topic or an address.",
        callback=_run,
    )


def _run(**given: Any) -> int:
    api = take_api(given)
    wanted = {"client_id": given["client_id"], "topic_filter": given["topic"], "ip": given["ip"]}
    arguments: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    if len(arguments) != 1:
        raise click.UsageError("exactly one of CLIENT_ID, --topic and --ip has to be given")
    try:
        seconds = Duration().parse(given["for_"])
    except ValueError as error:
        raise click.UsageError(f"--for {given['for_']!r}: {error}") from None
    arguments |= {"duration_s": max(1, round(seconds)), "payload": given["payload"]}
    trace = ask(api, "trace.start", arguments)
    result = Result(described()["trace.follow"], given["as_json"], False)
    try:
        return follow(api, "trace.follow", {"id": trace["id"]}, result)
    finally:
        with suppress(ApiFailure):  # it ends by itself
            ask(api, "trace.stop", {"id": trace["id"]})
