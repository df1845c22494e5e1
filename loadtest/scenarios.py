"""What is measured: who publishes to whom, how much, and how fast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """One layout. `rate` is in messages a second over all publishers; 0 is as fast as flow control permits.

    Layouts: `p2p` (publisher i to subscriber i), `fanin` (all to each subscriber), `fanout` (one topic, every
    subscriber gets everything), `shared` (the subscribers share everything), `idle` (connections only).
    """

    name: str
    title: str
    layout: str
    publishers: int = 0
    subscribers: int = 0
    qos: int = 0
    cap: int = 100
    rate: int = 0
    clean: bool = True
    idle: int = 0


SCENARIOS = (
    Scenario("fanin", "fan-in QoS 0, 50 -> 1", "fanin", 50, 1, cap=200),
    Scenario("p2p0", "p2p QoS 0, 100 pairs", "p2p", 100, 100),
    Scenario("p2p1", "p2p QoS 1, 100 pairs", "p2p", 100, 100, qos=1),
    Scenario("p2p2", "p2p QoS 2, 100 pairs", "p2p", 100, 100, qos=2),
    Scenario("fanout", "fan-out QoS 0, 1 -> 500", "fanout", 1, 500, cap=20),
    Scenario("latency", "p2p QoS 1 at 2,000/s, 100 pairs", "p2p", 100, 100, qos=1, rate=2000),
    Scenario("persistent", "p2p QoS 1, persistent sessions", "p2p", 100, 100, qos=1, clean=False),
    Scenario("shared", "shared group QoS 1, 50 -> 10", "shared", 50, 10, qos=1, cap=200),
    Scenario("idle", "idle connections", "idle", idle=10_000),
    Scenario("mixed", "mixed: idle + 5,000 sending 1/s", "fanin", 5000, 1, rate=5000, idle=10_000),
)


def topic(root: str, layout: str, number: int) -> str:
    """Return the topic name of publisher `number`; all of a run are equally long."""
    return f"{root}/all" if layout == "fanout" else f"{root}/{number:06d}"


def topic_filter(root: str, layout: str, number: int) -> str:
    """Return what subscriber `number` subscribes to."""
    if layout in ("p2p", "fanout"):
        return topic(root, layout, number)
    return f"$share/{root}/{root}/#" if layout == "shared" else f"{root}/#"
