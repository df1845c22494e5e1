"""The shipped configurations of HAProxy, in HAProxy."""

from __future__ import annotations

import itertools
import re
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy import nameserver, ways
from tests.deploy.composed import (
    DEPLOY,
    NODES,
    START_S,
    Balancer,
    World,
    fetch,
    haproxy,
    haproxy_text,
    running,
    server_states,
)


@pytest.fixture(scope="module")
def balancer(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    with haproxy(world, tmp_path_factory.mktemp("haproxy") / "run") as found:
        yield found


@pytest.mark.parametrize("name", ["haproxy.cfg", "haproxy-sticky.cfg"])
def test_haproxy_finds_no_fault(world: World, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(haproxy_text(world, Balancer("", tmp_path), name))
    done = subprocess.run(
        ["/usr/sbin/haproxy", "-c", "-V", "-f", str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0 and "Configuration file is valid" in told, told
    assert "[WARNING]" not in told, told


@pytest.mark.parametrize("way", [ways.MQTT, ways.MQTTS, ways.PASSED, ways.WS, ways.WSS])
def test_ways_in(world: World, balancer: Balancer, way: ways.Way) -> None:
    ways.check(world, balancer, way)


def test_nodes_get_the_name_in_a_client_certificate(world: World, tmp_path: Path) -> None:
    """With what the comment at the port says."""
    balancer = Balancer("haproxy", tmp_path)
    text = haproxy_text(world, balancer)
    bind = f"bind 127.0.0.1:{balancer.port('8883')} ssl"
    assert text.count(bind) == 1
    (tmp_path / "haproxy.cfg").write_text(text.replace(bind, f"{bind} ca-file {world.chain.ca} verify optional"))
    with running(balancer, ["/usr/sbin/haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")]):
        known = ways.enter(world, balancer, ways.MQTTS, world.chain.client("meter-7"))
        unknown = ways.enter(world, balancer, ways.MQTTS)
    assert known["certificate_common_name"] == "meter-7" and unknown["certificate_common_name"] is None


def test_dashboard_and_api(world: World, balancer: Balancer) -> None:
    given = {"name": "admin", "secret": world.admin}
    context = ssl.create_default_context(cafile=str(world.chain.ca))
    found = {}
    for port, scheme in (("18083", "http"), ("18443", "https")):
        base = f"{scheme}://localhost:{balancer.ports[port]}"
        # Whatever a client says of itself.
        lies = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
        with httpx.Client(base_url=base, verify=context, trust_env=False, headers=lies) as client:
            assert "<html" in client.get("/").text
            assert client.get("/metrics").status_code == 404
            answer = client.post("/api/v1/login", json=given)
            assert answer.status_code == 200
            found[scheme] = "Secure" in answer.headers["set-cookie"]
    assert found == {"http": False, "https": True}


def test_numbers_of_haproxy(balancer: Balancer) -> None:
    status, body = fetch(f"http://127.0.0.1:{balancer.ports['8404']}/metrics")
    assert status == 200
    for backend in ("mqtt", "mqtts", "websocket", "http"):
        assert server_states(balancer, backend) == dict.fromkeys(NODES, "UP")
        assert f'haproxy_server_status{{proxy="{backend}",server="rookery-1",state="UP"}} 1' in body


def test_clients_are_spread(world: World, balancer: Balancer) -> None:
    made = [ways.client(world, balancer, ways.MQTT, f"spread-{number}") for number in range(6)]
    for each in made:
        each.connect()
    try:
        assert set(Counter(world.seen(f"spread-{number}")["node"] for number in range(6))) == set(NODES)
    finally:
        for each in made:
            each.close()


def changed(text: str, old: str, new: str) -> str:
    """The file with another value, which has to stand there."""
    assert old in text, f"no {old!r} in the file"
    return text.replace(old, new)


@pytest.mark.parametrize("name", ["haproxy.cfg", "haproxy-sticky.cfg"])
def test_who_does_not_finish_a_handshake_is_not_kept(world: World, tmp_path: Path, name: str) -> None:
    """Shown with shorter times, and that clients which got in may be silent for longer."""
    balancer = Balancer("haproxy", tmp_path)
    text = haproxy_text(world, balancer, name)
    for told in ("client 20s", "server 20s"):
        text = changed(text, f"    timeout {told}\n", f"    timeout {told.split()[0]} 500ms\n")
    text = text.replace("timeout client 30s", "timeout client 500ms")  # where HTTP is spoken
    (tmp_path / name).write_text(text)
    with running(balancer, ["/usr/sbin/haproxy", "-db", "-f", str(tmp_path / name)]):
        every = (ways.MQTT, ways.MQTTS, ways.PASSED, ways.WS, ways.WSS)
        clients = [ways.client(world, balancer, way).connect() for way in every if way.port in balancer.ports]
        for port in balancer.ports.keys() & {"8883", "8084", "18443"}:
            with socket.create_connection(("127.0.0.1", balancer.ports[port]), timeout=20) as silent:
                assert not silent.recv(1), port
        for each in clients:
            each.subscribe("silent", 1)
            each.close()


def test_clients_stay_while_names_are_not_found(world: World, tmp_path: Path) -> None:
    balancer = Balancer("haproxy", tmp_path)
    with nameserver.name_server({name: f"127.0.1.{name[-1]}" for name in NODES}) as names:
        (tmp_path / "haproxy.cfg").write_text(_named(world, balancer, "haproxy.cfg", names))
        with running(balancer, ["/usr/sbin/haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")]):
            _until(balancer, "UP")
            with ways.client(world, balancer, ways.MQTT).connect() as client:
                for answer in _TROUBLES:
                    names.now(answer)
                    names.wait(60)  # all names of all backends, several times
                    assert set(server_states(balancer).values()) == {"UP"}, answer
                client.subscribe("still/here", 1)
                with ways.client(world, balancer, ways.MQTT).connect() as new:
                    new.subscribe("new/here", 1)


def test_how_long_names_are_kept_is_what_keeps_clients(world: World, tmp_path: Path) -> None:
    """Without these lines servers are taken out, whatever is wrong with names: so the test above means something."""
    balancer = Balancer("haproxy", tmp_path)
    with nameserver.name_server({name: f"127.0.1.{name[-1]}" for name in NODES}) as names:
        text = _named(world, balancer, "haproxy.cfg", names)
        for trouble in ("nx", "timeout", "refused", "other"):
            text = changed(text, f"    hold {trouble} 24h\n", f"    hold {trouble} 200ms\n")
        (tmp_path / "haproxy.cfg").write_text(text)
        with running(balancer, ["/usr/sbin/haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")]):
            for answer in _TROUBLES:
                names.now(nameserver.GOOD)
                _until(balancer, "UP")
                names.now(answer)
                _until(balancer, "MAINT (resolution)")


def test_names_are_kept_alike() -> None:
    kept = []
    for name in ("haproxy.cfg", "haproxy-sticky.cfg"):
        section = re.search(r"(?m)^resolvers system\n((?: .*\n)+)", (DEPLOY / name).read_text())
        assert section is not None
        kept.append([line for line in section[1].splitlines() if not line.lstrip().startswith("#")])
    assert kept[0] == kept[1]


_TROUBLES = (nameserver.UNKNOWN, nameserver.SILENT, nameserver.REFUSED, nameserver.BROKEN)


def _named(world: World, balancer: Balancer, name: str, names: nameserver.NameServer) -> str:
    """The shipped file with its names of nodes, which `names` knows, and with shorter times."""
    text = haproxy_text(world, balancer, name)
    text = re.sub(r"(server rookery-(\d)) 127\.0\.1\.\2:", r"\1 rookery-\2:", text)
    text = changed(text, "parse-resolv-conf", f"nameserver own 127.0.0.1:{names.port}")
    text = changed(text, "init-addr last,libc,none", "init-addr none")
    for told, short in {"timeout resolve 1s": "100ms", "timeout retry 1s": "50ms", "hold valid 5s": "100ms"}.items():
        text = changed(text, told, f"{told.rpartition(' ')[0]} {short}")
    return text


def _until(balancer: Balancer, state: str) -> None:
    deadline = time.monotonic() + START_S
    while set((found := server_states(balancer)).values()) != {state}:
        assert time.monotonic() < deadline, (found, balancer.log()[-3000:])
        time.sleep(0.02)


@pytest.fixture(scope="module")
def sticky(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    with haproxy(world, tmp_path_factory.mktemp("sticky") / "run", "haproxy-sticky.cfg") as found:
        yield found


def test_a_client_comes_to_the_same_node_again(world: World, sticky: Balancer) -> None:
    places: dict[str, set[str]] = {}
    for name, way in itertools.product([f"sticky-{number}" for number in range(6)], [ways.MQTT, ways.MQTTS]):
        with ways.client(world, sticky, way, name).connect():
            places.setdefault(name, set()).add(world.seen(name)["node"])
    assert {len(each) for each in places.values()} == {1}
    assert len(set().union(*places.values())) > 1


def test_a_large_connect_passes_where_it_is_read(world: World, sticky: Balancer) -> None:
    made = ways.client(world, sticky, ways.MQTT, "large")
    made.client.will_set("wills", bytes(15_900), 1)  # the nodes take 16 KiB, HAProxy's own buffer would not
    with made.connect() as found:
        assert found.reason is not None and not found.reason.is_failure


def test_what_is_no_mqtt_does_not_reach_a_node(sticky: Balancer) -> None:
    with socket.create_connection(("127.0.0.1", sticky.ports["1883"]), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not connection.recv(1)
    assert "GET" not in sticky.log()
