"""Who may come in and do what, as a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import trio

from broker.access import Access
from broker.auth.api import BackendError, ConnectRequest, Principal
from broker.errors import PeerError
from broker.options.listener import Listener, ListenerOptions
from tests.node.kit import LISTENER, World, serving


def nothing(*_: object) -> bool:
    return False


def everything(*_: object) -> bool:
    return True


class Rules:
    """Permissions of one client; the predicates may be changed, and are asked anew after `renew`."""

    def __init__(
        self,
        publish: Callable[[bytes, int, bool], bool] = everything,
        read: Callable[[bytes], bool] = everything,
        subscribe: Callable[[str], bool] = everything,
        covers: Callable[[str], bool] = nothing,
    ) -> None:
        self.unrestricted = False
        self.cleared: dict[bytes, int] = {}
        self.changed: Callable[[], None] | None = None
        self.publish = publish
        self.read = read
        self.subscribe = subscribe
        self.covers = covers
        #: Topics that have to be asked about, and what is waited for then.
        self.slow: set[bytes] = set()
        self.gate = trio.Event()
        self.asked: list[bytes] = []
        self.renewed = 0
        self.closed = False
        #: Filters without any subscription left.
        self.dropped: list[str] = []
        #: Filters that have to be asked about.
        self.slow_filters: set[str] = set()
        #: Whoever has to be asked is away.
        self.away = False

    def may_publish(self, topic: bytes, qos: int, retain: bool) -> bool | None:
        if topic in self.slow:
            return None
        allowed = self.publish(topic, qos, retain)
        if allowed:
            self.cleared[topic] = self.cleared.get(topic, 0) | 1 << (2 * qos + retain)
        return allowed

    async def ask_publish(self, topic: bytes, qos: int, retain: bool) -> bool:
        self.asked.append(topic)
        await self.gate.wait()
        self._reached()
        return self.publish(topic, qos, retain)

    def _reached(self) -> None:
        if self.away:
            raise BackendError("cannot be reached")

    def may_read(self, topic: bytes) -> bool:
        return self.read(topic)

    async def may_subscribe(self, topic_filter: str, qos: int) -> bool:
        await trio.lowlevel.checkpoint()
        self._reached()
        return self.subscribe(topic_filter)

    def unsubscribed(self, topic_filter: str) -> None:
        self.dropped.append(topic_filter)

    def subscribable(self, topic_filter: str, qos: int) -> bool | None:
        return None if topic_filter in self.slow_filters else self.subscribe(topic_filter)

    async def renew(self) -> bool:
        self.renewed += 1
        self.cleared.clear()
        return True

    def close(self) -> None:
        self.changed = None
        self.closed = True


class FakeChain:
    """Everybody is who they say; `login` may refuse, and change the principal."""

    def __init__(self) -> None:
        self.login: Callable[[Principal], Awaitable[None]] | None = None
        self.invalid: set[str] = set()

    async def authenticate(self, request: ConnectRequest, options: ListenerOptions) -> Principal:
        principal = Principal(request.username or "", request.client_id, request.peer, request.username)
        if self.login is not None:
            await self.login(principal)
        return principal

    async def still_valid(self, principal: Principal) -> bool:
        await trio.lowlevel.checkpoint()
        return principal.identity not in self.invalid


class FakeAccess:
    """Stands for `broker.access.Access`: rules by client id; who has none may do anything."""

    def __init__(self, **rules: Rules) -> None:
        self.chain = FakeChain()
        self.rules = rules
        self.unavailable = False

    def stranger(self, request: ConnectRequest, options: ListenerOptions) -> Principal | None:
        return None  # somebody is always asked

    async def permissions(self, principal: Principal) -> Rules:
        await trio.lowlevel.checkpoint()
        if self.unavailable:
            raise BackendError("cannot be reached")
        found = self.rules.get(principal.client_id)
        if found is None:
            found = Rules()
            found.unrestricted = True
        return found


def refused(code: int) -> Callable[[Principal], Awaitable[None]]:
    """A login that fails."""

    async def login(principal: Principal) -> None:
        raise PeerError(code, "no")

    return login


def listener(**options: object) -> Listener:
    """A listener with options."""
    return Listener(LISTENER.scheme, LISTENER.host, LISTENER.port, "", ListenerOptions(**options))  # type: ignore[arg-type]


@asynccontextmanager
async def ruled(access: FakeAccess | None = None, **more: object) -> AsyncIterator[World]:
    """A server with the rules of `access`, or with those of clients in `more`; other options are those of `serving`."""
    rules = {name: more.pop(name) for name, value in list(more.items()) if isinstance(value, Rules)}
    if access is None:
        access = FakeAccess(**cast("dict[str, Rules]", rules))
    async with serving(access=cast(Access, access), **more) as world:  # type: ignore[arg-type]
        yield world
