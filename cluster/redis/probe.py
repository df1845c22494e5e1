"""Asking a server one thing on a connection of its own: who the primary is, which slots are where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hiredis
import trio

from broker.errors import ClusterError, StoreUnavailable
from cluster.redis.pipeline import Part, pack
from cluster.redis.replies import error_from, login_error
from cluster.redis.wire import Wire, open_wire, reason

if TYPE_CHECKING:
    from cluster.redis.address import StoreAddress

_NOTHING = object()


async def ask(address: StoreAddress, *parts: Part, timeout_s: float, name: str = "rookery") -> object:
    """Logs in, whatever kind of server it is, sends one command and returns its reply.

    Raises StoreUnavailable (no answer in time, or not now) or ClusterError with the server's text."""
    login: tuple[Part, ...] = ("AUTH", address.username or "default", address.password) if address.password else ()
    with trio.move_on_after(timeout_s):
        wire = await open_wire(address)
        try:
            hello, reply = await _exchange(wire, ("HELLO", 3, *login, "SETNAME", name), parts)
        except (OSError, hiredis.ProtocolError) as error:
            raise StoreUnavailable(f"store {address}: {reason(error)[:80]}") from error
        finally:
            wire.close()
        if isinstance(hello, hiredis.ReplyError):
            raise login_error(ClusterError(str(hello)), address)
        if isinstance(reply, hiredis.ReplyError):
            raise error_from(reply)
        return reply
    raise StoreUnavailable(f"store {address}: no answer within {timeout_s:g} s")


async def _exchange(wire: Wire, *commands: tuple[Part, ...]) -> list[object]:
    wire.write(b"".join(pack(command) for command in commands))
    while wire.blocked_bytes:
        await trio.lowlevel.wait_writable(wire.fd)
        wire.write_rest()
    reader = hiredis.Reader(notEnoughData=_NOTHING)
    replies: list[object] = []
    while len(replies) < len(commands):
        await trio.lowlevel.wait_readable(wire.fd)
        data = wire.read()
        if data == b"":
            raise ConnectionResetError("connection closed by the store")
        reader.feed(data or b"")
        while (reply := reader.gets()) is not _NOTHING:
            if type(reply) is not hiredis.PushNotification:
                replies.append(reply)
    return replies
