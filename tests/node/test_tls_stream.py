"""Streams with TLS over real socket pairs: what `TcpStream` promises, with records in between."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

import broker.transport.tls as tls_module
from broker.metrics import Metrics
from broker.options import read_options
from broker.options.listener import Listener, ListenerOptions
from broker.peer import Certificate, Peer
from broker.transport.certificates import Certificates
from broker.transport.reactor import Reactor
from broker.transport.tls import Handshakes, TlsStream
from tests.kit.certificates import Chain
from tests.node.test_reactor import BOUND, Recorder

TIMEOUT_S = 5.0


class Client:
    """The other end: a blocking-free TLS client, or a plain socket."""

    def __init__(self, end: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self.end = end
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        self.ended = False
        self.closed = False

    def push(self) -> bytes:
        """Make what is to be sent next, and take it."""
        return self.outgoing.read()

    def pull(self) -> None:
        """Take what the server sent."""
        try:
            while data := self.end.recv(1 << 20):
                self.incoming.write(data)
            self.closed = True
        except BlockingIOError:
            return

    def shake(self) -> bool:
        self.pull()
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read(self) -> bytes:
        """All that is there."""
        self.pull()
        found = bytearray()
        try:
            while data := self.tls.read(1 << 20):
                found += data
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return bytes(found)


class World:
    def __init__(self, reactor: Reactor, chain: Chain, folder: Path) -> None:
        self.reactor = reactor
        self.chain = chain
        self.metrics = Metrics()
        self.handshakes = Handshakes(reactor, self._refused)
        self.server = chain.server()
        self.streams: list[TlsStream] = []
        self.established: list[TlsStream] = []
        self.ends: list[socket.socket] = []
        self.gone = 0
        self.context = ssl.create_default_context(cafile=str(chain.ca))
        self.certificates = self.showing()

    def showing(self, **options: object) -> Certificates:
        files = {"certfile": str(self.server.certfile), "keyfile": str(self.server.keyfile)}
        return Certificates(Listener("tls", "127.0.0.1", 0, "", read_options(ListenerOptions, {**files, **options})))

    def accept(self) -> socket.socket:
        """A connection; the client's end."""
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        for end in (ours, theirs):
            end.setblocking(False)
        stream = TlsStream(
            ours, self.reactor, BOUND, Peer("pair"), self._left, self.certificates, self.handshakes, TIMEOUT_S,
            self._established,
        )  # fmt: skip
        self.streams.append(stream)
        self.ends.append(theirs)
        return theirs

    def _refused(self, peer: Peer, why: str, detail: str) -> None:
        assert detail
        self.metrics.rejected[why] += 1

    def _left(self) -> None:
        self.gone += 1

    def _established(self, stream: TlsStream) -> None:
        self.established.append(stream)
        stream.start(Recorder())

    def client(self, name: str = "localhost", context: ssl.SSLContext | None = None) -> Client:
        return Client(self.accept(), context or self.context, name)

    async def connected(self, context: ssl.SSLContext | None = None) -> tuple[Client, TlsStream, Recorder]:
        client = self.client(context=context)
        for _ in range(5):
            done = client.shake()
            if data := client.push():
                client.end.send(data)
            await self.turn()
            if done:
                break
        stream = self.established[-1]
        assert isinstance(stream.protocol, Recorder)
        return client, stream, stream.protocol

    async def turn(self) -> None:
        self.reactor.wake()
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture
async def world(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr("broker.transport.reactor.time.monotonic", trio.current_time)
    reactor = Reactor()
    made = World(reactor, chain, tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.run)
        yield made
        nursery.cancel_scope.cancel()
    reactor.close()
    for end in made.ends:
        end.close()
    assert made.gone == len(made.streams)
    assert made.handshakes.open == 0


@pytest.fixture(params=["1.2", "1.3"])
def only(world: World, request: pytest.FixtureRequest) -> ssl.SSLContext:
    """A client that speaks one version."""
    world.context.maximum_version = world.context.minimum_version = {
        "1.2": ssl.TLSVersion.TLSv1_2,
        "1.3": ssl.TLSVersion.TLSv1_3,
    }[str(request.param)]
    return world.context


async def test_bytes_go_both_ways(world: World, only: ssl.SSLContext) -> None:
    client, stream, protocol = await world.connected()
    assert stream.peer.secure and stream.peer.server_name == "localhost" and stream.peer.certificate is None
    client.tls.write(b"hello")
    client.end.send(client.push())
    await world.turn()
    assert protocol.data == b"hello"
    stream.write(b"one ")
    stream.write_parts(b"two", b" ", b"three")
    await world.turn()
    assert client.read() == b"one two three"
    assert stream.pending_bytes() == 0


async def test_bytes_one_by_one(world: World, only: ssl.SSLContext) -> None:
    client = world.client()
    while not client.shake() or client.outgoing.pending:
        for byte in client.push():
            client.end.send(bytes([byte]))
            await world.turn()
    client.tls.write(b"abc")
    for byte in client.push():
        client.end.send(bytes([byte]))
        await world.turn()
    protocol = world.established[0].protocol
    assert isinstance(protocol, Recorder) and protocol.data == b"abc"


async def test_what_comes_with_the_end_of_the_handshake_is_delivered(world: World, only: ssl.SSLContext) -> None:
    client = world.client()
    while not client.shake():
        client.end.send(client.push())
        await world.turn()
    client.tls.write(b"CONNECT")
    client.end.send(client.push())
    await world.turn()
    protocol = world.established[0].protocol
    assert isinstance(protocol, Recorder) and protocol.data == b"CONNECT"


async def test_no_session_is_resumed(world: World, only: ssl.SSLContext) -> None:
    client, _, _ = await world.connected()
    client.read()
    session = client.tls.session
    assert session is None or not session.has_ticket


async def test_large_output_waits_and_is_judged(world: World) -> None:
    client, stream, protocol = await world.connected()
    data = bytes(range(256)) * 4000
    stream.write(data)
    await world.turn()
    assert (stream.congested, stream.overrun, protocol.congestion) == (True, True, [True])
    assert (stream.stalled_since > 0, stream.pending_bytes() > BOUND) == (True, True)
    stream.write(b"end")
    found = b""
    while len(found) < len(data) + 3:
        found += client.read()
        await world.turn()
    assert found == data + b"end"
    assert (stream.congested, stream.overrun, stream.stalled_since) == (False, False, 0.0)
    assert protocol.congestion == [True, False]


async def test_large_input_arrives(world: World) -> None:
    client, _, protocol = await world.connected()
    data = bytes(range(256)) * 1000
    view = memoryview(data)
    while view:
        view = view[client.tls.write(view) :]
    records = client.push()
    while records:
        with contextlib.suppress(BlockingIOError):
            records = records[client.end.send(records) :]
        await world.turn()
    assert protocol.data == data


async def test_close_says_goodbye(world: World, only: ssl.SSLContext) -> None:
    client, stream, protocol = await world.connected()
    stream.write(b"last words")
    stream.close()
    await world.turn()
    assert client.read() == b"last words"
    assert client.ended and client.closed  # close_notify, then the end of the stream
    client.end.send(b"thrown away")
    await world.turn()
    closed = [stream.closed]
    client.end.close()
    await world.turn()
    assert [*closed, stream.closed] == [False, True]
    assert protocol.lost == [] and protocol.data == b""


async def test_the_peer_says_goodbye(world: World, only: ssl.SSLContext) -> None:
    client, stream, protocol = await world.connected()
    client.tls.write(b"last words")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    client.end.send(client.push())
    await world.turn()
    assert protocol.data == b"last words" and protocol.lost == ["closed by peer"] and stream.closed


async def test_the_peer_just_goes(world: World) -> None:
    client, stream, protocol = await world.connected()
    client.end.close()
    await world.turn()
    assert protocol.lost == ["closed by peer"] and stream.closed


async def test_answer_to_a_goodbye_leaves(world: World) -> None:
    """The client's last packet and its close_notify in one piece, and the server closes on that packet."""
    client, stream, protocol = await world.connected()
    stream.write(b"goodbye")
    closing = stream.close
    protocol.data_received = lambda data: closing()  # type: ignore[method-assign]
    client.tls.write(b"DISCONNECT")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    client.end.send(client.push())
    await world.turn()
    assert client.read() == b"goodbye" and protocol.lost == []


async def test_garbage_among_records(world: World, only: ssl.SSLContext) -> None:
    client, stream, protocol = await world.connected()
    client.tls.write(b"good")
    client.end.send(client.push() + b"\x17\x03\x03\x00\x20" + bytes(32))
    await world.turn()
    await world.turn()
    assert protocol.data == b"good" and stream.closed
    assert protocol.lost == ["DECRYPTION_FAILED_OR_BAD_RECORD_MAC"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x10\x0c\x00\x04MQTT\x05\x02\x00<\x00\x00",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(100),
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x15\x03\x03\x00\x02\x02\x28",
    ],
)
async def test_what_is_no_tls_is_refused(world: World, data: bytes) -> None:
    end = world.accept()
    end.send(data)
    await world.turn()
    assert world.metrics.rejected["tls_handshake"] == 1
    end.close()
    await world.turn()
    assert world.streams[0].closed and not world.established


