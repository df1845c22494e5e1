"""The composed cluster under load while its nodes are replaced one by one: HAProxy, nodes, store and Prometheus are
real and have the shipped files."""

from __future__ import annotations

import os
import queue
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from paho.mqtt.client import Client, ConnectFlags
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from broker import reasons
from tests.deploy import ways
from tests.deploy.composed import NODES, USER, Balancer, World, haproxy, server_states
from tests.history import checks
from tests.history import events as ev
from tests.history.client import Profile, RecordedClient
from tests.history.run import Run, always, recorded, require
from tests.integration.paho_client import properties
from tests.integration.prometheus_server import prometheus
from tests.kit.redis_server import wait_until

PUBLISHERS = 4
#: Messages a second of all publishers.
RATE = 80
#: For a node to drain, which takes its drain_delay and little more, and for HAProxy to see it.
LIMIT_S = 40.0


class Follower:
    """paho-mqtt with a session of its own, by one of the ways in; it comes back by itself."""

    def __init__(self, world: World, balancer: Balancer, way: ways.Way, version: int) -> None:
        self.name = f"follower-{way.port}-{version}"
        self.payloads: Counter[str] = Counter()
        self.connections = 0
        self.resumed = 0
        self._version = version
        self._first: queue.Queue[bool] = queue.Queue()
        more: dict[str, Any] = {} if version == 5 else {"clean_session": False}
        more["transport"] = "websockets" if way.web else "tcp"
        client = Client(CallbackAPIVersion.VERSION2, self.name, protocol=MQTTProtocolVersion(version), **more)
        client.username_pw_set(*USER)
        if way.tls:
            client.tls_set(str(world.chain.ca))
        client.reconnect_delay_set(1, 1)
        client.on_connect = self._connected
        client.on_message = lambda _, __, message: self.payloads.update([message.payload.decode()])
        client.on_subscribe = lambda *_: self._first.put(True)
        self._client = client
        self._port = balancer.ports[way.port]

    def _connected(self, client: Client, data: object, flags: ConnectFlags, code: ReasonCode, props: object) -> None:
        if code.is_failure:
            return
        self.connections += 1
        self.resumed += flags.session_present
        if not flags.session_present:
            client.subscribe("load/#", 1)

    def start(self) -> None:
        more: dict[str, Any] = {}
        if self._version == 5:
            more = {"clean_start": False, "properties": properties(PacketTypes.CONNECT, SessionExpiryInterval=600)}
        self._client.connect("127.0.0.1", self._port, 30, ways.SOURCE, **more)
        self._client.loop_start()
        assert self._first.get(timeout=30)

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def balancer(world: World, tmp_path: Path) -> Iterator[Balancer]:
    with haproxy(world, tmp_path / "haproxy") as found:
        yield found


async def _publish(client: RecordedClient, number: int) -> None:
    while True:
        await trio.sleep(PUBLISHERS / RATE)
        if client.backlog < RATE:
            client.publish(f"load/{number}", 1 + number % 2)


async def _roll(world: World, balancer: Balancer, run: Run, name: str) -> None:
    """As an upgrade does: SIGTERM, wait for the end, start again, wait until it is used."""
    node = world.nodes[name]
    run.history.fault("SIGTERM", name)
    ends: list[int] = []

    async def end() -> None:
        ends.append(await trio.to_thread.run_sync(node.terminate))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        # Not DOWN, which would cut off its clients before it has sent them away.
        await _until_state(balancer, name, "NOLB")
    assert ends == [0]
    await trio.to_thread.run_sync(node.start)
    await _until_state(balancer, name, "UP")


async def _until_state(balancer: Balancer, name: str, state: str) -> None:
    with trio.fail_after(LIMIT_S):
        while True:
            states = await trio.to_thread.run_sync(server_states, balancer)
            if states[name] == state:
                return
            await trio.sleep(0.1)


