"""Delayed messages: a PUBLISH to `$delayed/<seconds>/<topic>` is stored, and published to `<topic>` in its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.errors import PeerError, StoreFull
from broker.message import Message
from broker.reasons import TOPIC_NAME_INVALID
from broker.routes import AckSlot
from cluster.api import Publication

if TYPE_CHECKING:
    from broker.dispatch import Dispatch

PREFIX: Final = b"$delayed/"
#: Longest delay in seconds (the bound of EMQX, whose form of topic this is).
MAX_DELAY_S: Final = 42_949_670


class Delay:
    """What a topic name that begins with `$delayed/` asks for: the delay in seconds and the topic to publish to.

    `refusal` is 0, or the reason code if it asks for nothing that can be done; `text` then says what is wrong.
    """

    __slots__ = ("refusal", "seconds", "text", "topic")

    def __init__(self, topic: bytes, available: bool = True) -> None:
        """`topic` is a valid topic name with the prefix."""
        digits, _, rest = topic[len(PREFIX) :].partition(b"/")
        self.seconds = 0
        self.topic = rest
        self.text = ""
        if not available:
            self.text = "delayed messages are not supported"
        elif not digits.isdigit() or len(digits) > 8 or int(digits) > MAX_DELAY_S:
            self.text = f"the delay of a message is 0 to {MAX_DELAY_S} seconds, not {digits[:20]!r}"
        elif not rest or rest.startswith(PREFIX):
            self.text = "after the delay of a message comes the topic name that it is published to"
        else:
            self.seconds = int(digits)
        self.refusal = TOPIC_NAME_INVALID if self.text else 0

    def check(self) -> None:
        """Raise PeerError 0x90 if it is refused: for packets that have no other answer."""
        if self.refusal:
            raise PeerError(self.refusal, self.text)


class Delayed(Publication):
    """A message that the store keeps until it is due. QoS 1 and 2 are acknowledged when it has it."""

    __slots__ = ("_dispatch", "_slot")

    def __init__(self, dispatch: Dispatch, message: Message, delay_s: int, slot: AckSlot | None) -> None:
        super().__init__(message, delay_s=delay_s, deduplicate=True)
        self._dispatch = dispatch
        self._slot = slot

    @property
    def patient(self) -> bool:
        """As the publisher is."""
        return self._slot is not None and self._slot.patient

    def stored(self) -> None:
        """Acknowledge; of a QoS 0 message that could not be stored nobody learns."""
        if self._slot is not None:
            self._slot.settle(self.error)
        elif self.error is not None:
            reason = "store_full" if isinstance(self.error, StoreFull) else "store_unavailable"
            self._dispatch.metrics.dropped[reason] += 1


def keep(dispatch: Dispatch, message: Message, delay: Delay, slot: AckSlot | None) -> None:
    """Store a message of any QoS until it is due; `slot.settle` follows. `delay.seconds` is not 0.

    Its time of acceptance counts for its expiry, and its id tells a repetition from a new message.
    """
    message.topic = delay.topic
    if not message.message_id:
        message.message_id = dispatch.new_message_id()
    if not message.accepted_at_ms:
        message.accepted_at_ms = dispatch.cluster.now_ms()
    dispatch.cluster.publish(Delayed(dispatch, message, delay.seconds, slot))


def wake_up(dispatch: Dispatch, message: Message) -> bool:
    """Make a message that is due ready to be published like one that came now; False if it expired meanwhile.

    What is left of its expiry interval becomes the interval itself: those who get it at once are told that.
    """
    left_s = message.remaining_s(dispatch.cluster.now_ms())
    if left_s == 0:
        dispatch.metrics.dropped["expired"] += 1
        return False
    if left_s > 0:
        message.accepted_at_ms += (message.expiry_s - left_s) * 1000
        message.expiry_s = left_s
    return True
