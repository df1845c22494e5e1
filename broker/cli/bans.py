"""`rookery ctl bans`: who is not let in, on any node of a cluster."""

from __future__ import annotations

import getpass
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from broker.cli.documents import documents, store_options
from broker.values import Duration
from cluster.registry import BANS

if TYPE_CHECKING:
    from broker.limits.bans import Ban

#: The longest that --for may say.
LONGEST_S = 36500 * 86400


@click.group()
def bans() -> None:
    """Who is not let in, on any node of the cluster.

    Changes count on every node within about a second: connected clients that are banned are disconnected.
    """


_client_id = click.option("--client-id", metavar="ID", help="A client id.")
_username = click.option("--username", metavar="NAME", help="A user name, as clients give it or as it was proved.")
_ip = click.option("--ip", metavar="CIDR", help="An IP address or a network.")
_prefix = click.option("--prefix", is_flag=True, help="All client ids, or user names, that begin so.")


@bans.command()
@store_options
@_client_id
@_username
@_ip
@_prefix
@click.option("--for", "for_", metavar="DURATION", help="How long, such as 90s, 1h or 7d; without it for ever.")
@click.option("--until", metavar="TIME", help="Until when, such as 2030-01-31T12:00 (local time) or with +00:00.")
@click.option("--reason", default="", metavar="TEXT", help="For those who list bans; clients are not told.")
def add(
    client_id: str | None,
    username: str | None,
    ip: str | None,
    prefix: bool,
    for_: str | None,
    until: str | None,
    reason: str,
    **store: object,
) -> None:
    """Ban clients; one ban of the same kind and value is replaced."""
    ban = _named(client_id, username, ip, prefix)
    ban.until_s = until_of(for_, until)
    ban.reason, ban.by = reason, _who()
    with documents(store) as opened:
        opened.change(BANS, {ban.name: ban.document()})


@bans.command()
@store_options
@_client_id
@_username
@_ip
@_prefix
def remove(client_id: str | None, username: str | None, ip: str | None, prefix: bool, **store: object) -> None:
    """Let clients in again."""
    ban = _named(client_id, username, ip, prefix)
    with documents(store) as opened:
        if opened.document(BANS, ban.name) is None:
            raise click.ClickException(f"there is no ban {ban.name!r}")
        opened.change(BANS, {ban.name: None})


@bans.command("list")
@store_options
def show(**store: object) -> None:
    """Print all bans that hold: kind, value, until when, by whom, why."""
    from broker.limits.bans import read_bans

    with documents(store) as opened:
        found, _, wrong = read_bans(opened.documents(BANS), time.time())
    rows = [
        (
            ban.kind,
            ban.value if ban.value.isprintable() and " " not in ban.value else repr(ban.value),
            shown(ban.until_s),
            (ban.by if ban.by.isprintable() else repr(ban.by)) or "-",
            ban.reason if ban.reason.isprintable() else repr(ban.reason),
        )
        for ban in sorted(found, key=lambda ban: ban.name)
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for row in rows:
        cells = (f"{text:<{width}}" for text, width in zip(row, (*widths, 0), strict=True))
        print("  ".join(cells).rstrip())
    for text in wrong:
        print(f"# {text}")


def _named(client_id: str | None, username: str | None, ip: str | None, prefix: bool) -> Ban:
    from broker.limits.bans import CLIENT_ID, CLIENT_ID_PREFIX, IP, USERNAME, USERNAME_PREFIX, Ban, BanError

    given = [(kind, value) for kind, value in ((CLIENT_ID, client_id), (USERNAME, username), (IP, ip)) if value]
    if len(given) != 1:
        raise click.UsageError("exactly one of --client-id, --username and --ip has to be given")
    [(kind, value)] = given
    if prefix:
        if kind == IP:
            raise click.UsageError("--prefix: write a network, such as 10.1.0.0/16")
        kind = CLIENT_ID_PREFIX if kind == CLIENT_ID else USERNAME_PREFIX
    try:
        return Ban(kind, value)
    except BanError as error:
        raise click.UsageError(str(error)) from None


def until_of(for_: str | None, until: str | None) -> float | None:
    """The end that options say."""
    if for_ and until:
        raise click.UsageError("--for and --until: only one of them")
    if for_:
        try:
            seconds = Duration().parse(for_)
        except ValueError as error:
            raise click.UsageError(f"--for {for_!r}: {error}") from None
        if not seconds > 0:
            raise click.UsageError(f"--for {for_!r}: must be more than 0")
        if seconds > LONGEST_S:
            raise click.UsageError(f"--for {for_!r}: at most 36500d; without --for the ban is for ever")
        return round(time.time() + seconds, 3)
    if until:
        try:
            moment = datetime.fromisoformat(until).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise click.UsageError(f"--until {until!r}: {error}") from None
        if moment.timestamp() <= time.time():
            raise click.UsageError(f"--until {until!r}: that is over")
        return moment.timestamp()
    return None


def shown(epoch_s: float | None) -> str:
    """The end of a ban for people; what is no date of theirs any more is never."""
    try:
        return "for ever" if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return "for ever"


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "ctl"
