"""A server without sockets: the real reactor and streams over sockets in memory, on the clock of the trio loop.

Nothing waits for real time: `World.settle` returns when nobody has anything left to do, and a test that has to let
time pass sleeps on the clock that jumps (pytest-trio's `autojump_clock`).
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
import trio.testing

import broker.transport.reactor as reactor_module
from broker.access import Access
from broker.codec.decode import decode
from broker.codec.encode import encode
from broker.codec.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from broker.codec.primitives import FrameBuffer
from broker.config import Settings
from broker.message import Message
from broker.metrics import Metrics
from broker.options.listener import Listener
from broker.peer import Peer as Address
from broker.server import Server
from broker.session.quotas import Quotas
from broker.transport.reactor import Reactor
from broker.transport.stream import TcpStream
from cluster.policy import ClusterLimits
from tests.kit.mqtt_client import describe
from tests.node.faulty_cluster import FaultyCluster

P = TypeVar("P")

LISTENER = Listener("tcp", "127.0.0.1", 1883)


class MemorySocket:
    """The server's end of a connection: what `TcpStream` asks of a socket.

    `room` is how many more bytes the peer takes (None: any number).
    """

    def __init__(self, net: MemoryEpoll, fd: int) -> None:
        self._net = net
        self._fd = fd
        self._inbox: deque[bytes] = deque()
        self._eof = False
        self._reset = False
        self.room: int | None = None
        self.sent = bytearray()
        self.sends = 0
        self.closed = False

    # -- what the server calls

    def fileno(self) -> int:
        return self._fd

    def recv(self, size: int) -> bytes:
        if self._reset:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        if not self._inbox:
            if self._eof:
                return b""
            raise BlockingIOError
        data = self._inbox.popleft()
        if len(data) > size:
            self._inbox.appendleft(data[size:])
            data = data[:size]
        return data

    def send(self, data: bytes) -> int:
        assert not self.closed
        if self._reset:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        if self.room is None:
            self.sent += data
            self.sends += 1
            return len(data)
        if self.room <= 0 and data:
            raise BlockingIOError
        taken = min(self.room, len(data))
        self.room -= taken
        self.sent += data[:taken]
        self.sends += 1
        return taken

    def shutdown(self, how: int) -> None:
        """The server has said its last word: the peer closes too."""
        assert how == socket.SHUT_WR
        self.closed = True
        self._inbox.clear()
        self.finish()

    def close(self) -> None:
        self.closed = True

    # -- what the test calls

    def feed(self, *chunks: bytes) -> None:
        """The peer sends; each chunk is what one `recv` returns (64 KiB at most)."""
        self._inbox += [chunk for chunk in chunks if chunk]
        self._net.ring()

    def set_room(self, room: int | None) -> None:
        """The peer takes so many bytes from now on."""
        self.room = room
        self._net.ring()

    def finish(self) -> None:
        """The peer closes."""
        self._eof = True
        self._net.ring()

    def reset(self) -> None:
        """The peer is gone at once."""
        self._reset = True
        self._inbox.clear()
        self._net.ring()

    def unread(self) -> int:
        """Bytes that the server left in the kernel."""
        return sum(map(len, self._inbox))

    def events(self, mask: int) -> int:
        """What epoll would report."""
        ready = 0
        if mask & select.EPOLLIN and (self._inbox or self._eof or self._reset):
            ready |= select.EPOLLIN
        if mask & select.EPOLLRDHUP and (self._eof or self._reset):
            ready |= select.EPOLLRDHUP
        if self._reset:
            ready |= select.EPOLLHUP | select.EPOLLERR
        if mask & select.EPOLLOUT and (self.room is None or self.room > 0):
            ready |= select.EPOLLOUT
        return ready


class MemoryEpoll:
    """Memory sockets beside those of a real epoll, whose descriptor is readable while any of them is ready."""

    def __init__(self, real: select.epoll) -> None:
        self._real = real
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._masks: dict[int, int] = {}
        self.sockets: dict[int, MemorySocket] = {}
        real.register(self._bell, select.EPOLLIN)

    def ring(self) -> None:
        """Something may be ready."""
        os.eventfd_write(self._bell, 1)

    def fileno(self) -> int:
        return self._real.fileno()

    def register(self, fd: int, mask: int) -> None:
        assert fd not in self._masks
        self._masks[fd] = mask
        self.ring()

    def modify(self, fd: int, mask: int) -> None:
        assert fd in self._masks
        self._masks[fd] = mask
        self.ring()

    def unregister(self, fd: int) -> None:
        del self._masks[fd]

    def poll(self, timeout: float, limit: int) -> list[tuple[int, int]]:
        found = [(fd, self.sockets[fd].events(mask)) for fd, mask in self._masks.items()]
        ready = [item for item in found if item[1]][:limit]
        for fd, mask in self._real.poll(timeout, limit):
            if fd != self._bell:
                ready.append((fd, mask))
            elif not ready:  # level-triggered: the bell rings on while a socket is ready
                os.eventfd_read(fd)
        return ready

    def close(self) -> None:
        self._real.close()
        os.close(self._bell)


class _LoopTime:
    """Stands for the module `time` in the reactor."""

    @staticmethod
    def monotonic() -> float:
        return trio.current_time() + 1000.0


class Peer:
    """A client at the other end of a memory socket. It answers nothing by itself."""

    def __init__(self, world: World, socket: MemorySocket, stream: TcpStream, version: int) -> None:
        self.world = world
        self.socket = socket
        self.stream = stream
        self.version = version
        self._frames = FrameBuffer()
        self._taken = 0
        self._packet_id = 0
        self.inbox: deque[Packet] = deque()
        self.connack: Connack | None = None

    def closed(self) -> bool:
        """The server closed the network connection."""
        return self.socket.closed

    def congested(self) -> bool:
        """The output towards this client is over its bound."""
        return self.stream.congested

    def put(self, *packets: Packet) -> None:
        """Send in one chunk, without waiting."""
        self.socket.feed(b"".join(bytes(encode(packet, self.version)) for packet in packets))

    async def send(self, *packets: Packet) -> None:
        """Send in one chunk and wait until everybody is done."""
        self.put(*packets)
        await self.world.settle()

    def _collect(self) -> None:
        data = bytes(self.socket.sent[self._taken :])
        self._taken += len(data)
        self._frames.feed(data)
        while (frame := self._frames.next_frame()) is not None:
            first_byte, body = frame
            self.inbox.append(decode(first_byte, body, 0, len(body), self.version, False))

    async def received(self) -> list[Packet]:
        """Everything that came since the last look."""
        await self.world.settle()
        self._collect()
        packets = list(self.inbox)
        self.inbox.clear()
        return packets

    async def expect(self, kind: type[P]) -> P:
        """The next packet, which has to be of this class."""
        await self.world.settle()
        self._collect()
        assert self.inbox, f"expected {kind.__name__}, got nothing"
        packet = self.inbox.popleft()
        assert isinstance(packet, kind), f"expected {kind.__name__}, got {describe(packet)}"
        return packet

    async def nothing(self) -> None:
        """Nothing came."""
        packets = await self.received()
        assert not packets, f"expected nothing, got {[describe(packet) for packet in packets]}"

    async def publishes(self) -> list[Publish]:
        """Everything that came; all of it has to be PUBLISH."""
        packets = await self.received()
        others = [describe(packet) for packet in packets if not isinstance(packet, Publish)]
        assert not others, f"expected only PUBLISH, got {others}"
        return [packet for packet in packets if isinstance(packet, Publish)]

    async def payloads(self) -> list[bytes]:
        """The payloads of everything that came; all of it has to be PUBLISH."""
        return [packet.payload for packet in await self.publishes()]

    async def payloads_then_disconnect(self) -> tuple[list[bytes], int]:
        """Messages, then the reason code of the DISCONNECT that ends the connection."""
        *messages, last = await self.received()
        assert isinstance(last, Disconnect), f"expected DISCONNECT, got {describe(last)}"
        return [message.payload for message in messages if isinstance(message, Publish)], last.reason_code

    async def consume(self) -> list[Publish]:
        """Take messages and finish their exchanges until no more come."""
        messages: list[Publish] = []
        while packets := await self.received():
            for packet in packets:
                if isinstance(packet, Publish):
                    messages.append(packet)
                    if packet.qos == 1:
                        self.put(Puback(packet.packet_id))
                    elif packet.qos == 2:
                        self.put(Pubrec(packet.packet_id))
                elif isinstance(packet, Pubrel):
                    self.put(Pubcomp(packet.packet_id))
                else:
                    raise AssertionError(f"expected a message, got {describe(packet)}")
        return messages

    async def subscribe_with_identifier(self, topic_filter: str, identifier: int) -> None:
        """SUBSCRIBE with its SUBACK."""
        self._packet_id += 1
        properties = Properties()
        properties.subscription_identifiers = [identifier]
        await self.send(Subscribe(self._packet_id, [SubscriptionRequest(topic_filter, 2)], properties))
        await self.expect(Suback)

    async def subscribe(self, *filters: str | SubscriptionRequest, qos: int = 2) -> None:
        """SUBSCRIBE; the SUBACK is left to the caller."""
        self._packet_id += 1
        requests = [
            item if isinstance(item, SubscriptionRequest) else SubscriptionRequest(item, qos) for item in filters
        ]
        await self.send(Subscribe(self._packet_id, requests))


class World:
    """A server with everything around it."""

    def __init__(
        self, reactor: Reactor, epoll: MemoryEpoll, cluster: FaultyCluster, server: Server, bound: int
    ) -> None:
        self.reactor = reactor
        self.cluster = cluster
        self.server = server
        self.metrics = server.metrics
        self._epoll = epoll
        self._bound = bound
        self._next_fd = 1_000_000
        #: Where clients come in from now on.
        self.listener = LISTENER

    def tasks(self) -> int:
        """What connections and sessions have under way."""
        return len(self.server._nursery.child_tasks)

    async def settle(self) -> None:
        """Return when nobody has anything left to do at this time."""
        await trio.testing.wait_all_tasks_blocked()

    def plug(self, address: Address | None = None) -> tuple[MemorySocket, TcpStream]:
        """A network connection that nobody has accepted yet."""
        self._next_fd += 1
        socket = MemorySocket(self._epoll, self._next_fd)
        self._epoll.sockets[self._next_fd] = socket
        return socket, TcpStream(socket, self.reactor, self._bound, address or Address("memory"))  # type: ignore[arg-type]

    def accept(self, version: int = 5) -> Peer:
        """A network connection; nothing is sent yet."""
        socket, stream = self.plug()
        self.server.accept(stream, self.listener)
        return Peer(self, socket, stream, version)

    def connecting(
        self,
        client_id: str,
        version: int = 5,
        *,
        clean_start: bool = True,
        keep_alive_s: int = 0,
        expiry_s: int = 0,
        receive_maximum: int | None = None,
        maximum_packet_size: int | None = None,
        topic_alias_maximum: int | None = None,
        will: Will | None = None,
        username: str | None = None,
    ) -> Peer:
        """A network connection on which CONNECT was sent."""
        properties: Properties | None = None
        if version == 5:
            properties = Properties()
            properties.session_expiry_interval = expiry_s or None
            properties.receive_maximum = receive_maximum
            properties.maximum_packet_size = maximum_packet_size
            properties.topic_alias_maximum = topic_alias_maximum
        peer = self.accept(version)
        peer.put(Connect(version, client_id, clean_start, keep_alive_s, username, None, will, properties))
        return peer

    async def connect(self, client_id: str, version: int = 5, **options: object) -> Peer:
        """A connected client; its CONNACK has to be a success."""
        peer = self.connecting(client_id, version, **options)  # type: ignore[arg-type]
        peer.connack = await peer.expect(Connack)
        assert peer.connack.reason_code == 0
        return peer

    async def subscriber(
        self, client_id: str, *filters: str, qos: int = 2, version: int = 5, **options: object
    ) -> Peer:
        """A connected client with subscriptions."""
        peer = await self.connect(client_id, version, **options)
        await peer.subscribe(*filters, qos=qos)
        packets = await peer.received()
        [suback] = [packet for packet in packets if packet.kind == 9]  # messages may come before it [MQTT-3.8.4-1]
        peer.inbox.extend(packet for packet in packets if packet is not suback)
        return peer


def count_general(world: World) -> list[int]:
    """Counts the messages at QoS 1 and 2 that take the general way from now on, in the one element."""
    dispatch = world.server.dispatch
    publish = type(dispatch).publish
    count = [0]

    def counted(message: Message, *args: object, **options: object) -> bool:
        count[0] += message.qos > 0
        return publish(dispatch, message, *args, **options)  # type: ignore[arg-type]

    dispatch.publish = counted  # type: ignore[method-assign]
    return count


@asynccontextmanager
async def serving(
    quotas: Quotas | None = None,
    limits: ClusterLimits | None = None,
    access: Access | None = None,
    *,
    bound: int = 1024 * 1024,
    wrap: Callable[[FaultyCluster], None] | None = None,
    **options: object,
) -> AsyncIterator[World]:
    """A running server; `bound` is that of the output buffers, `options` are those of `Server`."""
    real_time = vars(reactor_module)["time"]
    vars(reactor_module)["time"] = _LoopTime
    reactor = Reactor()
    epoll = MemoryEpoll(reactor._epoll)
    try:
        reactor._epoll = epoll  # type: ignore[assignment]
        cluster = FaultyCluster(limits or ClusterLimits())
        if wrap is not None:
            wrap(cluster)
        server = Server(
            reactor,
            cluster,
            Metrics(),
            quotas or Quotas(),
            access or Access(Settings(), cluster.registry),
            **options,  # type: ignore[arg-type]
        )
        reactor.turn_hooks.append(cluster.flush)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            nursery.start_soon(reactor.run)

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                await cluster.serve(server, reactor, task_status=task_status)

            await nursery.start(serve)
            yield World(reactor, epoll, cluster, server, bound)
            nursery.cancel_scope.cancel()
    finally:
        vars(reactor_module)["time"] = real_time
        reactor.close()
