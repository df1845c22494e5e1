"""Sessions in the store: taken, from other nodes too, left, subscribed, paged."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import hiredis
import trio

from broker.errors import ClusterError, NotOwner, SessionLost, StoreFull, StoreUnavailable
from broker.log import get_logger
from cluster import keys as names
from cluster.api import (
    NOBODY,
    PAGE_LIMIT,
    Attachment,
    AttachRequest,
    AttachThen,
    QueuedMessage,
    SessionRef,
    StoredSubscription,
)
from cluster.keys import SESSION, Keys, partition_of
from cluster.policy import ClusterLimits
from cluster.records import pack_subscription, pack_will, unpack_queued, unpack_subscription, unpack_will
from cluster.redis.generations import Generations
from cluster.redis.library import patched
from cluster.redis.links import Link
from cluster.redis.membership import Membership
from cluster.redis.pipeline import Part
from cluster.redis.repair import Repair
from cluster.redis.takeover import LET_GO, SILENT, Takeover

#: Answers to an attach, beside 0.
_FENCED, _FULL, _OWNED, _NOT_OWNER = 1, 2, 3, 4
#: An attach gives up when so many other members had the session one after the other.
_MAX_OWNERS = 10
#: How long a client waits for its session.
ATTACH_S = 5.0

_log = get_logger("cluster")


class Sessions:
    """The rare calls of sessions; each is one function of one partition, and then the routes."""

    def __init__(
        self,
        keys: Keys,
        link: Link,
        member: Membership,
        repair: Repair,
        takeover: Takeover,
        generations: Generations,
        limits: ClusterLimits,
    ) -> None:
        self._prefixes = keys.partitions
        self._link = link
        self._member = member
        self._repair = repair
        self._takeover = takeover
        self._generations = generations
        self._margin = limits.inflight + 64
        self._tokens = _numbered(secrets.token_bytes(6))
        #: After how long the will of a session goes out that is taken from a dead owner; b"": it is cancelled.
        self._dead_will_after_ms = b""
        if limits.will_failover == "publish":
            self._dead_will_after_ms = b"%d" % int(limits.will_failover_grace_s * 1000)

    def prefix(self, session_id: bytes) -> bytes:
        """The prefix of a session's partition."""
        return self._prefixes[partition_of(session_id, len(self._prefixes))]

    async def attach(self, request: AttachRequest, session_id: bytes) -> Attachment:
        """See `Cluster.attach`."""
        token = self._token()
        return await self._go_on(
            request, session_id, token, await self._attach(request, session_id, token, b"", self._dead_will_after_ms)
        )

    def attach_then(self, request: AttachRequest, session_id: bytes, then: AttachThen) -> None:
        """See `Cluster.attach_then`."""
        token = self._token()
        partition = partition_of(session_id, len(self._prefixes))
        prefix = self._prefixes[partition]
        arguments = self._arguments(request, session_id, token, b"", self._dead_will_after_ms)

        def answered(reply: object) -> None:
            if isinstance(reply, StoreUnavailable):
                self._undo(request, session_id, token)
                then(StoreUnavailable(str(reply)))
                return
            self._takeover.attached(session_id, request.client_id)
            if isinstance(reply, hiredis.ReplyError):  # full, or without the function: not done
                then(partial(self.attach, request, session_id))
                return
            answer = cast("list[object]", reply)
            if answer[0] or answer[10]:
                then(partial(self._go_on, request, session_id, token, answer))
            else:
                then(self._attachment(request.client_id, session_id, token, answer))

        self._takeover.began(session_id)
        self._link.command(("FCALL", "rk1_attach_numbered", 1, prefix, *arguments), answered, durable=True)

    def _token(self) -> bytes:
        """Of one attach: there is no second one like it."""
        return b"%d:%b:%b" % (self._member.incarnation, self._member.node, next(self._tokens))

    async def _go_on(self, request: AttachRequest, session_id: bytes, token: bytes, answer: list[object]) -> Attachment:
        """From the store's first answer on."""
        robbed, will_after_ms = b"", self._dead_will_after_ms
        for _ in range(_MAX_OWNERS):
            if answer[0] != _OWNED:
                break
            # Another member has it; not the same one as before, if that was to be robbed.
            owner = cast(bytes, answer[1])
            outcome = await self._takeover.ask(request.client_id, owner)
            robbed = b"" if outcome == LET_GO else owner
            # A silent owner lives: the takeover ends its connection, as if it had noticed. Where nobody is, the node
            # died or was drained, and a reconnect may cancel the will.
            will_after_ms = b"0" if outcome == SILENT else self._dead_will_after_ms
            answer = await self._attach(request, session_id, token, robbed, will_after_ms)
        if answer[0] == _FENCED:
            self._member.fenced()
            raise StoreUnavailable("this node was taken for dead, or superseded by a newer process")
        if answer[0] == _NOT_OWNER:
            raise NotOwner("the session of this client id belongs to another user")
        if answer[0] == _FULL:
            raise StoreFull("the store is full: no new sessions")
        if answer[0] == _OWNED:
            raise StoreUnavailable("the session goes from node to node")
        if robbed:
            self._takeover.robbed(request.client_id, robbed)
        attachment = self._attachment(request.client_id, session_id, token, answer)
        if attachment.ended_subscriptions:
            # Nobody waits for long: they are marked, and the timers go on with them.
            with trio.move_on_after(ATTACH_S):
                await self.repair_gone(self.prefix(session_id), session_id)
        return attachment

    async def _attach(
        self, request: AttachRequest, session_id: bytes, token: bytes, robbed: bytes, will_after_ms: bytes
    ) -> list[object]:
        """The store's answer; takes the session from the member `robbed`, if that has it still."""
        prefix = self.prefix(session_id)
        arguments = self._arguments(request, session_id, token, robbed, will_after_ms)
        self._takeover.began(session_id)
        answered = False
        try:
            with trio.move_on_after(ATTACH_S):
                try:
                    reply = await self._function("rk1_attach_numbered", prefix, arguments)
                except StoreFull:
                    reply = await self._function("rk1_attach_numbered_full", prefix, arguments)
                answered = True
            if not answered:
                raise StoreUnavailable("a session was not safe in time: the store is slow, or lacks replicas")
        finally:
            if answered:
                self._takeover.attached(session_id, request.client_id)
            else:
                self._undo(request, session_id, token)
        return cast("list[object]", reply)

    def _undo(self, request: AttachRequest, session_id: bytes, token: bytes) -> None:
        """Perhaps the attach was executed; nobody will ever detach, so do it here. The token decides."""
        self._link.command(
            ("FCALL", "rk1_detach", 1, self.prefix(session_id), session_id, token, request.expiry_s, 0, 0),
            lambda _: self._takeover.detached(session_id),
            resend=True,
        )

    def _arguments(
        self, request: AttachRequest, session_id: bytes, token: bytes, robbed: bytes, will_after_ms: bytes
    ) -> tuple[Part, ...]:
        """Of `rk1_attach_numbered`, behind the prefix."""
        will = request.will
        return (
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
            robbed,
            self._generations.numbers[partition_of(session_id, len(self._prefixes))],
            will_after_ms,
            b"" if request.identity is None else names.identity_id(request.identity),
            names.identity_id(NOBODY) if request.may_end(NOBODY) else b"",
        )

    async def _function(self, name: str, prefix: bytes, arguments: tuple[Part, ...]) -> object:
        """A library that looks at nobody's identity, or numbers nobody's connections, has not got the function."""
        return await patched(self._link, lambda: self._link.call("FCALL", name, 1, prefix, *arguments, durable=True))

    @staticmethod
    def _attachment(client_id: str, session_id: bytes, token: bytes, answer: list[object]) -> Attachment:
        _, present, birth, last_seq, lowest, sent, subscribed, releasing, inbound, will, ended, epoch = answer
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
            cast(int, epoch),
        )

    async def connected(self, client_id: str, identity: str) -> bool:
        """See `Cluster.connected`."""
        session_id = names.session_id(client_id)
        reply = await self._link.call("HMGET", self.prefix(session_id) + SESSION + session_id, "owner", "identity")
        owner, known = cast("list[bytes | None]", reply)
        return owner is not None and known in (None, names.identity_id(identity))

    async def detach(self, ref: SessionRef, expiry_s: int, sent_seq: int, will: bool) -> bool:
        """See `Cluster.detach`; waits for the store if that is away. Returns whether a will is due at once."""
        prefix = self.prefix(ref.session_id)
        self._takeover.began(ref.session_id)
        try:
            reply = await self._link.call(
                "FCALL",
                "rk1_detach",
                1,
                prefix,
                ref.session_id,
                ref.token,
                expiry_s,
                sent_seq,
                int(will),
                resend=True,
                durable=True,
            )
        finally:
            self._takeover.detached(ref.session_id)
        _, fired, routes = cast("list[int]", reply)
        if routes:
            await self.repair_gone(prefix, ref.session_id)
        return bool(fired)

    async def repair_gone(self, prefix: bytes, session_id: bytes) -> None:
        """The routes of a session that is gone; their births are, so nobody is harmed while they stay."""
        try:
            await self._repair.repair(prefix, session_id)
        except ClusterError as error:
            # They are marked: the timers try again.
            _log.warning("cluster.routes_delayed", reason=str(error)[:200])

    async def subscribe(self, ref: SessionRef, subscriptions: Sequence[StoredSubscription]) -> None:
        """See `Cluster.subscribe`; of a persistent session."""
        records = [(each.topic_filter.encode(), pack_subscription(each)) for each in subscriptions]
        if not records:
            return
        fields = [part for record in records for part in record]
        await self._owned_call("rk1_subscribe", ref, fields)
        await self._repair.added(ref.session_id, ref.birth, ref.client_id, records)

    async def unsubscribe(self, ref: SessionRef, topic_filters: Sequence[str]) -> None:
        """See `Cluster.unsubscribe`; of a persistent session."""
        filters = [each.encode() for each in topic_filters]
        if not filters:
            return
        await self._owned_call("rk1_unsubscribe", ref, filters)
        await self._repair.removed(ref.session_id, ref.birth, filters)

    async def _owned_call(self, function: str, ref: SessionRef, arguments: Sequence[bytes]) -> None:
        prefix = self.prefix(ref.session_id)
        reply = await self._link.call("FCALL", function, 1, prefix, ref.session_id, ref.token, *arguments, durable=True)
        if reply != 1:
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


def _numbered(prefix: bytes) -> Iterator[bytes]:
    """Names that nobody else gives: 12 bytes each."""
    return (prefix + number.to_bytes(6, "big") for number in itertools.count())


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
