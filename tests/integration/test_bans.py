"""Bans, limits on connections, flapping and guessed passwords: one node, and what an operator types."""

from __future__ import annotations

from pathlib import Path

import trio

from broker.codec.packets import V311
from tests.integration.conftest import StartNode
from tests.integration.exchange import metric
from tests.integration.guarded import (
    CLOSED,
    PROXIED,
    SOON_S,
    code,
    dropped,
    knock,
    leave,
    rookery,
    stranger,
    until,
    users_file,
)
from tests.kit.broker_process import BrokerProcess
from tests.kit.redis_server import redis_server

__all__ = ["leave"]  # the fixture

HTTP = "127.0.0.1:0"


def bans(node: BrokerProcess, *arguments: str, status: int = 0) -> str:
    """`rookery ctl bans` on the embedded store of a node."""
    where = ("--store", node.store, "--data-dir", str(node.directory / "data"))
    return rookery("ctl", "bans", arguments[0], *where, *arguments[1:], status=status)


async def test_bans_from_the_command_line(start_node: StartNode) -> None:
    node = start_node(store="embedded", http=HTTP)
    assert bans(node, "list") == ""
    stays, _ = await knock(node, "stays")
    goes, _ = await knock(node, "sensor-1")
    old, _ = await knock(node, "sensor-2", version=V311)
    bans(node, "add", "--client-id", "sensor-", "--prefix", "--for", "1h", "--reason", "a bad batch")
    await dropped(goes, 0x98)
    await old.expect_closed(SOON_S)
    assert await code(node, "sensor-1") == 0x8A
    assert await code(node, "sensor-9", version=V311) == 0x87  # MQTT 3 has "not authorized" for it
    assert await code(node, "sensor") == 0
    listed = bans(node, "list")
    assert "client_id_prefix  sensor-" in listed
    assert "a bad batch" in listed
    bans(node, "remove", "--client-id", "sensor-", "--prefix")
    await until(node, 0, "sensor-1")
    await stays.publish("t", b"x", 1)
    assert metric(node, 'mqtt_limits_total{reason="banned_client_id_prefix"}') >= 2
    assert metric(node, 'mqtt_disconnects_total{reason="administrative_action"}') == 2


async def test_what_is_no_ban(start_node: StartNode) -> None:
    node = start_node(store="embedded")
    for wrong in (
        (),
        ("--client-id", "a", "--ip", "10.0.0.1"),
        ("--ip", "300.0.0.1"),
        ("--ip", "10.0.0.0/8", "--prefix"),
        ("--client-id", "a", "--for", "soon"),
        ("--client-id", "a", "--for", "0s"),
        ("--client-id", "a", "--until", "yesterday"),
        ("--client-id", "a", "--until", "2001-01-01"),
        ("--client-id", "a", "--until", "2099-01-01", "--for", "1h"),
    ):
        bans(node, "add", *wrong, status=2)
    assert "there is no ban" in bans(node, "remove", "--client-id", "a", status=1)
    bans(node, "add", "--ip", "2001:DB8::/32", "--until", "2099-01-01T00:00+00:00")
    bans(node, "add", "--client-id", "a b\n*")
    assert "ip         2001:db8::/32  2099-01-01T00:00:00+00:00" in bans(node, "list")
    assert repr("a b\n*") in bans(node, "list")


async def test_a_node_that_does_not_run(tmp_path: Path) -> None:
    out = rookery("ctl", "bans", "list", "--store", "embedded", "--data-dir", str(tmp_path / "none"), status=1)
    assert "no node runs on the data directory" in out


async def test_banned_addresses_are_not_read(start_node: StartNode) -> None:
    """Without a PROXY header not even a TLS handshake happens; with one nothing behind it is read."""
    node = start_node("--listen", PROXIED, store="embedded", http=HTTP)
    through = _Other(node)
    inside, _ = await knock(through, "c", host="192.0.2.7")
    bans(node, "add", "--ip", "192.0.2.0/24", "--for", "1h")
    await dropped(inside, 0x98)
    assert await code(through, "c", host="192.0.2.8") == CLOSED
    assert await code(through, "c", host="198.51.100.1") == 0
    bans(node, "add", "--ip", "127.0.0.1")
    with trio.fail_after(SOON_S):
        while True:
            if await code(node, "c") == CLOSED:
                break
            await trio.sleep(0.05)
    assert metric(node, 'mqtt_connections_rejected_total{reason="banned"}') >= 2


