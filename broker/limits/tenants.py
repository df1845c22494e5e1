"""How fast all clients of a tenant may send together, on all nodes.

The store has a bucket for each tenant and kind of rate. A node takes portions from it ahead of need: as long as a
tenant is below its rate nobody waits for anything. A node that has none left does not read the tenant's clients until
the store gives more.

Those who wait take turns: what comes is divided among them in the order in which they came, so that one that floods the
node leaves the others of its tenant their part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from broker.auth.template import Template, Unresolved, lookup_of
from broker.errors import ClusterError, ConfigError
from broker.limits.meter import UNLIMITED
from broker.limits.turns import Turns
from broker.log import get_logger
from cluster.registry import Registry

if TYPE_CHECKING:
    from broker.auth.api import Principal

#: A node holds what comes in so many seconds, and asks for more from half of that on.
PORTION_S: Final = 1.0
#: Pause before the store is asked again that had not enough.
AGAIN_S: Final = 0.1
#: What a turn may come to where only bytes are counted: one read.
TURN_BYTES: Final = 65536

_log = get_logger("limits")


class _Tokens:
    """What a node has of one of the store's buckets; below 0 for what was handled without."""

    __slots__ = ("_asked", "_burst", "level", "name", "rate")

    def __init__(self, name: str, rate: int) -> None:
        self.name = name
        self.rate = rate
        self._burst = max(1.0, rate * PORTION_S)
        self.level = 0.0
        self._asked = False

    def wanted(self) -> int:
        """How many to ask for: none while there is half a portion."""
        return int(self._burst - self.level) if self.level <= self._burst / 2 else 0

    async def fill(self, registry: Registry) -> None:
        """Asks the store once. Raises ClusterError."""
        if self._asked or not (wanted := self.wanted()):
            return
        self._asked = True
        try:
            self.level += await registry.draw(self.name, wanted, self.rate, self._burst)
        finally:
            self._asked = False

    def grant(self) -> None:
        """The store does not answer: what came in since it was asked last, as if this were the only node."""
        self.level = min(self._burst, self.level + self.rate * AGAIN_S)


class Tenant:
    """The part that this node has of one tenant's rates; the `Share` of its clients."""

    __slots__ = ("_bytes", "_low", "_messages", "_turns", "clients", "name")

    def __init__(self, name: str, message_rate: int, byte_rate: int, low: set[Tenant]) -> None:
        self.name = name
        self.clients = 0
        self._messages = _Tokens(f"tenant-messages:{name}", message_rate) if message_rate else None
        self._bytes = _Tokens(f"tenant-bytes:{name}", byte_rate) if byte_rate else None
        self._low = low
        self._turns = Turns()

    def free(self) -> int:
        """How many messages there are that nobody was given; 0: nothing at all."""
        if self._bytes is not None and self._bytes.level < 1:
            return 0
        return UNLIMITED if self._messages is None else max(0, int(self._messages.level))

    def budget(self, who: object) -> int:
        """See `Share`."""
        budget = self._turns.given(who)
        if not budget and not self._turns.waiting:
            budget = self.free()
        if not budget:
            self._turns.wait(who)
            self._low.add(self)
        return budget

    def take(self, who: object, messages: int, size: int) -> None:
        """See `Share`."""
        low = False
        if self._messages is None:
            self._turns.end(who)
        else:
            self._messages.level -= self._turns.use(who, messages)
            low = bool(self._messages.wanted())
        if self._bytes is not None:
            self._bytes.level -= size
            low = low or bool(self._bytes.wanted())
        if low:
            self._low.add(self)

    async def fill(self, registry: Registry) -> bool:
        """Asks the store; whether there is enough for now."""
        kinds = [tokens for tokens in (self._messages, self._bytes) if tokens is not None]
        try:
            for tokens in kinds:
                await tokens.fill(registry)
        except ClusterError:
            for tokens in kinds:
                tokens.grant()
        self._give()
        return not self._turns.waiting and not any(tokens.wanted() for tokens in kinds)

    def _give(self) -> None:
        back = self._turns.reclaim()
        if self._messages is not None:
            self._messages.level += back
        free, waiting = self.free(), self._turns.waiting
        if not free or not waiting:
            return
        turns = min(waiting, free)
        if self._bytes is not None:
            turns = min(turns, 1 + int(self._bytes.level) // TURN_BYTES)
        if self._messages is None:
            self._turns.give(turns, UNLIMITED)
        else:
            portion, more = divmod(free, waiting)
            given = (portion + 1) * self._turns.give(min(turns, more), portion + 1)
            if portion:
                given += portion * self._turns.give(turns - more, portion)
            self._messages.level -= given


class Tenants:
    """All tenants with clients on this node."""

    def __init__(self, registry: Registry, template: str, message_rate: int, byte_rate: int) -> None:
        """ConfigError for a template that has unknown placeholders."""
        self._registry = registry
        self._rates = (message_rate, byte_rate)
        self._template: Template | None = None
        if template and (message_rate or byte_rate):
            try:
                self._template = Template(template)
            except ValueError as error:
                raise ConfigError(f"tenant = {template!r}: {error}") from None
        self._tenants: dict[str, Tenant] = {}
        self._low: set[Tenant] = set()

    @property
    def any(self) -> bool:
        """Whether a client may have one."""
        return self._template is not None

    async def of(self, principal: Principal) -> Tenant | None:
        """The client's, with something to begin with; `left` follows. None for clients of none: they have no value for
        a placeholder of the template."""
        if self._template is None:
            return None
        try:
            name = self._template.render(lookup_of(principal))
        except Unresolved:
            return None
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = Tenant(name, *self._rates, self._low)
        tenant.clients += 1
        if not tenant.free():
            filled = False
            try:
                await self._fill(tenant)
                filled = True
            finally:
                if not filled:
                    self.left(tenant)
        return tenant

    def left(self, tenant: Tenant) -> None:
        """One of its clients has ended."""
        tenant.clients -= 1
        if not tenant.clients and self._tenants.get(tenant.name) is tenant:
            del self._tenants[tenant.name]
            self._low.discard(tenant)

    async def serve(self) -> None:
        """Asks for more where there is little, until cancelled."""
        if self._template is None:
            await trio.sleep_forever()
        while True:
            await trio.sleep(AGAIN_S)
            low = list(self._low)
            self._low.clear()
            if low:
                async with trio.open_nursery() as nursery:
                    for tenant in low:
                        nursery.start_soon(self._fill, tenant)

    async def _fill(self, tenant: Tenant) -> None:
        if not await tenant.fill(self._registry) and tenant.clients:
            self._low.add(tenant)