@pytest.mark.timeout(180)
async def test_nodes_are_replaced_under_load(world: World, balancer: Balancer, tmp_path: Path) -> None:
    targets = [f"127.0.1.{name[-1]}:{world.ports['18083']}" for name in NODES]
    followers = [
        Follower(world, balancer, way, version)
        for way, version in ((ways.MQTTS, 4), (ways.PASSED, 5), (ways.WS, 5), (ways.WSS, 4))
    ]
    with ExitStack() as stack:
        server = stack.enter_context(prometheus(tmp_path / "prometheus", targets))
        for follower in followers:
            stack.callback(follower.stop)
            await trio.to_thread.run_sync(follower.start)
            seen = world.seen(follower.name)
            assert seen["ip"] == ways.SOURCE, seen
        async with recorded(balancer, tmp_path) as run:
            profile = Profile(expiry_s=600, user=USER)
            subscribers = [
                run.client(
                    f"subscriber-{qos}", profile=Profile(expiry_s=600, user=USER, subscriptions=(("load/#", qos),))
                )
                for qos in (1, 2)
            ]
            publishers = [run.client(f"publisher-{number}", profile=profile) for number in range(PUBLISHERS)]
            await run.ready()
            async with trio.open_nursery() as nursery:
                for number, publisher in enumerate(publishers):
                    nursery.start_soon(_publish, publisher, number)
                for name in NODES:
                    await _roll(world, balancer, run, name)
                nursery.cancel_scope.cancel()
            timeline = await run.drain(60.0)
            require(always(timeline))
            acked = {payload for payload, each in timeline.publications.items() if each.acked}
            with trio.fail_after(LIMIT_S):
                while not all(acked <= follower.payloads.keys() for follower in followers):
                    await trio.sleep(0.1)
        assert len(acked) > RATE and not checks.acked_loss(timeline) and not checks.duplicates(timeline)

        # Everybody was moved, and told so by its node: nobody was cut off.
        told = [event for event in run.history.events if event.kind == ev.DISCONNECT]
        lost = [event for event in run.history.events if event.kind == ev.CLOSED and not event.code]
        assert len(told) >= len(NODES) and {event.code for event in told} <= {
            reasons.SERVER_SHUTTING_DOWN, reasons.USE_ANOTHER_SERVER, reasons.SERVER_MOVED,
        }  # fmt: skip
        assert len(told) == len(lost), (told, lost)
        assert all(len(timeline.connections_of(each.name)) > 1 for each in (*subscribers, *publishers))
        for follower in followers:
            assert follower.connections > 1 and follower.resumed == follower.connections - 1, vars(follower)

        def up() -> dict[str, str]:
            found = {each["metric"]["instance"]: each["value"][1] for each in server.query('up{job="rookery"}')}
            return {target: found.get(target, "0") for target in targets}

        with trio.fail_after(LIMIT_S):
            while set((await trio.to_thread.run_sync(up)).values()) != {"1"}:
                await trio.sleep(0.2)
        assert len(server.rules()) > 10 and {rule["health"] for rule in server.rules()} <= {"ok", "unknown"}


def test_a_node_that_hangs_loses_its_clients(world: World, balancer: Balancer) -> None:
    """One that does not answer is DOWN, and its connections are closed: they can go elsewhere at once."""
    node = world.nodes["rookery-3"]
    made = [ways.client(world, balancer, ways.MQTT, f"hanging-{number}") for number in range(6)]
    for each in made:
        each.connect()
    there = [each for number, each in enumerate(made) if world.seen(f"hanging-{number}")["node"] == "rookery-3"]
    assert there
    os.kill(node.pid, signal.SIGSTOP)
    try:
        for each in there:
            each.wait_gone()
    finally:
        os.kill(node.pid, signal.SIGCONT)
        for each in made:
            each.close()
    # Others took it for dead meanwhile: it comes back as a new member.
    wait_until(lambda: server_states(balancer)["rookery-3"] == "UP", LIMIT_S)
