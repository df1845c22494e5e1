"""What nodes tell each other at once: to look at the members, to let a session go, that it was let go.

Sharded pub/sub, one channel for each member. All of it is a hint: what is lost only costs time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

import trio

from broker.log import get_logger
from cluster.keys import SIGNALS, Keys
from cluster.records import pack_arguments, unpack_answer
from cluster.redis.deployment import make_push_link

if TYPE_CHECKING:
    from cluster.api import Poller
    from cluster.redis.address import Deployment
    from cluster.redis.link import RedisLink
    from cluster.redis.membership import Membership

_BEAT, _KICK, _FREED = range(3)

#: Look at the members now.
BEAT: Final = pack_arguments((_BEAT,))

_log = get_logger("cluster")


def channel(keys: Keys, member: bytes) -> bytes:
    """Where a member listens."""
    return keys.node(member) + SIGNALS


def kick(client_id: str, asker: bytes, number: int) -> bytes:
    """`asker`, a member, wants the session of this client; it is told so under its own number when it can have it."""
    return pack_arguments((_KICK, client_id.encode(), asker, number))


def freed(number: int, detached: bool) -> bytes:
    """The session that was asked for under this number is free: just detached, or no connection here had it."""
    return pack_arguments((_FREED, number, detached))


class Signals:
    """Listens for this node, on a connection of its own; to be served when the node has joined."""

    def __init__(self, address: Deployment, poller: Poller, keys: Keys, member: Membership) -> None:
        #: client id, asker, its number
        self.on_kick: Callable[[str, bytes, int], None] = lambda *_: None
        #: the own number, whether it was detached
        self.on_freed: Callable[[int, bool], None] = lambda *_: None
        self._address = address
        self._poller = poller
        self._keys = keys
        self._member = member
        self._link: RedisLink | None = None

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stays connected until `close`; has started when it listens. Raises what `RedisLink.connect` does."""
        own = channel(self._keys, self._member.member)

        async def listen(link: RedisLink) -> None:
            link.subscribe("SSUBSCRIBE", [own])
            # Answered in order: this says that the subscription is in force.
            await link.setup_call("PING")

        self._link = make_push_link(self._address, self._poller, own, on_push=self._push, on_up=listen)
        await self._link.keep_connected(task_status)

    def flush(self) -> None:
        """The end of a turn."""
        if self._link is not None:
            self._link.flush()

    def close(self) -> None:
        """Ends the connection. Final."""
        if self._link is not None:
            self._link.close()

    def _push(self, push: list[object]) -> None:
        if push[0] != b"smessage":
            return
        try:
            kind, *values = unpack_answer(cast(bytes, push[2]))
            if kind == _BEAT:
                self._member.beat_soon()
            elif kind == _KICK:
                client_id, asker, number = values[:3]
                self.on_kick(cast(bytes, client_id).decode(), cast(bytes, asker), cast(int, number))
            elif kind == _FREED:
                self.on_freed(cast(int, values[0]), bool(values[1]))
        except ValueError:
            _log.warning("cluster.unknown_signal", size=len(cast(bytes, push[2])))
