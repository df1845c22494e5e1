"""MQTT over WebSocket: trio-websocket between a stream of this node and its owner.

The bytes come from and go to a stream like any other (TCP or TLS), which the reactor serves; so what holds for that
(holding, congestion, lingering, certificates, PROXY headers) holds here. A task per connection runs trio-websocket's
reader: it is woken once per chunk that the reactor read, takes the frames apart, and what was in them is handed to the
owner in a turn of the reactor, in pieces as they came. Nothing waits for the end of a frame or a message, so their size
needs no bound: MQTT's own on packets is what counts. Output needs no task: what a turn wrote is one binary message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from trio_websocket import WebSocketConnection
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.events import Request as UpgradeRequest

from broker.log import get_logger
from broker.options.listener import Listener
from broker.peer import Peer
from broker.transport.api import Nobody, Stream
from broker.transport.entrance import Entrance
from broker.transport.upgrade import Door, Refusal, Request
from broker.transport.web_stream import UNSUPPORTED, WebSocketStream

#: Bytes that are taken apart before other tasks get their chance, at least and at most; the smaller the frames of a
#: client (of six bytes, if it wants), the fewer bytes, so that it gets about as much of the processor as anybody.
MIN_SLICE_BYTES = 512
SLICE_BYTES = 4096
FRAMES_PER_SLICE = 64

#: Received and not taken apart yet: then the socket is left alone.
BACKLOG_BYTES = 65536

#: Connections that have not got through the handshake yet; more are closed at once.
MAX_HANDSHAKES = 10_000

_STATUS = {431: "Request Header Fields Too Large", 505: "HTTP Version Not Supported"}

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
        why = ""
        if self._entrance.full():
            why = "max_connections"
        elif self.handshakes >= MAX_HANDSHAKES:
            why = "websocket_handshakes"
        elif stream.peer.host not in door.trusted and not self._entrance.origins.enter(stream, stream.peer.host):
            why = "max_connections_per_ip"
        if why:
            self._entrance.refused(stream.peer, why)
            stream.start(Nobody())
            stream.abort()
            return
        self.handshakes += 1
        self._entrance.headers += 1
        stream.start(_Wire(self, stream, door))

    def settled(self, stream: Stream) -> None:
        """A handshake came to its end, good or bad."""
        self._entrance.origins.leave(stream)
        self.handshakes -= 1
        self._entrance.headers -= 1

    def refused(self, peer: Peer, reason: str, detail: str) -> None:
        """Count a connection that did not get through the handshake."""
        self._entrance.refused(peer, f"websocket_{reason}", detail)


class _Wire(trio.abc.Stream):
    """What trio-websocket takes for its socket: the protocol of the stream below."""

    __slots__ = (
        "_at",
        "_backlog",
        "_chunks",
        "_door",
        "_engine",
        "_head",
        "_paused",
        "_pending",
        "_slice",
        "_task",
        "_web",
        "below",
        "ended",
        "frames",
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
        #: Where in the first chunk.
        self._at = 0
        self._pending = True
        self._paused = False
        #: Bytes handed out at a time, and the frames that were in the last of them.
        self._slice = 2 * MIN_SLICE_BYTES
        self.frames = 0
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

    def peer_gone(self) -> None:
        if self.stream is not None:
            self.stream.protocol.peer_gone()

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
            self._web.settled(self.below)

    # -- trio.abc.Stream: to trio-websocket, in its task

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, but none while the owner has enough; b"" at the end."""
        if self.frames > FRAMES_PER_SLICE:
            self._slice = max(MIN_SLICE_BYTES, self._slice * FRAMES_PER_SLICE // self.frames)
        elif self.frames < FRAMES_PER_SLICE // 4 and self._slice < SLICE_BYTES and self._backlog:
            self._slice *= 2
        self.frames = 0
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
        at = self._at
        if len(data) - at > self._slice and self.stream is not None:
            self._at = at + self._slice
            data = data[at : self._at]
        else:
            data = data[at:] if at else data
            self._at = 0
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


class _Idle:
    """A channel, a lock and an event that nobody waits for."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def aclose(self) -> None: ...

    def set(self) -> None: ...


_IDLE: Any = _Idle()


class _Engine(WebSocketConnection):
    """trio-websocket's connection with the events that matter here handled without a channel or another task."""

    def __init__(self, wire: _Wire) -> None:
        super().__init__(wire, WSConnection(ConnectionType.SERVER))
        self._wire = wire
        # These are for tasks that take messages or wait for handshakes, of which there are none, and for several that
        # send: here one does, and without waiting. Kept for each connection they would take 3 KiB.
        self._send_channel = self._recv_channel = self._stream_lock = _IDLE
        self._open_handshake = self._close_handshake = self._for_testing_peer_closed_connection = _IDLE
        self._connection_proposal = None

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
        self._wire.frames += 1
        stream = self._wire.stream
        if stream is None:
            return
        if isinstance(event, TextMessage):  # [MQTT-6.0.0-1]
            stream.fail(UNSUPPORTED)
        else:
            stream.feed(bytes(event.data))

    async def _handle_ping_event(self, event: Ping) -> None:
        self._wire.frames += 1
        if self._wsproto.state is ConnectionState.OPEN:
            self._wire.below.write(bytes(self._wsproto.send(event.response())))

    async def _handle_pong_event(self, event: Pong) -> None:
        self._wire.frames += 1  # nobody asked

    async def _handle_close_connection_event(self, event: CloseConnection) -> None:
        if self._wsproto.state is ConnectionState.OPEN:  # no frame of the peer: what it sent was none
            self._wire.below.write(self.farewell(event.code))
        await super()._handle_close_connection_event(event)

    def farewell(self, code: int) -> bytes:
        """A close frame, b"" if the peer sent one."""
        if self._wsproto.state is not ConnectionState.OPEN:
            return b""
        return bytes(self._wsproto.send(CloseConnection(code)))
