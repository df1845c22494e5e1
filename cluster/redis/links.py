"""What the parts of the cluster need of a link: one server may stand behind it, or the shards of a Redis Cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from cluster.redis.link import RedisLink
    from cluster.redis.pipeline import Part
    from cluster.redis.requests import Then


class Link(Protocol):
    """Commands out in batches, replies back; `RedisLink` and `ClusterLink` are such links."""

    @property
    def up(self) -> bool:
        """Every primary is connected, logged in, and its `on_up` is done."""

    def up_for(self, key: bytes) -> bool:
        """The same for the primary that has this key, or the keys with this prefix."""

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait for room in the socket, for the next flush, or for a connection."""

    @property
    def unanswered(self) -> int:
        """Requests without an answer, sent or not."""

    @property
    def round_trip_ms(self) -> float:
        """Smoothed time from a flush to the reply of its last command; of the slowest primary."""

    @property
    def server(self) -> dict[str, object]:
        """Of the last HELLO: server, version, mode, role, ..."""

    @property
    def durability(self) -> str:
        """The class of GUARANTEES section 2; the weakest of all primaries. "" before the first connection."""

    @property
    def short_s(self) -> float:
        """For how long now what is written is not as safe as the durability class says; of the worst primary."""

    def primaries(self) -> Sequence[RedisLink]:
        """The link of each primary: for what is asked of a server and not of a key."""

    def command(
        self,
        parts: Sequence[Part],
        then: Then | None = None,
        resend: bool = False,
        allow_s: float = 0.0,
        durable: bool = False,
    ) -> None:
        """See `Pipeline.command`."""

    async def call(self, *parts: Part, resend: bool = False, allow_s: float = 0.0, durable: bool = False) -> object:
        """See `RedisLink.call`."""

    def flush(self) -> None:
        """Writes the batch: the end of a turn."""

    async def connect(self) -> None:
        """See `RedisLink.connect`."""

    async def keep_connected(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `RedisLink.keep_connected`."""

    def close(self) -> None:
        """Ends it; everything unanswered gets StoreUnavailable. Final."""
