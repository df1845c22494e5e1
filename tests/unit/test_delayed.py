"""Topic names of delayed messages."""

from __future__ import annotations

import pytest

from broker.errors import PeerError
from broker.extensions.delayed import MAX_DELAY_S, Delay


@pytest.mark.parametrize(
    ("topic", "seconds", "rest"),
    [
        (b"$delayed/5/a", 5, b"a"),
        (b"$delayed/0/a/b", 0, b"a/b"),
        (b"$delayed/007/a", 7, b"a"),
        (b"$delayed/42949670/a", MAX_DELAY_S, b"a"),
        (b"$delayed/1//a", 1, b"/a"),
        (b"$delayed/1//", 1, b"/"),
        ("$delayed/1/ü".encode(), 1, "ü".encode()),
        (b"$delayed/1/$SYS/x", 1, b"$SYS/x"),
        (b"$delayed/1/$delayed", 1, b"$delayed"),
    ],
)
def test_delay_and_topic(topic: bytes, seconds: int, rest: bytes) -> None:
    delay = Delay(topic)
    assert (delay.seconds, delay.topic, delay.refusal) == (seconds, rest, 0)
    delay.check()


@pytest.mark.parametrize(
    "topic",
    [
        b"$delayed/",
        b"$delayed//",
        b"$delayed//a",
        b"$delayed/5",
        b"$delayed/5/",
        b"$delayed/42949671/a",
        b"$delayed/000000005/a",
        b"$delayed/-1/a",
        b"$delayed/+1/a",
        b"$delayed/1.5/a",
        b"$delayed/ 1/a",
        b"$delayed/1s/a",
        b"$delayed/a",
        "$delayed/\u0661/a".encode(),
        "$delayed/²/a".encode(),
        b"$delayed/" + b"9" * 5000 + b"/a",
        b"$delayed/1/$delayed/1/a",
    ],
)
def test_a_delay_that_is_none(topic: bytes) -> None:
    delay = Delay(topic)
    assert delay.refusal == 0x90
    assert delay.seconds == 0
    with pytest.raises(PeerError) as caught:
        delay.check()
    assert caught.value.reason_code == 0x90
    assert len(caught.value.text) < 120


def test_without_delayed_messages_every_delay_is_refused() -> None:
    with pytest.raises(PeerError, match="not supported"):
        Delay(b"$delayed/5/a", available=False).check()
