"""Histories written by hand: each call is an event a tenth of a second after the one before."""

from __future__ import annotations

from tests.history import events as ev
from tests.history.events import Event, History
from tests.history.timeline import Timeline

STEP_S = 0.1


class Script:
    """Builds a history; `at` is the time of the next event."""

    def __init__(self) -> None:
        self.history = History()
        self.at = 0.0
        self._where: dict[int, tuple[str, str]] = {}

    def _add(self, kind: str, connection: int, **fields: object) -> float:
        client, node = self._where[connection]
        event = Event(self.at, kind, client, connection, node)._replace(**fields)  # type: ignore[arg-type]
        self.history.events.append(event)
        self.at = round(self.at + STEP_S, 6)
        return event.at

    def connect(
        self,
        connection: int,
        client: str,
        node: str = "a",
        *,
        expiry_s: float = 3600,
        present: bool = False,
        clean: bool = False,
        will: str = "",
        code: int = 0,
    ) -> None:
        """CONNECT and CONNACK."""
        self._where[connection] = client, node
        self._add(ev.CONNECT, connection, value=expiry_s, code=int(clean), text=will)
        self._add(ev.CONNACK, connection, value=float(present), code=code)

    def closed(self, connection: int, *, by: str = "") -> None:
        """The connection is over; `by` is `bye` or `abort` if the client wanted it."""
        if by:
            self._add(by, connection)
        self._add(ev.CLOSED, connection, code=int(bool(by)))

    def disconnect(self, connection: int, code: int) -> None:
        """DISCONNECT from the server."""
        self._add(ev.DISCONNECT, connection, code=code)

    def subscribe(self, connection: int, topic_filter: str, qos: int = 2) -> None:
        """SUBSCRIBE and SUBACK."""
        self._add(ev.SUBSCRIBE, connection, topic=topic_filter, qos=qos)
        self._add(ev.SUBACK, connection, topic=topic_filter, code=qos)

    def unsubscribe(self, connection: int, topic_filter: str) -> None:
        """UNSUBSCRIBE and UNSUBACK."""
        self._add(ev.UNSUBSCRIBE, connection, topic=topic_filter)
        self._add(ev.UNSUBACK, connection, topic=topic_filter)

    def publish(
        self, connection: int, payload: str, topic: str = "t", qos: int = 1, *, dup: bool = False, retain: bool = False
    ) -> None:
        """PUBLISH."""
        self._add(ev.PUBLISH, connection, payload=payload, topic=topic, qos=qos, dup=dup, retain=retain)

    def ack(self, connection: int, payload: str, qos: int = 1, code: int = 0) -> None:
        """PUBACK or PUBREC."""
        self._add(ev.ACK, connection, payload=payload, qos=qos, code=code)

    def sent(self, connection: int, payload: str, topic: str = "t", qos: int = 1, *, retain: bool = False) -> None:
        """PUBLISH and its acknowledgement."""
        self.publish(connection, payload, topic, qos, retain=retain)
        self.ack(connection, payload, qos)

    def deliver(
        self,
        connection: int,
        payload: str,
        topic: str = "t",
        qos: int = 1,
        *,
        packet_id: int = 1,
        dup: bool = False,
        retain: bool = False,
        confirm: bool = True,
    ) -> None:
        """PUBLISH from the server, and the client's PUBACK, or PUBREC with PUBREL."""
        what = {"payload": payload, "qos": qos, "packet_id": packet_id}
        self._add(ev.DELIVER, connection, topic=topic, dup=dup, retain=retain, **what)
        if confirm and qos:
            self._add(ev.CONFIRM, connection, **what)
            if qos == 2:
                self._add(ev.RELEASE, connection, packet_id=packet_id)

    def fault(self, text: str, node: str = "") -> float:
        """Something is done to a node."""
        self.history.events.append(Event(self.at, ev.FAULT, node=node, text=text))
        self.at = round(self.at + STEP_S, 6)
        return round(self.at - STEP_S, 6)

    def wait(self, seconds: float) -> None:
        """Nothing happens for a while."""
        self.at = round(self.at + seconds, 6)

    def timeline(self) -> Timeline:
        """The history as the checkers want it."""
        return Timeline(self.history)


def pair(*, qos: int = 2, expiry_s: float = 3600, topic_filter: str = "t") -> Script:
    """A subscriber on connection 1 (node b) and a publisher on connection 2 (node a)."""
    script = Script()
    script.connect(1, "sub", "b", expiry_s=expiry_s)
    script.subscribe(1, topic_filter, qos)
    script.connect(2, "pub", "a")
    return script
