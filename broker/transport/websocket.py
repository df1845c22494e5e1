"""MQTT over WebSocket: trio-websocket between a stream of this node and its owner.

The bytes come from and go to a stream like any other (TCP or TLS), which the reactor serves; so what holds for that
(holding, congestion, lingering, certificates, PROXY headers) holds here. A task per connection runs trio-websocket's
reader: it is woken once per chunk that the reactor read, takes the frames apart, and what was in them is handed to the
owner in a turn of the reactor, in pieces as they came. Nothing waits for the end of a frame or a message, so their size
needs no bound: MQTT's own on packets is what counts. Output needs no task: what a turn wrote is one binary message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from trio_websocket import WebSocketConnection
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.events import Request as UpgradeRequest

from broker.log import get_logger
from broker.options.listener import Listener
from broker.peer import Peer
from broker.transport.api import Nobody, Stream, StreamProtocol
from broker.transport.entrance import Entrance
from broker.transport.reactor import Reactor
from broker.transport.upgrade import Door, Refusal, Request

#: How long a peer may take to answer the closing handshake.
LINGER_S = 2.0

#: Bytes that are taken apart before other tasks get their chance: frames may be as small as six bytes.
SLICE_BYTES = 8192

#: Received and not handed to the owner yet: then the socket is left alone.
BACKLOG_BYTES = 65536

#: Connections that have not got through the handshake yet; more are closed at once.
MAX_HANDSHAKES = 10_000

_NORMAL, _GOING_AWAY, _PROTOCOL_ERROR, _UNSUPPORTED, _POLICY, _TOO_BIG = 1000, 1001, 1002, 1003, 1008, 1009
_INTERNAL_ERROR = 1011

#: WebSocket close codes by the reason for which MQTT closed; any other that is no success is a matter of policy.
_CLOSE_CODES = {
    "": _NORMAL,
    "normal": _NORMAL,
    "server_shutting_down": _GOING_AWAY,
    "server_busy": _GOING_AWAY,
    "use_another_server": _GOING_AWAY,
    "server_moved": _GOING_AWAY,
    "malformed_packet": _PROTOCOL_ERROR,
    "protocol_error": _PROTOCOL_ERROR,
    "packet_too_large": _TOO_BIG,
}

_STATUS = {431: "Request Header Fields Too Large", 503: "Service Unavailable"}

_NOBODY = Nobody()
_log = get_logger("listener")

Spawn = Callable[[Callable[[], Awaitable[None]]], None]
Accept = Callable[[Stream, Listener], None]


class WebSockets:
    """Makes WebSocket connections of the accepted connections of ws and wss listeners, and passes them on to `accept`
    once their handshake is done. `spawn` runs a task and keeps its errors to itself."""

    def __init__(self, entrance: Entrance, spawn: Spawn, accept: Accept) -> None:
        self.reactor = entrance.reactor
        self.spawn = spawn
        self.pass_on = accept
        self._entrance = entrance
        self._doors: dict[int, Door] = {}
        #: Of all listeners.
        self.handshakes = 0

    def accept(self, stream: Stream, listener: Listener) -> None:
        """A client connected; it has handshake_timeout_s from now on."""
        door = self._doors.get(id(listener))
        if door is None:
            door = self._doors[id(listener)] = Door(listener)  # it holds the listener: the id stays its own
        full = self._entrance.full()
        if full or self.handshakes >= MAX_HANDSHAKES:
            self._entrance.refused(stream.peer, "max_connections" if full else "websocket_handshakes")
            stream.start(Nobody())
            stream.abort()
            return
        self.handshakes += 1
        self._entrance.headers += 1
        stream.start(_Wire(self, stream, door))

    def settled(self) -> None:
        """A handshake came to its end, good or bad."""
        self.handshakes -= 1
        self._entrance.headers -= 1

    def refused(self, peer: Peer, reason: str, detail: str) -> None:
        """Count a connection that did not get through the handshake."""
        self._entrance.refused(peer, f"websocket_{reason}", detail)


class _Wire(trio.abc.Stream):
    """What trio-websocket takes for its socket: the protocol of the stream below."""

    __slots__ = (
        "_backlog",
        "_chunks",
        "_door",
        "_engine",
        "_head",
        "_paused",
        "_pending",
        "_task",
        "_web",
        "below",
        "ended",
        "stream",
    )

    def __init__(self, web: WebSockets, below: Stream, door: Door) -> None:
        self._web = web
        self.below = below
        self._door = door
        self._head = b""
        self._engine: _Engine | None = None
        #: Once the handshake is done.
        self.stream: WebSocketStream | None = None
        #: Not taken apart yet: the bytes of a slice and more, and how many they are.
        self._chunks: list[bytes] = []
        self._backlog = 0
        self._pending = True
        self._paused = False
        #: trio-websocket's task while it waits for bytes.
        self._task: trio.lowlevel.Task | None = None
        #: Why no more bytes will come.
        self.ended = ""
        web.reactor.watch_deadline(self, web.reactor.now + door.listener.options.handshake_timeout_s)

    # -- StreamProtocol: from below, in a turn

    def data_received(self, data: bytes) -> None:
        if self._engine is None:
            self._request(data)
            return
        self._chunks.append(data)
        self._backlog += len(data)
        self.watch_reading()
        self._wake()

    def resume(self) -> None: ...

    def connection_lost(self, reason: str) -> None:
        self._settled()
        self.end(reason)

    def output_congested(self) -> None:
        if self.stream is not None:
            self.stream.protocol.output_congested()

    def output_drained(self) -> None:
        if self.stream is not None:
            self.stream.protocol.output_drained()

    def check_deadline(self, now: float) -> float:
        """The time for the handshake is over."""
        if self._pending:
            self._give_up("timeout", "no complete handshake in time")
        return 0.0

    # -- the handshake

    def _request(self, data: bytes) -> None:
        """Collect the request; the task begins with all of it."""
        self._head += data
        try:
            end = self._door.head(self._head)
        except Refusal as refusal:
            if refusal.status:
                status = f"{refusal.status} {_STATUS[refusal.status]}"
                self.below.write(f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
                self._settled()
                self._web.refused(self.below.peer, str(refusal.status), refusal.text)
                self.below.close()
            else:
                self._give_up("garbage", refusal.text)
            return
        if not end:
            return
        # What follows the request waits until it is answered: the HTTP parser would swallow it.
        self._chunks = [self._head[:end], self._head[end:]] if end < len(self._head) else [self._head]
        self._backlog = len(self._head)
        self._head = b""
        self._engine = _Engine(self)
        self._web.spawn(self._engine.run)

    def upgraded(self, peer: Peer) -> None:
        """The client was let in."""
        self._settled()
        self.stream = WebSocketStream(self._web.reactor, self, peer)
        self._web.pass_on(self.stream, self._door.listener)

    def admit(self, request: Request) -> tuple[Peer, str | None]:
        """See `Door.admit`."""
        return self._door.admit(request, self.below.peer)

    def refuse(self, reason: str, detail: str) -> None:
        """The request was answered with an error."""
        self._settled()
        self._web.refused(self.below.peer, reason, detail)

    def _give_up(self, reason: str, detail: str) -> None:
        self.refuse(reason, detail)
        self.below.abort()
        self.end(reason)

    def _settled(self) -> None:
        if self._pending:
            self._pending = False
            self._web.settled()

    # -- trio.abc.Stream: to trio-websocket, in its task

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """At most `max_bytes`, and nothing while the owner has enough; b"" at the end."""
        stream = self.stream
        if stream is not None:
            stream.deliver()
        if self._backlog:
            await trio.lowlevel.checkpoint()
        while not (self._chunks and (self.stream is None or self.stream.hungry)):
            if self.ended:
                return b""
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._not_any_more)
        data = self._chunks[0]
        if max_bytes is not None and len(data) > max_bytes:
            data, self._chunks[0] = data[:max_bytes], data[max_bytes:]
        else:
            del self._chunks[0]
        self._backlog -= len(data)
        if self._paused:
            self.watch_reading()
        return data

    def _not_any_more(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        task = self._task
        if task is not None:
            self._task = None
            trio.lowlevel.reschedule(task)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Leaves with the output of the next turn."""
        if self.below.closed:
            raise trio.ClosedResourceError
        self.below.write(bytes(data))
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """It never blocks: who takes no answers is not read from."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """trio-websocket is done with it."""
        self.end("closed by peer")
        self.below.close()
        await trio.lowlevel.checkpoint()

    # -- for the stream

    def watch_reading(self) -> None:
        """Leave the socket alone while the owner wants that, or enough waits here."""
        stream = self.stream
        paused = self._backlog > BACKLOG_BYTES or (stream is not None and stream.paused)
        if paused != self._paused:
            self._paused = paused
            self.below.pause_reading(paused)

    def wake(self) -> None:
        """The owner took what there was."""
        if self._chunks:
            self._wake()

    def farewell(self, code: int) -> bool:
        """Send a close frame; False if the peer closed already."""
        engine = self._engine
        data = engine.farewell(code) if engine is not None else b""
        if data:
            self.below.write(data)
        return bool(data)

    def end(self, reason: str) -> None:
        """No more bytes: trio-websocket's task ends. Idempotent."""
        if not self.ended:
            self.ended = reason
            self._wake()

    def over(self) -> None:
        """The task has ended."""
        if self._pending:
            self.refuse("400", "no WebSocket handshake")
        self._engine = None
        self._chunks.clear()
        self._backlog = 0
        stream, self.stream = self.stream, None
        if stream is None:
            self.below.close()
        else:
            stream.lost(self.ended or "internal error")