class _Other:
    """The second listener of a node."""

    def __init__(self, node: BrokerProcess) -> None:
        self.host, _, port = node.listeners[1].removeprefix("tcp://").partition("?")[0].rpartition(":")
        self.port = int(port)


async def test_connections_of_one_user(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node(
        "--authentication", users_file(tmp_path, "anna", "bob"), "--max-connections-per-user", "2", http=HTTP
    )
    first, _ = await knock(node, "c1", "anna")
    second, _ = await knock(node, "c2", "anna")
    assert await code(node, "c3", "anna") == 0x97
    assert await code(node, "c3", "anna", version=V311) == 0x88
    assert await code(node, "c3", "bob") == 0
    # A client that comes again takes the place of its older connection.
    again, found = await knock(node, "c2", "anna")
    assert found == 0
    await dropped(second, 0x8E)
    await first.disconnect()
    await until(node, 0, "c3", "anna")
    await again.publish("t", b"x", 1)
    assert metric(node, 'mqtt_limits_total{reason="places_user"}') >= 2


async def test_connections_of_one_address(start_node: StartNode) -> None:
    node = start_node("--listen", PROXIED, "--max-connections-per-ip", "2")
    through = _Other(node)
    for host in ("192.0.2.7", "192.0.2.8"):
        for number in range(2):
            assert (await knock(through, f"{host}-{number}", host=host))[1] == 0
        assert await code(through, f"{host}-2", host=host) == 0x97
    # All of one network of a house count as one.
    for number in range(2):
        assert (await knock(through, f"v6-{number}", host=f"2001:db8::{number}"))[1] == 0
    assert await code(through, "v6-2", host="2001:db8::2") == 0x97
    assert await code(through, "v6-3", host="2001:db8:0:1::2") == 0


async def test_those_that_say_nothing_count(start_node: StartNode) -> None:
    node = start_node("--max-connections-per-ip", "3")
    silent = [await stranger(node) for _ in range(4)]
    late = await stranger(node)
    await late.expect_closed()
    for client in silent:
        await client.close()
    await until(node, 0, "c")


async def test_guessing_passwords(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node(
        "--authentication", users_file(tmp_path, "anna"), "--login-failures-limit", "4", "--listen", PROXIED,
        store="embedded", http=HTTP,
    )  # fmt: skip
    through = _Other(node)
    inside, _ = await knock(through, "inside", "anna", host="192.0.2.7")
    for number in range(4):
        assert await code(through, "x", f"user{number}", b"wrong", host="192.0.2.7") == 0x86
        assert await code(through, "x", "anna", host="192.0.2.7") == 0
    assert await code(through, "x", "user5", b"wrong", host="192.0.2.7") == 0x86
    assert await code(through, "x", "anna", host="192.0.2.7") == CLOSED
    assert await code(through, "x", "anna", host="192.0.2.8") == 0
    # Who was in may stay: else one guesser would throw out all who share an address with it.
    await inside.publish("t", b"x", 1)
    assert "login_failures" in bans(node, "list")
    bans(node, "remove", "--ip", "192.0.2.7")
    await until(through, 0, "x", "anna", host="192.0.2.7")
    # Never those at the same machine, nor the proxy.
    for _ in range(8):
        assert await code(node, "x", "nobody", b"wrong") == 0x86
    assert await code(node, "x", "anna") == 0
    assert metric(node, 'mqtt_limits_total{reason="ban_login_failures"}') == 1


async def test_flapping(start_node: StartNode) -> None:
    node = start_node("--flapping-limit", "3", "--flapping-window", "10m", "--flapping-ban", "1h", store="embedded")
    for _ in range(4):
        client, found = await knock(node, "c")
        assert found == 0
        await client.disconnect()
    await until(node, 0x8A, "c")
    assert await code(node, "d") == 0
    assert "flapping" in bans(node, "list")


async def test_bans_outlive_a_node(tmp_path: Path) -> None:
    with redis_server() as store:
        url = f"redis://127.0.0.1:{store.address.port}"
        rookery("ctl", "bans", "add", "--store", url, "--client-id", "c")
        node = BrokerProcess(tmp_path / "n", url)
        node.start()
        try:
            # From the first client on.
            assert await code(node, "c") == 0x8A
        finally:
            node.stop()
