"""A broker that makes one mistake: the load tester tells which."""

from __future__ import annotations

import signal
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import trio

from broker.codec.decode import decode
from broker.codec.encode import encode
from broker.codec.packets import (
    PUBREC,
    PUBREL,
    Acknowledgement,
    Connack,
    Connect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
)
from broker.codec.primitives import FrameBuffer
from loadtest import cleaning, running
from loadtest.address import resolve
from loadtest.client import LoadError
from loadtest.result import Result
from loadtest.running import Run, Target, run_once
from loadtest.scenario import Scenario

AT = 12  # the message that it happens to
PAIR = Scenario(
    name="pair", publishers=1, subscribers=1, qos=1, cap=8, settle=0, warmup=0, seconds=0.4, drain=0.4, size=40
)


class FakeBroker(socketserver.ThreadingTCPServer):
    """Just enough MQTT for one publisher and one subscriber."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, fault: str) -> None:
        super().__init__(("127.0.0.1", 0), Service)
        self.fault = fault
        self.count = 0
        self.held: Publish | None = None
        self.subscriber: Service | None = None
        self.sessions: set[str] = set()
        self.connected: set[Service] = set()


class Service(socketserver.BaseRequestHandler):
    """Serves one client."""

    server: FakeBroker

    def setup(self) -> None:
        self.version = 5
        self.packet_id = 0
        self.lock = threading.Lock()

    def handle(self) -> None:
        frames = FrameBuffer()
        try:
            while received := self.request.recv(65_536):
                frames.feed(received)
                for first_byte, body in frames:
                    self.packet(decode(first_byte, body, 0, len(body), self.version, from_client=True))
        except OSError:
            pass
        self.server.connected.discard(self)

    def send(self, packet: Packet) -> None:
        with self.lock:
            self.request.sendall(encode(packet, self.version))

    def packet(self, packet: Packet) -> None:
        fault = self.server.fault
        if isinstance(packet, Connect):
            self.version = packet.protocol_version
            if fault == "is mute":
                return
            if (fault == "has one place" and self.server.connected) or (
                fault == "keeps sessions" and packet.clean_start
            ):
                self.request.shutdown(socket.SHUT_RDWR)
                return
            self.server.connected.add(self)
            present = packet.client_id in self.server.sessions or fault == "claims a session"
            if not packet.clean_start:
                self.server.sessions.add(packet.client_id)
            else:
                self.server.sessions.discard(packet.client_id)
            self.send(Connack(present and fault != "forgets sessions", 0x87 if fault == "refuses" else 0))
        elif isinstance(packet, Subscribe):
            self.server.subscriber = self
            code = 0x80 if fault == "refuses subscriptions" else packet.subscriptions[0].qos
            self.send(Suback(packet.packet_id, (code,)))
        elif isinstance(packet, Publish):
            self.publish(packet)
        elif isinstance(packet, Pingreq):
            self.send(Pingresp())
        elif isinstance(packet, Acknowledgement) and packet.kind == PUBREL:
            self.send(Pubcomp(packet.packet_id))
        elif isinstance(packet, Acknowledgement) and packet.kind == PUBREC and fault != "does not release":
            self.send(Pubrel(packet.packet_id))

    def publish(self, packet: Publish) -> None:
        server, fault = self.server, self.server.fault
        server.count += 1
        hit = server.count == AT
        if packet.qos and not (hit and fault == "does not acknowledge"):
            packet_id = 0xFFEE if hit and fault == "acknowledges another" else packet.packet_id
            code = 0x97 if hit and fault == "refuses a message" else 0
            self.send(Puback(packet_id, code) if packet.qos == 1 else Pubrec(packet_id, code))
        if hit and fault == "cuts the publisher":
            self.request.shutdown(socket.SHUT_RDWR)
        if server.held is not None:
            held, server.held = server.held, None
            self.deliver(packet)
            self.deliver(held)
        elif hit and fault == "reorders":
            server.held = packet
        elif not (hit and fault in ("loses", "refuses a message")):
            if hit and fault == "changes":
                packet.payload = packet.payload[:-1] + b"?"
            for _ in range(1 + (hit and fault == "repeats")):
                self.deliver(packet)

    def deliver(self, packet: Publish) -> None:
        if self.server.subscriber is None:
            return
        to = self.server.subscriber
        to.packet_id = to.packet_id % 65_535 + 1
        with suppress(OSError):  # it is away
            to.send(Publish(packet.topic_name, packet.payload, packet.qos, packet_id=to.packet_id if packet.qos else 0))


@contextmanager
def _broker(fault: str) -> Iterator[Target]:
    with _server(fault) as (_, target):
        yield target


@contextmanager
def _server(fault: str) -> Iterator[tuple[FakeBroker, Target]]:
    with FakeBroker(fault) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        nodes = (resolve(f"mqtt://127.0.0.1:{server.server_address[1]}"),)
        yield server, Target("fake", nodes, nodes)
        server.shutdown()
        thread.join()


def _run(fault: str, **keys: Any) -> Result:
    with _broker(fault) as target:
        return run_once(replace(PAIR, **keys), target)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_broker_without_faults_has_none(version: int, qos: int) -> None:
    result = _run("", qos=qos, version=version)
    assert result.counts.sent > AT
    assert result.counts.received == result.counts.sent
    assert result.counts.acked == (result.counts.sent if qos else 0)
    assert (result.faults, result.messages, result.status) == ({}, [], 0)
    assert result.latency_ms.count


@pytest.mark.parametrize(
    "fault, qos, faults, status",
    [
        ("loses", 0, {}, 0),
        ("loses", 1, {"lost": 1}, 3),
        ("loses", 2, {"lost": 1}, 3),
        ("repeats", 0, {"duplicated": 1}, 3),
        ("repeats", 1, {"duplicated": 1}, 3),
        ("repeats", 2, {"duplicated": 1}, 3),
        ("reorders", 0, {"reordered": 1}, 3),
        ("reorders", 1, {"reordered": 1}, 3),
        ("changes", 1, {"lost": 1, "protocol_errors": 1}, 3),
        ("refuses a message", 1, {"refused": 1}, 2),
        ("does not acknowledge", 1, {"unacknowledged": 1}, 2),
        ("does not acknowledge", 2, {"unacknowledged": 1}, 2),
        ("acknowledges another", 1, {"unacknowledged": 1, "protocol_errors": 1}, 2),
        ("cuts the publisher", 1, {"disconnects": 1}, 2),
        ("claims a session", 1, {"session_mismatches": 2}, 2),
    ],
)
def test_a_fault_is_told(fault: str, qos: int, faults: dict[str, int], status: int) -> None:
    result = _run(fault, qos=qos)
    assert (result.faults, result.status) == (faults, status), result.messages


def test_loss_is_a_fault_with_qos_0_where_that_is_asked_for() -> None:
    assert _run("loses", qos=0, strict=True).faults == {"lost": 1}


@pytest.mark.parametrize("fault", ["refuses", "refuses subscriptions"])
def test_a_refusal_ends_the_run(fault: str) -> None:
    result = _run(fault)
    assert result.status == 2
    assert result.counts.refused >= 1
    assert "0x8" in result.failure
    assert result.counts.sent == 0


def test_forgotten_sessions_are_told() -> None:
    cut = {"clean": False, "cut": 1.0, "cut_who": "subscribers", "qos": 0}
    assert _run("", **cut).faults == {}
    assert _run("forgets sessions", **cut).faults == {"session_mismatches": 1}


def test_a_broker_that_is_not_there_ends_the_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nodes = (resolve(f"mqtt://127.0.0.1:{free.getsockname()[1]}"),)
    result = run_once(PAIR, Target("none", nodes, nodes))
    assert "Connection refused" in result.failure
    assert result.status == 2


def test_more_clients_than_a_process_may_have() -> None:
    with _broker("") as target, pytest.raises(LoadError, match="raise ulimit -n"):
        run_once(replace(PAIR, idle=10_000_000), target)


def test_messages_that_are_never_released_are_told() -> None:
    result = _run("does not release", qos=2)
    assert result.faults == {"unacknowledged": result.counts.received}
    assert result.messages == [
        f"{result.counts.received} messages of QoS 2 were received and never released (no PUBREL)"
    ]


class Interrupting:
    """Presses Ctrl-C when a phase begins."""

    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._begun = trio.Event()

    def phase(self, name: str, seconds: float) -> None:
        if name == self._phase:
            self._begun.set()

    async def watch(self, run: Run) -> None:
        await self._begun.wait()
        signal.raise_signal(signal.SIGINT)


def _interrupted(fault: str, phase: str, **keys: Any) -> Result:
    with _broker(fault) as target:
        result = run_once(replace(PAIR, **keys), target, Interrupting(phase))
    assert result.interrupted
    return result


def test_an_interruption_while_clients_connect_ends_that() -> None:
    result = _interrupted("is mute", "connect")
    assert (result.counts.connects, result.faults, result.sent_per_s) == (0, {}, None)
    assert result.messages == ["interrupted before the first message, 0 of 2 clients were ready: there are no figures"]


def test_an_interruption_ends_the_wait_for_what_does_not_come() -> None:
    result = _interrupted("loses", "drain", drain=3600)
    assert (result.faults, result.permitted["lost"]) == ({}, 1)
    assert "not all of them were awaited" in result.messages[-1]


def test_messages_that_nobody_came_for_are_not_lost() -> None:
    result = _interrupted("does not acknowledge", "store", layout="retained", topics=10_000, seconds=3600, drain=0.1)
    assert (result.counts.expected, result.counts.lost) == (0, 0)


def test_sessions_are_removed_after_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "PATIENCE_S", 0.5)
    with _server("has one place") as (server, target):
        result = run_once(replace(PAIR, clean=False), target)
        assert "1 of 2 clients got no answer" in result.failure
        assert not [text for text in result.messages if "may be left" in text]
        assert server.sessions == set()


def test_sessions_that_stay_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "PATIENCE_S", 0.5)
    result = _run("keeps sessions", clean=False)
    assert result.messages == ["2 sessions may be left in the broker"]
    assert result.counts.sent > 0


def test_a_rate_that_cannot_be_reached_is_told_and_does_not_hang() -> None:
    result = _run("", qos=0, rate=1e7, seconds=0.3)
    assert result.asked_per_s == 1e7
    assert result.rate_missed
    assert _run("", qos=0, rate=50.0, seconds=0.5).rate_missed is False