class _Engine(WebSocketConnection):
    """trio-websocket's connection with the events that matter here handled without a channel or another task."""

    def __init__(self, wire: _Wire) -> None:
        super().__init__(wire, WSConnection(ConnectionType.SERVER), receive_buffer_size=SLICE_BYTES)
        self._wire = wire

    async def run(self) -> None:
        """Reads until the end of the connection. Nothing that a client sends makes it raise."""
        wire = self._wire
        try:
            await self._reader_task()
        except Exception as error:
            # What the libraries did not expect of a client, such as a Host that is no name.
            if wire.stream is None:
                wire.refuse("malformed", repr(error)[:200])
            else:
                _log.info("websocket.failed", peer=str(wire.stream.peer), detail=repr(error)[:200])
            wire.below.abort()
        finally:
            if not wire.ended:
                wire.end("closed")
            wire.over()

    async def _handle_request_event(self, event: UpgradeRequest) -> None:
        wire = self._wire
        request = Request(event.target, event.host, event.subprotocols, event.extra_headers)
        try:
            peer, subprotocol = wire.admit(request)
        except Refusal as refusal:
            wire.refuse(str(refusal.status), refusal.text)
            await self._reject(refusal.status, [(b"Connection", b"close")], refusal.text.encode() + b"\n")
            await self._close_stream()
            return
        await self._accept(event, subprotocol, [])
        connection = self._wsproto.connection
        assert connection is not None
        self._wsproto = connection  # type: ignore[assignment] # it serves as well, and without the HTTP parser
        wire.upgraded(peer)

    async def _handle_message_event(self, event: BytesMessage | TextMessage) -> None:
        stream = self._wire.stream
        if stream is None:
            return
        if isinstance(event, TextMessage):  # [MQTT-6.0.0-1]
            stream.fail(_UNSUPPORTED)
        else:
            stream.feed(bytes(event.data))

    async def _handle_ping_event(self, event: Ping) -> None:
        if self._wsproto.state is ConnectionState.OPEN:
            self._wire.below.write(bytes(self._wsproto.send(event.response())))

    async def _handle_close_connection_event(self, event: CloseConnection) -> None:
        if self._wsproto.state is ConnectionState.OPEN:  # no frame of the peer: what it sent was none
            self._wire.below.write(self.farewell(event.code))
        await super()._handle_close_connection_event(event)

    def farewell(self, code: int) -> bytes:
        """A close frame, b"" if the peer sent one."""
        if self._wsproto.state is not ConnectionState.OPEN:
            return b""
        return bytes(self._wsproto.send(CloseConnection(code)))


