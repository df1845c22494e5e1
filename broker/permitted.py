"""What a connection may do, and where its topics are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from broker.clearance import PublishHooks
from broker.gate import Gate, Permissions
from broker.message import Message
from broker.mount import Mount
from broker.transport.api import Stream
from broker.watched import Watched

if TYPE_CHECKING:
    from broker.services import Services

#: No topic takes the direct way.
NOTHING: Final[Mapping[bytes, int]] = MappingProxyType({})


class Permitted(Watched):
    """A connection with its rules, hooks and mountpoint; one without any has nothing of it looked at."""

    __slots__ = ("_cleared", "guarded", "hooks", "mount", "permissions", "rechecks", "rules_version", "will_topic")

    def __init__(self, stream: Stream, server: Services) -> None:
        super().__init__(stream, server)
        #: What it may do; None: anything.
        self.permissions: Permissions | None = None
        #: Where its topics are.
        self.mount: Mount | None = None
        #: Who sees its messages first.
        self.hooks: PublishHooks | None = None
        #: Messages that it publishes are looked at.
        self.guarded = False
        #: Topics whose messages may take a direct way, with a bit for each QoS (see `Permissions.cleared`); None: all.
        self._cleared: Mapping[bytes, int] | None = None
        #: What rules are asked about for its will.
        self.will_topic = b""
        #: How often its subscriptions were looked at again.
        self.rechecks = 0
        #: Which change of users, rules and bans was the last one when its login began; see `Rechecking.version`.
        self.rules_version = 0

    def permit(
        self,
        permissions: Permissions | None,
        mount: Mount | None,
        hooks: PublishHooks | None = None,
        told: Callable[[Message], None] | None = None,
    ) -> None:
        """What the client may do and where its topics are, before it is open; `told` is called with what it got."""
        self.permissions = permissions
        self.mount = mount
        self.hooks = hooks
        self.guarded = permissions is not None or hooks is not None
        self.choose_way()
        free = permissions is None and mount is None and told is None
        self.gate = None if free else Gate(permissions, mount, told)
        if self.gate is not None and self.subscriber is not None:
            for topic_filter in self.subscriber.subscriptions:
                self.gate.watch(topic_filter)
        self.update_plain()

    def choose_way(self) -> None:
        """Which of its messages take the direct way."""
        if self.mount is not None or self.hooks is not None:
            self._cleared = NOTHING
        else:
            self._cleared = None if self.permissions is None else self.permissions.cleared

    def watch(self, topic_filter: str) -> None:
        """A subscription is about to be in force."""
        if self.gate is not None:
            self.gate.watch(topic_filter)
            self.update_plain()
