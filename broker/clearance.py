"""What becomes of a message before it is published: what rules and hooks say of it."""

from __future__ import annotations

from typing import Final, Protocol

from broker.auth.api import ConnectRequest, Principal
from broker.message import Message
from broker.reasons import IMPLEMENTATION_SPECIFIC_ERROR, NOT_AUTHORIZED


class Answer:
    """`refusal` is 0 or a reason code, `reason` the counter of such messages; `message` is to be published instead."""

    __slots__ = ("message", "reason", "refusal")

    def __init__(self, refusal: int, reason: str = "", message: Message | None = None) -> None:
        self.refusal = refusal
        self.reason = reason
        self.message = message


CLEAR: Final = Answer(0)
DENIED: Final = Answer(NOT_AUTHORIZED, "not_authorized")
#: Who would have to say it is away: no is not what they said.
UNKNOWN: Final = Answer(IMPLEMENTATION_SPECIFIC_ERROR, "authorization_unavailable")
DENIED_BY_HOOK: Final = Answer(NOT_AUTHORIZED, "hook")


class PublishHooks(Protocol):
    """Code that sees messages of clients first; see `broker.hooks`."""

    async def publish(self, principal: Principal, message: Message) -> Message | None:
        """What is published instead, at the same QoS; None: nothing is. Never raises."""
        ...


class Hooks(PublishHooks, Protocol):
    """All that code may see of clients. A flag that is not set says that nobody listens: nothing is called."""

    connects: bool
    publishes: bool
    delivers: bool
    disconnects: bool

    async def connect(self, request: ConnectRequest) -> None:
        """Before a client is authenticated. Raises PeerError."""

    def delivered(self, principal: Principal, message: Message) -> None:
        """A message was written to a client."""

    def disconnected(self, principal: Principal, reason: str) -> None:
        """A connection that was open has ended."""