class WebSocketStream:
    """An MQTT stream in the binary messages of a WebSocket connection."""

    __slots__ = (
        "_again",
        "_below",
        "_closing",
        "_code",
        "_dirty",
        "_inbox",
        "_inbox_bytes",
        "_lost",
        "_pieces",
        "_queued",
        "_reactor",
        "_said_goodbye",
        "_wire",
        "paused",
        "peer",
        "protocol",
    )

    def __init__(self, reactor: Reactor, wire: _Wire, peer: Peer) -> None:
        self._reactor = reactor
        self._wire = wire
        self._below = wire.below
        self.peer = peer
        self.protocol: StreamProtocol = _NOBODY
        self._pieces: list[bytes] = []
        self._dirty = False
        self._inbox: list[bytes] = []
        self._inbox_bytes = 0
        #: `resume` will be called; and the owner asked for it.
        self._queued = self._again = False
        self.paused = False
        self._closing = self._said_goodbye = False
        self._code = 0
        self._lost = ""

    def start(self, protocol: StreamProtocol) -> None:
        """Begin to read; `protocol` gets what comes."""
        self.protocol = protocol

    @property
    def congested(self) -> bool:
        return self._below.congested

    @property
    def overrun(self) -> bool:
        return self._below.overrun

    @property
    def stalled_since(self) -> float:
        return self._below.stalled_since

    @property
    def closed(self) -> bool:
        """True once `close` took effect or the connection was lost."""
        return self._below.closed

    def pending_bytes(self) -> int:
        """Bytes that the peer has not taken yet."""
        return self._below.pending_bytes() + sum(map(len, self._pieces))

    # -- in

    @property
    def hungry(self) -> bool:
        """The owner may get more."""
        return self._inbox_bytes < SLICE_BYTES or self._closing

    def feed(self, data: bytes) -> None:
        """A piece of a message came. In trio-websocket's task: the owner gets it in a turn."""
        if data and not self._closing:
            self._inbox.append(data)
            self._inbox_bytes += len(data)

    def deliver(self) -> None:
        """That was all for now."""
        if self._inbox and not self.paused:
            self._queue()

    def lost(self, reason: str) -> None:
        """The connection is over; the owner is told after it got what came before."""
        self._lost = reason
        if self._closing:
            self._over()
        else:
            self._queue()

    def fail(self, code: int) -> None:
        """The peer broke the rules: close, as if it had gone."""
        if not self._closing:
            self._code = code
            self._lost = "text message" if code == _UNSUPPORTED else "protocol error"
            self._queue()

    def _queue(self) -> None:
        if not self._queued:
            self._queued = True
            self._reactor.call_again(self)

    def call_again(self) -> None:
        """`protocol.resume` is called in the next turn."""
        self._again = True
        self._queue()

    def resume(self) -> None:
        """From the reactor, in a turn."""
        self._queued = False
        try:
            if self._again:
                self._again = False
                if not self._closing:
                    self.protocol.resume()
            if self._inbox and not self._closing and (not self.paused or self._lost):
                data = b"".join(self._inbox) if len(self._inbox) > 1 else self._inbox[0]
                self._inbox.clear()
                self._inbox_bytes = 0
                self.protocol.data_received(data)
                self._wire.wake()
        except Exception:
            self._lost = "internal error"  # where the next packet begins is not known any more
            self._code = _INTERNAL_ERROR
            raise
        finally:
            if self._lost:
                self._tell_lost()

    def _tell_lost(self) -> None:
        protocol = self.protocol
        if not self._closing:
            self.close()
            protocol.connection_lost(self._lost)
        self._over()

    def pause_reading(self, paused: bool) -> None:
        """Leave what the peer sends in the kernel."""
        self.paused = paused and not self._closing
        self._wire.watch_reading()
        if not paused and self._inbox:
            self._queue()

    # -- out

    def write(self, data: bytes) -> None:
        """Append to the output of this turn."""
        self._pieces.append(data)
        if not self._dirty:
            self._dirty = True
            self._reactor.mark_dirty(self)

    def write_parts(self, head: bytes, middle: bytes, tail: bytes) -> None:
        """Append three pieces that follow each other."""
        self._pieces += (head, middle, tail)
        if not self._dirty:
            self._dirty = True
            self._reactor.mark_dirty(self)

    def flush(self) -> None:
        """Pass on what was written, as one message. The stream below sends it in the same turn."""
        self._dirty = False
        pieces = self._pieces
        if pieces:
            if not self._said_goodbye and not self._wire.ended:
                self._pieces = []
                payload = b"".join(pieces) if len(pieces) > 1 else pieces[0]
                self._below.write_parts(_frame_header(len(payload)), payload, b"")
            else:
                pieces.clear()
        if self._closing and not self._said_goodbye:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        self._said_goodbye = True
        if self._wire.farewell(self._code) and not self._wire.ended:
            self._reactor.watch_deadline(self, self._reactor.now + LINGER_S)
        else:
            self._below.close()
            self._wire.end("closed")

    def check_deadline(self, now: float) -> float:
        """The peer had its time to answer."""
        if self._below.closed or self._wire.ended:
            return 0.0
        if self._below.pending_bytes():
            return now + LINGER_S  # it did not get to the question yet; the owner looks whether it takes anything
        self._below.close()
        self._wire.end("closed")
        return 0.0

    # -- the end

    def close(self) -> None:
        """Close once the output written so far is gone, with a close frame; nothing more is read. Idempotent."""
        if self._closing:
            return
        self._closing = True
        # The owner's word for it; owners that have none (Nobody) are done in peace.
        self._code = self._code or _close_code(getattr(self.protocol, "close_reason", ""))
        self._inbox.clear()
        self.paused = False
        self._wire.watch_reading()
        self._wire.wake()
        if not self._dirty:
            self._dirty = True
            self._reactor.mark_dirty(self)

    def abort(self) -> None:
        """Close at once, whatever waits. Idempotent."""
        self._closing = self._said_goodbye = True
        self._below.abort()
        self._wire.end("aborted")
        self._over()

    def _over(self) -> None:
        """Nothing more will happen: no cycle for the garbage collector."""
        self._pieces.clear()
        self._inbox.clear()
        self.protocol = _NOBODY


def _close_code(reason: str) -> int:
    return _CLOSE_CODES.get(reason, _POLICY)


def _frame_header(size: int) -> bytes:
    """Of a final binary frame from a server: without a mask (RFC 6455, 5.2)."""
    if size < 126:
        return bytes((0x82, size))
    if size < 65536:
        return b"\x82\x7e" + size.to_bytes(2, "big")
    return b"\x82\x7f" + size.to_bytes(8, "big")
