"""Sessions in the store: taken, left, subscribed, paged."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import cast

from broker.errors import ClusterError, SessionLost, StoreFull, StoreUnavailable
from broker.log import get_logger
from cluster import keys as names
from cluster.api import PAGE_LIMIT, Attachment, AttachRequest, QueuedMessage, SessionRef, StoredSubscription
from cluster.keys import Keys, partition_of
from cluster.policy import ClusterLimits
from cluster.records import pack_subscription, pack_will, unpack_queued, unpack_subscription, unpack_will
from cluster.redis.link import RedisLink
from cluster.redis.membership import Membership
from cluster.redis.pipeline import Part
from cluster.redis.routes import Routes

_log = get_logger("cluster")


class Sessions:
    """The rare calls of sessions; each is one function of one partition, and then the routes."""

    def __init__(self, keys: Keys, link: RedisLink, member: Membership, routes: Routes, limits: ClusterLimits) -> None:
        self._prefixes = keys.partitions
        self._link = link
        self._member = member
        self._routes = routes
        self._margin = limits.inflight + 64

    def prefix(self, session_id: bytes) -> bytes:
        """The prefix of a session's partition."""
        return self._prefixes[partition_of(session_id, len(self._prefixes))]

    async def attach(self, request: AttachRequest) -> Attachment:
        """See `Cluster.attach`."""
        session_id = names.session_id(request.client_id)
        token = b"%d:%b:%b" % (self._member.incarnation, self._member.node, secrets.token_bytes(12))
        will = request.will
        arguments: tuple[Part, ...] = (
            session_id,
            request.client_id.encode(),
            token,
            self._member.node,
            self._member.incarnation_text,
            int(request.clean_start),
            request.expiry_s,
            b"" if will is None else pack_will(request.client_id, will),
            0 if will is None else will.delay_s,
            self._margin,
        )
        prefix = self.prefix(session_id)
        answered = False
        try:
            try:
                reply = await self._link.call("FCALL", "rk1_attach", 1, prefix, *arguments)
            except StoreFull:
                reply = await self._link.call("FCALL", "rk1_attach_full", 1, prefix, *arguments)
            answered = True
        finally:
            if not answered:
                # Perhaps it was executed; nobody will ever detach, so do it here. The token decides.
                self._link.command(
                    ("FCALL", "rk1_detach", 1, prefix, session_id, token, request.expiry_s, 0, 0), None, resend=True
                )
        answer = cast("list[object]", reply)
        if answer[0] == 1:
            self._member.superseded = True
            raise StoreUnavailable("this node was superseded by a newer process")
        if answer[0] == 2:
            raise StoreFull("the store is full: no new sessions")
        attachment = self._attachment(request.client_id, session_id, token, answer)
        if attachment.ended_subscriptions:
            await self._repair(prefix, session_id)
        return attachment

    @staticmethod
    def _attachment(client_id: str, session_id: bytes, token: bytes, answer: list[object]) -> Attachment:
        _, present, birth, last_seq, lowest, sent, subscribed, releasing, inbound, will, ended = answer
        seqs = sorted(int(seq) for seq in cast("list[bytes]", releasing))
        found = cast("list[bytes]", inbound)
        ended_will = unpack_will(cast(bytes, will)) if will else None
        return Attachment(
            SessionRef(client_id, session_id, cast(int, birth), token),
            bool(present),
            subscriptions_of(subscribed),
            cast(int, last_seq),
            min(cast(int, lowest), *seqs[:1]) if seqs else cast(int, lowest),
            cast(int, sent),
            seqs,
            {int(packet_id): message_id for packet_id, message_id in zip(found[::2], found[1::2], strict=True)},
            None if ended_will is None else ended_will[1],
            subscriptions_of(ended),
        )

    async def detach(self, ref: SessionRef, expiry_s: int, sent_seq: int, will: bool) -> bool:
        """See `Cluster.detach`; waits for the store if that is away. Returns whether a will is due at once."""
        prefix = self.prefix(ref.session_id)
        reply = await self._link.call(
            "FCALL", "rk1_detach", 1, prefix, ref.session_id, ref.token, expiry_s, sent_seq, int(will), resend=True
        )
        _, fired, routes = cast("list[int]", reply)
        if routes:
            await self._repair(prefix, ref.session_id)
        return bool(fired)

    async def _repair(self, prefix: bytes, session_id: bytes) -> None:
        """The routes of a session that is gone; their births are, so nobody is harmed while they stay."""
        try:
            await self._routes.repair(prefix, session_id)
        except ClusterError as error:
            # They are marked: the timers try again.
            _log.warning("cluster.routes_delayed", reason=str(error)[:200])

    async def subscribe(self, ref: SessionRef, subscriptions: Sequence[StoredSubscription]) -> None:
        """See `Cluster.subscribe`."""
        records = [(each.topic_filter.encode(), pack_subscription(each)) for each in subscriptions]
        if not records:
            return
        fields = [part for record in records for part in record]
        await self._owned_call("rk1_subscribe", ref, fields)
        await self._routes.set(ref.session_id, ref.birth, ref.client_id, records)

    async def unsubscribe(self, ref: SessionRef, topic_filters: Sequence[str]) -> None:
        """See `Cluster.unsubscribe`."""
        filters = [each.encode() for each in topic_filters]
        if not filters:
            return
        await self._owned_call("rk1_unsubscribe", ref, filters)
        await self._routes.remove(ref.session_id, ref.birth, filters)

    async def _owned_call(self, function: str, ref: SessionRef, arguments: Sequence[bytes]) -> None:
        prefix = self.prefix(ref.session_id)
        if await self._link.call("FCALL", function, 1, prefix, ref.session_id, ref.token, *arguments) != 1:
            raise SessionLost(f"session of {ref.client_id[:64]!r} has another owner")

    async def page(self, ref: SessionRef, after_seq: int, limit: int) -> list[QueuedMessage]:
        """See `Cluster.page`."""
        prefix = self.prefix(ref.session_id)
        while True:
            reply = await self._link.call(
                "FCALL", "rk1_page", 1, prefix, ref.session_id, ref.birth, after_seq, min(limit, PAGE_LIMIT)
            )
            values = cast("list[int | bytes]", reply)
            if not values:
                return []
            result: list[QueuedMessage] = []
            for seq, record in zip(cast("list[int]", values[::2]), cast("list[bytes]", values[1::2]), strict=True):
                queued = unpack_queued(seq, record)
                after_seq = seq
                if queued is None:
                    _log.warning("cluster.unknown_record", kind="queue", format=record[0])
                else:
                    result.append(queued)
            if result:
                return result


def subscriptions_of(reply: object) -> list[StoredSubscription]:
    """The flat list of filters and records of a session."""
    fields = cast("list[bytes]", reply)
    result: list[StoredSubscription] = []
    for topic_filter, record in zip(fields[::2], fields[1::2], strict=True):
        subscription = unpack_subscription(topic_filter, record)
        if subscription is None:
            _log.warning("cluster.unknown_record", kind="subscription", format=record[0])
        else:
            result.append(subscription)
    return result
