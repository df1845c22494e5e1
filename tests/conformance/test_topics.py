"""Topic names and filters: section 4.7 of both standards."""

from __future__ import annotations

import pytest

from tests.conformance import wire
from tests.conformance.peers import Peers
from tests.conformance.statements import statement

# filter -> names that it matches, and names that it does not; all below the test's own first level.
MATCHES = {
    "a/#": (["a", "a/", "a/b", "a/b/c", "a//"], ["ab", "A", "/a", "b/a"]),
    "#": (["a", "a/b", "", "/"], []),
    "+": (["a", ""], ["a/b", "/", "a/"]),
    "+/+": (["a/b", "/", "a/", "/b"], ["a", "a/b/c"]),
    "/+": (["/a", "/"], ["a", "/a/b"]),
    "a/+/c": (["a/b/c", "a//c"], ["a/c", "a/b/d", "a/b/c/d"]),
    "+/b/#": (["a/b", "/b", "a/b/c/d"], ["b", "a/c/b"]),
    "a": (["a"], ["A", "a/", "/a", "a ", "á"]),
}


ORDINARY = (
    *("space in it", " ", ".", "..", "*", ">", "a.b", "%2F", "$", "a$b", "caf\u00e9", "cafe\u0301", "\u2126"),
    *("\U0001f511", "\ufffd", "\x01", "\x7f", "\\", "{x}", "?", "K\u212a"),
)


@statement(
    v5="MQTT-4.7.0-1 MQTT-4.7.1-1 MQTT-4.7.1-2 MQTT-3.3.2-3 MQTT-4.7.3-4",
    v311="MQTT-4.7.1-1 MQTT-4.7.1-2 MQTT-4.7.1-3 MQTT-3.3.2-3 MQTT-4.7.3-4",
)
@pytest.mark.parametrize("topic_filter", MATCHES)
async def test_wildcards(peers: Peers, version: int, topic_filter: str) -> None:
    base = peers.topic("")
    subscriber = await peers.subscriber(base + topic_filter, version)
    publisher = await peers.connect(version)
    matching, others = MATCHES[topic_filter]
    for name in matching + others:
        await publisher.publish(base + name, name.encode(), 1)
    got = [(await subscriber.take()).topic_name.removeprefix(base) for _ in matching]
    assert got == matching
    await subscriber.expect_nothing()


@statement(v5="MQTT-4.7.3-4", v311="MQTT-4.7.3-4")
@pytest.mark.parametrize("name", ORDINARY)
async def test_ordinary_characters_are_ordinary(peers: Peers, version: int, name: str) -> None:
    topic = peers.topic(name)
    decoys = [peers.topic(other) for other in ("A", "caf\u00e9", "cafe\u0301", "\u03a9", "a/b", "x") if other != name]
    subscriber = await peers.subscriber(topic, version)
    publisher = await peers.connect(version)
    for decoy in decoys:
        await publisher.publish(decoy, b"decoy", 1)
    await publisher.publish(topic, b"x", 1)
    assert (await subscriber.take(b"x")).topic_name == topic
    assert wire.text(topic.encode()) in subscriber.last_raw


@statement(v5="MQTT-4.7.2-1", v311="MQTT-4.7.2-1")
async def test_leading_wildcards_do_not_match_dollar_topics(peers: Peers, version: int) -> None:
    inner = peers.topic("x")
    topic = f"$conformance/{inner}"
    wild = await peers.connect(version)
    await wild.subscribe("#", f"+/{inner}", "+/#", qos=0)
    exact = await peers.connect(version)
    await exact.subscribe("$conformance/#", f"$conformance/{peers.topic('+')}", qos=0)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"dollar")
    await publisher.publish(f"plain/{inner}", b"plain")
    assert (await exact.take(b"dollar")).topic_name == topic
    # "#" also brings what other tests retained, but of this one's messages the plain one comes first.
    while True:
        received = await wild.take()
        if received.topic_name.endswith(inner):
            break
    assert received.payload == b"plain"


@statement(v5="MQTT-4.7.2-1", v311="MQTT-4.7.2-1")
async def test_leading_wildcards_do_not_match_retained_dollar_topics(peers: Peers, version: int) -> None:
    inner = peers.topic("x")
    publisher = await peers.connect(version)
    await publisher.publish(f"$conformance/{inner}", b"dollar", 1, retain=True)
    await publisher.publish(f"plain/{inner}", b"plain", 1, retain=True)
    wild = await peers.connect(version)
    await wild.subscribe(f"+/{inner}", qos=0)
    await wild.take(b"plain")
    marker = peers.topic("marker")
    await publisher.publish(marker, b"marker", 1, retain=True)
    await wild.subscribe(marker, qos=0)
    await wild.take(b"marker")


@statement(v5="MQTT-4.7.3-3", v311="MQTT-4.7.3-3")
async def test_topics_of_65535_bytes(peers: Peers, version: int) -> None:
    base = peers.topic("")
    topic = base + "x" * (65_535 - len(base))
    subscriber = await peers.subscriber(base + "+", version)
    await subscriber.subscribe(topic)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"long", 1)
    assert (await subscriber.take(b"long")).topic_name == topic


@statement(v5="MQTT-4.7.3-1", v311="MQTT-4.7.3-1")
async def test_topics_of_one_character(peers: Peers, version: int) -> None:
    subscriber = await peers.subscriber("/", version)
    publisher = await peers.connect(version)
    await publisher.publish("/", b"slash", 1)
    await subscriber.take(b"slash")