async def test_a_server_name_that_is_no_text_is_refused_quietly(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    client = world.client("xxxx.example")
    client.shake()
    client.end.send(client.push().replace(b"xxxx", b"\xff\xfe\n\x01"))
    await world.turn()
    assert world.metrics.rejected["tls_handshake"] == 1
    assert "Traceback" not in capfd.readouterr().err


async def test_old_versions_are_refused(world: World) -> None:
    context = ssl.create_default_context(cafile=str(world.chain.ca))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    client = world.client(context=context)
    client.shake()
    client.end.send(client.push())
    await world.turn()
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        client.shake()
    assert world.metrics.rejected["tls_handshake"] == 1


async def test_whoever_goes_during_the_handshake_is_forgotten(world: World) -> None:
    client = world.client()
    client.shake()
    client.end.send(client.push()[:50])
    await world.turn()
    client.end.close()
    await world.turn()
    assert world.streams[0].closed and not world.metrics.rejected


async def test_a_handshake_has_its_time(autojump_clock: trio.testing.MockClock, world: World) -> None:
    world.accept()
    closed = []
    for wait_s in (TIMEOUT_S - 1, 2):
        await trio.sleep(wait_s)
        closed.append(world.streams[0].closed)
    assert closed == [False, True] and world.metrics.rejected["tls_timeout"] == 1


async def test_a_connection_outlives_the_time_of_its_handshake(
    autojump_clock: trio.testing.MockClock, world: World
) -> None:
    _, stream, _ = await world.connected()
    await trio.sleep(2 * TIMEOUT_S)
    closed = [stream.closed]
    stream.close()  # the client does not
    await trio.sleep(TIMEOUT_S)
    assert [*closed, stream.closed] == [False, True]


async def test_handshakes_leave_room_for_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time at all, a turn does one step; who is connected is served in between."""
    client, _, protocol = await world.connected()
    monkeypatch.setattr(tls_module, "HANDSHAKE_SLICE_S", 0.0)
    flood = [world.client() for _ in range(20)]
    seen: list[int] = []
    shake = TlsStream.shake

    def counted(self: TlsStream) -> None:
        shake(self)
        seen.append(world.reactor.turns)

    monkeypatch.setattr(TlsStream, "shake", counted)
    for each in flood:
        each.shake()
        each.end.send(each.push())
    client.tls.write(b"ping")
    client.end.send(client.push())
    waited: list[int] = []
    protocol.data_received = lambda data: waited.append(len(seen))  # type: ignore[method-assign]
    await world.turn()
    assert len(seen) == len(flood) and len(set(seen)) == len(flood)
    assert waited[0] <= 1
    for each in flood:
        assert each.shake()


async def test_client_certificates(world: World) -> None:
    chain = world.chain
    issued = chain.client(
        "d1", "/C=DE/O=Ex, Inc./OU=a+OU=b/CN=d 1", "DNS:d1.example,email:d1@example.org,URI:urn:d1,IP:192.0.2.1"
    )
    world.certificates = world.showing(ca_certs=str(chain.ca), client_certificates="optional", crl_file=str(chain.crl))
    world.context.load_cert_chain(issued.certfile, issued.keyfile)
    _, stream, _ = await world.connected()
    certificate = stream.peer.certificate
    assert certificate is not None
    assert certificate.common_name == "d 1"
    assert certificate.subject == "CN=d 1,OU=a+OU=b,O=Ex\\, Inc.,C=DE"
    assert certificate.alternative_names == (
        ("DNS", "d1.example"),
        ("email", "d1@example.org"),
        ("URI", "urn:d1"),
        ("IP", "192.0.2.1"),
    )
    der = ssl.PEM_cert_to_DER_cert(issued.certfile.read_text().partition("-----END CERTIFICATE-----")[0]
                                   + "-----END CERTIFICATE-----\n")  # fmt: skip
    assert certificate.fingerprint == hashlib.sha256(der).hexdigest()
    assert certificate.serial and certificate.expires_at_s == 2524607999.0


async def test_what_a_proxy_said_of_the_client_counts(world: World) -> None:
    chain = world.chain
    issued = chain.client("proxy")
    world.certificates = world.showing(ca_certs=str(chain.ca), client_certificates="required")
    world.context.load_cert_chain(issued.certfile, issued.keyfile)
    client = world.client()
    world.streams[-1].peer.certificate = Certificate("behind")
    while not client.shake():
        client.end.send(client.push())
        await world.turn()
    client.end.send(client.push())
    await world.turn()
    certificate = world.established[-1].peer.certificate
    assert certificate is not None and certificate.common_name == "behind"


async def test_changed_handshakes_do_no_harm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a stranger changes in his part: he is refused or waited for, and nothing is a defect."""
    defects: list[str] = []
    monkeypatch.setattr(world.reactor._log, "exception", lambda event, **_: defects.append(event))
    issued = world.chain.client("d1", "/O=Ex/CN=d1", "DNS:d1.example")
    world.certificates = world.showing(ca_certs=str(world.chain.ca), client_certificates="optional")
    world.context.load_cert_chain(issued.certfile, issued.keyfile)
    world.context.maximum_version = ssl.TLSVersion.TLSv1_2  # its certificate is not encrypted
    dice = random.Random(7)
    for number in range(400):
        client = world.client()
        changed_flight = number % 2
        with contextlib.suppress(ssl.SSLError):
            for flight in range(4):
                with contextlib.suppress(ssl.SSLWantReadError):
                    client.tls.do_handshake()
                data = bytearray(client.push())
                if flight == changed_flight and data:
                    for _ in range(dice.randint(1, 4)):
                        data[dice.randrange(len(data))] = dice.randrange(256)
                client.end.send(data)
                await world.turn()
                client.pull()
        client.end.close()
        await world.turn()
    assert defects == []
    assert world.handshakes.open == 0
    assert world.metrics.rejected["tls_handshake"] > 100
