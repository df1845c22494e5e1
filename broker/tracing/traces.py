"""The traces of a node, and which of its connections and topics they are about.

Nothing of a connection or of the way of a message looks at this while no trace runs. While one does, the connections
concerned are of another class (`broker.tracing.taps`), and so is `Dispatch` (`broker.tracing.ways`): what is followed
takes the general way, the rest goes the direct way as ever. Slow ways (CONNECT, SUBSCRIBE, refusals) ask whether
`Server.tracer` is None.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from broker.auth.api import PUBLISH, SUBSCRIBE
from broker.auth.explain import explain_now
from broker.auth.permissions import Permissions
from broker.clearance import Answer
from broker.codec.packets import Connect
from broker.connection import Connection
from broker.dispatch import Dispatch
from broker.log import get_logger
from broker.message import Message
from broker.peer import network_of
from broker.routes import Route
from broker.services import Services
from broker.session.machine import CLOSED
from broker.topics.names import matches, split_shared
from broker.topics.relations import common
from broker.tracing.record import Spec, Trace
from broker.tracing.taps import FOLLOWER, Tap, TracedConnection
from broker.tracing.text import message_shown, packet_shown, payload_shown, quoted, reason_text, topic_text
from broker.tracing.ways import TracedDispatch
from broker.transport.api import Stream

if TYPE_CHECKING:
    from broker.access import Access

#: Traces that run at a time.
RUNNING_MAX: Final = 10

#: How long the lines of a trace are kept after its end.
KEEP_MS: Final = 600_000

#: Connections that a trace of a client or an address follows at most on a node.
TAPS_MAX: Final = 100

#: So many connections are looked at before others have their turn.
PORTION: Final = 250

#: How often lines are told to those who follow, and how many in one message.
TELL_S: Final = 0.2
TELL_LINES: Final = 100

#: Remembered: which traces a topic is in, and sessions of clients that were followed and have left.
_MEMORY: Final = 10_000

#: Where the lines of a trace are told, with its id behind.
TOPIC: Final = "$rookery/trace/"

_PRIVATE: Final = b"$rookery/"

_log = get_logger("trace")


class TooMany(Exception):
    """RUNNING_MAX traces run here."""


class Traced(Services, Protocol):
    """The server, as its traces see it."""

    connections: set[Connection]
    access: Access


class Traces:
    """Of one server. `Server.tracer` is this while any of them runs, else None."""

    def __init__(self, server: Traced, node: str) -> None:
        self._server = server
        self._node = node
        self._task = False
        #: Those that run, and those that ended not long ago.
        self.known: dict[str, Trace] = {}
        self.clients: dict[str, tuple[Trace, ...]] = {}
        self.networks: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, Trace]] = []
        self.topics: list[tuple[str, Trace]] = []
        #: Connections that are followed.
        self.taps: dict[Connection, Tap] = {}
        #: By session id: those, and some that have ended, for what is published on their behalf.
        self.sessions: dict[bytes, Tap] = {}
        self._looking = False
        self._by_topic: dict[bytes, tuple[Trace, ...]] = {}
        #: Called with the id of a trace and its new lines (JSON, in order), and whether it goes on.
        self.tell: Callable[[str, Sequence[bytes], bool], None] = _nobody
        #: Members of the cluster that were told of each trace; somebody sees to it that new ones are.
        self.members: dict[str, set[str]] = {}

    # -- traces

    @property
    def running(self) -> list[Trace]:
        """Those that have not ended."""
        return [trace for trace in self.known.values() if not trace.ended_at_ms]

    def begin(self, spec: Spec) -> Trace:
        """Start a trace; the one that there is if it is known, ended or not. Raises TooMany, ValueError for an address
        that is none."""
        now_ms = self._server.now_ms
        self.forget()
        trace = self.known.get(spec.id)
        if trace is not None:
            return trace
        if len(self.running) >= RUNNING_MAX:
            raise TooMany(f"{RUNNING_MAX} traces run already")
        if spec.ip:
            network_of(spec.ip)
        trace = self.known[spec.id] = Trace(spec, self._node)
        if now_ms >= spec.ends_at_ms:
            trace.end(now_ms, "its time is over")
            return trace
        _log.info("trace.begins", id=spec.id, **_about(spec))
        self._arrange()
        self._server.reactor.wake()
        if not self._task:
            self._task = True
            self._server.start(self._watch)
        return trace

    def end(self, trace_id: str, why: str = "it was stopped") -> Trace | None:
        """Stop a trace; its lines stay for a while. None: it is not known."""
        trace = self.known.get(trace_id)
        if trace is not None and not trace.ended_at_ms:
            trace.end(self._server.now_ms, why)
            _log.info("trace.ended", id=trace_id, lines=trace.seq, left_out=trace.left_out)
            self._arrange()
            self._tell(trace)
        return trace

    def forget(self) -> None:
        """Traces that ended some time ago are not kept."""
        now_ms = self._server.now_ms
        for trace in list(self.known.values()):
            if trace.ended_at_ms and now_ms - trace.ended_at_ms > KEEP_MS:
                del self.known[trace.spec.id]
        ended = [trace for trace in self.known.values() if trace.ended_at_ms]
        for trace in ended[: max(0, len(ended) - RUNNING_MAX)]:  # memory has a bound, too
            del self.known[trace.spec.id]

    async def _watch(self) -> None:
        try:
            while running := self.running:
                await trio.sleep(TELL_S)
                now_ms = self._server.now_ms
                for trace in running:
                    if now_ms >= trace.spec.ends_at_ms:
                        self.end(trace.spec.id, "its time is over")
                    else:
                        trace.tick(now_ms)
                        self._tell(trace)
        finally:
            self._task = False

    def _tell(self, trace: Trace) -> None:
        while trace.told < trace.seq or trace.ended_at_ms:
            lines = trace.after(trace.told, TELL_LINES)
            trace.told = max(trace.told, trace.first - 1) + len(lines)
            more = not trace.ended_at_ms or trace.told < trace.seq
            self.tell(trace.spec.id, lines, more)
            if not more:
                return

    # -- who is concerned

    def _arrange(self) -> None:
        """Traces are others: so are those whom they follow."""
        running = self.running
        self.clients = {}
        self.networks = []
        self.topics = []
        for trace in running:
            spec = trace.spec
            if spec.client_id:
                self.clients[spec.client_id] = (*self.clients.get(spec.client_id, ()), trace)
            elif spec.ip:
                self.networks.append((network_of(spec.ip), trace))
            else:
                self.topics.append((spec.topic_filter, trace))
        self._by_topic.clear()
        server = self._server
        server.tracer = self if running else None
        dispatch = server.dispatch
        dispatch.__class__ = TracedDispatch if running else Dispatch
        if isinstance(dispatch, TracedDispatch):
            dispatch.tracer = self
        dispatch.suspend(dispatch.suspended)  # forget which topics take the direct way
        if not running:
            self.sessions.clear()
        connections = list(server.connections)
        if len(connections) > PORTION and (self.networks or self.topics):
            if not self._looking:
                self._looking = True
                server.start(self._look_around)
            connections = [each for each in connections if each.client_id in self.clients or each in self.taps]
        for connection in connections:
            self.fit(connection)

    async def _look_around(self) -> None:
        """Find among many connections those that concern traces of topics and addresses, beside other work."""
        connections = list(self._server.connections)
        self._looking = False
        for number, connection in enumerate(connections):
            if not number % PORTION:
                await trio.lowlevel.checkpoint()
            if connection.machine.state != CLOSED:
                self.fit(connection)

    def fit(self, connection: Connection, claimed: str = "") -> Tap | None:
        """See to it that a connection is followed by the traces that it concerns. `claimed`: a client id that it came
        with."""
        tap = self.taps.get(connection)
        traces = self._concerned(connection, claimed, tap)
        was_followed = tap is not None
        kind = TracedConnection if traces or self.topics else Connection
        if not traces:
            if tap is None and connection.__class__ is kind:
                return None
            self.taps.pop(connection, None)
            tap = None
        elif tap is None:
            peer = str(connection.stream.peer)
            tap = self.taps[connection] = Tap(self, traces, connection.client_id or claimed, peer)
            if connection.ref is not None:
                self.remember(connection.ref.session_id, tap)
        else:
            tap.traces = traces
        connection.__class__ = kind
        if tap is None and not was_followed:
            return None
        session = connection.session
        if session is not None:
            session.watch = FOLLOWER if traces else None
        connection.choose_way()
        connection.update_plain()
        return tap

    def _concerned(self, connection: Connection, claimed: str, tap: Tap | None) -> tuple[Trace, ...]:
        found: dict[str, Trace] = {}
        for name in (connection.client_id, claimed):
            if name:
                found.update((trace.spec.id, trace) for trace in self.clients.get(name, ()))
        if self.networks and (host := connection.stream.peer.host):
            try:
                address = ipaddress.ip_address(host)
            except ValueError:
                pass
            else:
                found.update((trace.spec.id, trace) for network, trace in self.networks if address in network)
        if tap is not None:
            found.update((trace.spec.id, trace) for trace in tap.traces if not trace.ended_at_ms)
        elif found and len(self.taps) >= RUNNING_MAX * TAPS_MAX:
            return ()
        if tap is None:
            return tuple(trace for trace in found.values() if self._has_room(trace))
        return tuple(found.values())

    def _has_room(self, trace: Trace) -> bool:
        followed = sum(trace in tap.traces for tap in self.taps.values()) if len(self.taps) >= TAPS_MAX else 0
        if followed < TAPS_MAX:
            return True
        now_ms = self._server.now_ms
        if trace.takes(now_ms):
            trace.add(now_ms, "", "", "trace", "", f"a connection is not followed: {TAPS_MAX} are", {})
        return False

    def remember(self, session_id: bytes, tap: Tap) -> None:
        """The session of a connection that is followed."""
        self.sessions.pop(session_id, None)
        self.sessions[session_id] = tap
        while len(self.sessions) > _MEMORY:
            del self.sessions[next(iter(self.sessions))]

    def by_topic(self, topic: bytes) -> tuple[Trace, ...]:
        """The traces that a topic name is in."""
        if not self.topics or topic.startswith(_PRIVATE):
            return ()
        found = self._by_topic.get(topic)
        if found is None:
            name = topic_text(topic)
            found = tuple(trace for topic_filter, trace in self.topics if matches(topic_filter, name))
            if len(self._by_topic) >= _MEMORY:
                self._by_topic.clear()
            self._by_topic[topic] = found
        return found

    # -- lines

    def taking(self, *groups: tuple[Trace, ...]) -> list[Trace]:
        """Those of some traces that take a line now: empty, and nothing need be made."""
        now_ms = self._server.now_ms
        return [trace for traces in groups for trace in traces if trace.takes(now_ms)]

    def add(
        self,
        traces: Sequence[Trace],
        client_id: str,
        peer: str,
        kind: str,
        text: str,
        details: dict[str, Any],
        direction: str = "",
        payload: bytes | None = None,
    ) -> None:
        """Add a line to traces that take one."""
        now_ms = self._server.now_ms
        for trace in traces:
            shown = details if payload is None or not trace.spec.payload else {**details, **payload_shown(payload)}
            trace.add(now_ms, client_id, peer, kind, direction, text, shown)

    # -- what slow ways tell

    def accepted(self, connection: Connection) -> None:
        """A network connection was accepted."""
        tap = self.fit(connection)
        if tap is not None:
            listener = connection.stream.peer.listener
            tap.line("connection", f"connected to listener {quoted(listener)}", {"listener": listener})

    def rejected(self, stream: Stream, reason: str) -> None:
        """A network connection was closed at once."""
        peer = stream.peer
        if not self.networks or not peer.host:
            return
        address = ipaddress.ip_address(peer.host)
        found = self.taking(tuple(trace for network, trace in self.networks if address in network))
        if found:
            self.add(found, "", str(peer), "connection", f"closed at once: {reason}", {"reason": reason})

    def opening(self, connection: Connection, connect: Connect) -> None:
        """A CONNECT is about to be carried out."""
        tap = self.fit(connection, connect.client_id)
        if tap is None:
            return
        tap.client_id = connect.client_id or tap.client_id
        traces = self.taking(tap.traces)
        if traces:
            text, shown = packet_shown(connect)
            tap.add(traces, "packet", text, shown, "in")

    def identified(self, connection: Connection) -> None:
        """It is known who the client is."""
        tap = self.fit(connection)
        principal = connection.principal
        if tap is None or principal is None:
            return
        tap.client_id = connection.client_id
        details = {
            "authenticator": principal.authenticator,
            "identity": principal.identity,
            "superuser": principal.superuser,
        }
        who = f"as {quoted(principal.identity)}" if principal.identity else "as nobody in particular"
        by = f"let in {who} by {principal.authenticator}" if principal.authenticator else f"let in {who}, unchecked"
        tap.line("authentication", by + (", a superuser" if principal.superuser else ""), details)

    def takes_over(self, connection: Connection, owner: Connection) -> None:
        """A connection waits for an older one of its client id on this node to be let go."""
        tap = self.taps.get(connection)
        if tap is not None:
            peer = str(owner.stream.peer)
            tap.line("takeover", f"takes over from the connection of {peer}", {"older": peer})

    def restricted(self, connection: Connection) -> None:
        """Its rules are known."""
        tap = self.taps.get(connection)
        if tap is not None:
            text = "no rules: everything is allowed" if connection.permissions is None else "under rules"
            if connection.mount is not None:
                text += f", topics are below {quoted(connection.mount.text)}"
            tap.line("acl", text, {"restricted": connection.permissions is not None})

    def cleared(self, connection: Connection, message: Message, route: Route, answer: Answer) -> None:
        """Rules and hooks decided about a PUBLISH."""
        traces = self._taking(connection, message.topic)
        if traces:
            topic = topic_text(message.topic if route.delay is None else route.delay.topic)
            text, why = self._why(connection, PUBLISH, topic, message.qos, message.retain, answer.refusal == 0)
            if answer.reason:
                why = {**why, "reason": answer.reason}
            self._line(traces, connection, "acl", f"publish to {quoted(topic)}: {text}", why)

    def refused(self, connection: Connection, message: Message, code: int, reason: str, text: str) -> None:
        """A PUBLISH is not published."""
        traces = self._taking(connection, message.topic)
        if traces:
            topic = quoted(topic_text(message.topic))
            details = {**message_shown(message), "reason_code": code, "reason": text or reason}
            words = f"PUBLISH to {topic} is refused: {reason_text(code)}" + (f", {text}" if text else "")
            self._line(traces, connection, "drop", words, details)

    def dropped(self, connection: Connection, message: Message, reason: str) -> None:
        """A message of a client is dropped before anybody could have got it."""
        traces = self._taking(connection, message.topic)
        if traces:
            words = f"{quoted(topic_text(message.topic))} is dropped: {reason}"
            self._line(traces, connection, "drop", words, {**message_shown(message), "reason": reason})

    def subscribed(self, connection: Connection, topic_filter: str, code: int) -> None:
        """It was decided about a filter of a SUBSCRIBE; `topic_filter` is the real one."""
        plain = split_shared(topic_filter)[1]
        topics = tuple(trace for each, trace in self.topics if common(each.split("/"), plain.split("/")) is not None)
        tap = self.taps.get(connection)
        traces = self.taking(topics, tap.traces if tap is not None else ())
        if not traces:
            return
        details: dict[str, Any] = {"reason_code": code}
        if connection.permissions is not None and code in (0, 1, 2, 0x87):
            text, details = self._why(connection, SUBSCRIBE, plain, code & 3, False, code < 0x80)
        else:
            text = "granted" if code < 0x80 else f"refused, {reason_text(code)}"
        details = {"topic_filter": topic_filter[:256], **details}
        self._line(traces, connection, "acl", f"subscribe to {quoted(topic_filter)}: {text}", details)

    def _taking(self, connection: Connection, topic: bytes) -> list[Trace]:
        tap = self.taps.get(connection)
        return self.taking(self.by_topic(topic), tap.traces if tap is not None else ())

    def _line(
        self, traces: Sequence[Trace], connection: Connection, kind: str, text: str, details: dict[str, Any]
    ) -> None:
        self.add(traces, connection.client_id, str(connection.stream.peer), kind, text, details)

    def why(self, connection: Connection, action: int, topic: str, allowed: bool) -> str:
        """What the rules say, and which of them."""
        return self._why(connection, action, topic, 0, False, allowed)[0]

    def _why(
        self, connection: Connection, action: int, topic: str, qos: int, retain: bool, allowed: bool
    ) -> tuple[str, dict[str, Any]]:
        permissions = connection.permissions
        word = "allow" if allowed else "deny"
        if not isinstance(permissions, Permissions):
            return word, {"decision": word}
        reason = explain_now(self._server.access.authorization, permissions, action, topic, qos, retain)
        return f"{word}, {reason}", {"decision": word, "rule": reason}


def _nobody(trace_id: str, lines: Sequence[bytes], more: bool) -> None:
    """Nobody follows."""


def _about(spec: Spec) -> dict[str, str]:
    return {name: value for name in ("client_id", "topic_filter", "ip") if (value := getattr(spec, name))}
