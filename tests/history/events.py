"""What happened in a run, as clients saw it: one list of events that is only ever appended to."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# What a client did, and what it was told. The fields that are used besides time, client, connection and node:
CONNECT = "connect"  # value: session expiry in s; code: clean start; text: payload of the will; topic: of the will
CONNACK = "connack"  # code; value: session present
BYE = "bye"  # the client sent DISCONNECT; code
ABORT = "abort"  # the client reset the connection
DISCONNECT = "disconnect"  # the server sent DISCONNECT; code
CLOSED = "closed"  # the network connection is over; code 1: the client gave it up itself
PUBLISH = "publish"  # packet_id, payload, topic, qos, dup, retain; value: expected by the client to be in order
ACK = "ack"  # PUBACK or PUBREC: packet_id, payload, qos, code
COMPLETE = "complete"  # PUBCOMP: packet_id, payload
ABANDON = "abandon"  # the client does not send an unacknowledged message again: payload
DELIVER = "deliver"  # packet_id, payload, topic, qos, dup, retain
CONFIRM = "confirm"  # the client sent PUBACK or PUBREC: packet_id, payload, qos
RELEASE = "release"  # PUBREL came: packet_id
SUBSCRIBE = "subscribe"  # topic: the filter; qos
SUBACK = "suback"  # topic: the filter; code
UNSUBSCRIBE = "unsubscribe"  # topic: the filter
UNSUBACK = "unsuback"  # topic: the filter; code
FAULT = "fault"  # text: what was done; node: to whom
MARK = "mark"  # text: a moment that a checker refers to


class Event(NamedTuple):
    """One thing that happened; `at` is in seconds since the run began, by one monotonic clock."""

    at: float
    kind: str
    client: str = ""
    connection: int = 0
    node: str = ""
    packet_id: int = 0
    payload: str = ""
    topic: str = ""
    qos: int = 0
    dup: bool = False
    retain: bool = False
    code: int = 0
    value: float = 0.0
    text: str = ""


class History:
    """The events of one run, in the order in which they happened."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events: list[Event] = list(events)
        self._began = time.monotonic()
        self._connections = 0

    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def next_connection(self) -> int:
        """A number for a network connection."""
        self._connections += 1
        return self._connections

    def add(
        self,
        kind: str,
        client: str = "",
        connection: int = 0,
        node: str = "",
        *,
        packet_id: int = 0,
        payload: str = "",
        topic: str = "",
        qos: int = 0,
        dup: bool = False,
        retain: bool = False,
        code: int = 0,
        value: float = 0.0,
        text: str = "",
    ) -> float:
        """Append an event that happens now; returns its time."""
        at = time.monotonic() - self._began
        self.events.append(
            Event(at, kind, client, connection, node, packet_id, payload, topic, qos, dup, retain, code, value, text)
        )
        return at

    def fault(self, text: str, node: str = "") -> float:
        """Note that something is done to a node or to the store; returns the time."""
        return self.add(FAULT, node=node, text=text)

    def mark(self, text: str) -> float:
        """Note a moment; returns the time."""
        return self.add(MARK, text=text)

    def of(self, *kinds: str) -> Iterator[Event]:
        """The events of these kinds."""
        return (event for event in self.events if event.kind in kinds)

    def save(self, path: Path) -> None:
        """Write one JSON object per line, without the fields that have their default."""
        defaults = Event(0, "")
        with path.open("w", encoding="utf-8") as lines:
            for event in self.events:
                fields = {
                    name: value
                    for name, value, default in zip(Event._fields, event, defaults, strict=True)
                    if value != default
                }
                lines.write(json.dumps(fields) + "\n")

    @classmethod
    def load(cls, path: Path) -> History:
        """Read what `save` wrote."""
        with path.open(encoding="utf-8") as lines:
            events = [Event(**{"at": 0.0, **json.loads(line)}) for line in lines]
        return cls(events)


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Whether a filter matches a topic: written anew from the standard, so that it shares no error with the broker."""
    if topic.startswith("$") and topic_filter[:1] in ("+", "#"):
        return False
    levels = topic.split("/")
    wanted = topic_filter.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index == len(levels) or level not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)


def split_share(topic_filter: str) -> tuple[str, str]:
    """`$share/name/filter` as (name, filter); ("", filter) if it is not shared."""
    if topic_filter.startswith("$share/"):
        _, name, plain = topic_filter.split("/", 2)
        return name, plain
    return "", topic_filter


def split_delay(topic: str) -> tuple[int, str]:
    """`$delayed/seconds/topic` as (seconds, topic); (0, topic) if it is not delayed."""
    if topic.startswith("$delayed/"):
        _, seconds, plain = topic.split("/", 2)
        return int(seconds), plain
    return 0, topic
