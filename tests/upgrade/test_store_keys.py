"""docs/store-keys.md is true: what nodes write is compared with what is declared, kind by kind, while it is written.

The store itself tells of every key that is touched, with what was done to it: that is the type, and whether it expires.
Keys that live for a moment are seen, too.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import trio

from broker.codec.packets import Pubcomp, Publish, Pubrec, Pubrel, Will
from cluster import keys as names
from cluster.catalogue import CATALOGUE, HASH, SET, STREAM, STRING, ZSET, StoredKey, declared
from cluster.keys import Keys
from tests.conformance.peers import Peers
from tests.integration.logins import login
from tests.kit.api import ADMIN_ARGUMENTS, admin_of, make_key
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import properties
from tests.kit.redis_server import RedisServer, replicated_server
from tests.multinode.nodes import LOOPBACK, SOON_S

#: By the first letters of what was done to a key.
_TYPES = {"h": HASH, "z": ZSET, "sa": SET, "sr": SET, "x": STREAM, "set": STRING, "inc": STRING}
#: These tell no type.
_NEUTRAL = {"expire", "expired", "del", "new", "persist"}

ARGUMENTS = (
    *ADMIN_ARGUMENTS,
    *("--authentication", "store", "--allow-anonymous", "--authorization", "store"),
    *("--durability", "replicated", "--durability-replicas", "1"),
    *("--max-connections-per-ip", "1000", "--flapping-limit", "1000", "--will-failover-grace", "0"),
    *("--tenant", "${clientid}", "--tenant-message-rate", "1000"),
)


class Seen:
    """What was done to which key."""

    def __init__(self) -> None:
        self.events: dict[bytes, set[str]] = defaultdict(set)

    def of(self, key: StoredKey) -> set[str]:
        """Everything that was done to keys of this kind."""
        return {each for name, events in self.events.items() if declared("rookery", name) is key for each in events}

    def problems(self) -> list[str]:
        """Keys that nobody declared, and what is not as it was declared."""
        found: list[str] = []
        for name, events in self.events.items():
            key = declared("rookery", name)
            if key is None:
                found.append(f"{name!r} is not declared (cluster/catalogue.py)")
                continue
            for event in events - _NEUTRAL:
                types = {kind for prefix, kind in _TYPES.items() if event.startswith(prefix)}
                if key.type not in types:
                    found.append(f"{name!r} is declared as {key.type}, but: {event}")
            if "expire" in events and not key.expires:
                found.append(f"{name!r} got a time to live, which is not declared")
        return found


@contextmanager
def watched(store: RedisServer) -> Iterator[Seen]:
    """Everything that the store is told to write from now on."""
    seen = Seen()
    with store.client() as client, client.pubsub() as channel:
        client.config_set("notify-keyspace-events", "EAn")
        channel.psubscribe("__keyevent@0__:*")
        assert channel.get_message(timeout=10)["type"] == "psubscribe"

        def read() -> None:
            for message in channel.listen():
                if message["channel"] == b"__keyevent@0__:end":
                    return
                seen.events[message["data"]].add(message["channel"].rpartition(b":")[2].decode())

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield seen
        finally:
            client.publish("__keyevent@0__:end", "")
            thread.join()


async def drive(one: BrokerProcess, two: BrokerProcess) -> None:
    """Every feature that writes something of its own."""
    with admin_of(one) as admin:
        for path, body in (
            ("/users/ann", {"password": "one"}),
            ("/rules/90", {"rule": {"permission": "allow", "topics": ["#"]}}),
        ):
            assert admin.put(path, json=body).is_success
        assert admin.post("/bans", json={"kind": "username", "value": "zoe"}).is_success
        assert admin.post("/topic-metrics", json={"topic_filter": "a/#"}).is_success
        make_key(admin, "viewing", "viewer")
    assert await login(two, "ann", "wrong") != 0
    here, there = Peers(one.host, one.port, "t"), Peers(two.host, two.port, "t")
    with trio.fail_after(SOON_S):
        publisher = await here.connect(client_id="publisher", persistent=True)
        publisher.auto_ack = False
        while await publisher.publish("a/1", b"", 1) >= 0x80:  # until the rule counts
            await trio.sleep(0.01)

    ephemeral = await there.connect()
    with trio.fail_after(SOON_S):
        while (await ephemeral.subscribe("a/#", qos=1)).reason_codes[0] >= 0x80:  # until the rule counts there
            await trio.sleep(0.01)
    await publisher.publish("a/1", b"x", 1)
    await ephemeral.expect(Publish)

    session = await there.connect(client_id="session", persistent=True)
    session.auto_ack = False
    await session.subscribe("b/#", qos=2)
    await session.subscribe("c/#", qos=2)
    await session.unsubscribe("c/#")
    await publisher.send(Publish("b/1", b"x", 2, False, False, 77))
    assert (await publisher.expect(Pubrec)).packet_id == 77
    message = await session.expect(Publish)
    await session.send(Pubrec(message.packet_id))
    await session.expect(Pubrel)
    await publisher.send(Pubrel(77))
    await publisher.expect(Pubcomp)

    for number in range(2):
        member = await (here, there)[number].connect(client_id=f"member-{number}", persistent=True)
        member.auto_ack = False
        await member.subscribe("$share/g/d/#", qos=2)
        if number == 0:
            # PUBREC and gone: it belongs to this session for good.
            await publisher.send(Publish("d/1", b"x", 2, False, False, 78))
            await publisher.expect(Pubrec)
            message = await member.expect(Publish)
            await member.send(Pubrec(message.packet_id))
            await member.expect(Pubrel)
            await member.close()
    await publisher.publish("kept/1", b"x", 1, retain=True)
    await publisher.publish("$delayed/3600/later", b"x", 1)
    for delay_s in (0, 3600):
        will = Will("gone", b"x", 1, False, properties(will_delay_interval=delay_s) if delay_s else None)
        await (await here.connect(client_id=f"doomed-{delay_s}", persistent=True, will=will)).abort()
    await here.close()
    await there.close()


async def test_every_key_is_declared(tmp_path: Path) -> None:
    with replicated_server() as stores:
        store = stores.servers[0]
        with watched(store) as seen:
            url = f"redis://127.0.0.1:{store.address.port}/0"
            nodes = [
                BrokerProcess(tmp_path / name, url, http=LOOPBACK, arguments=("--node-name", name, *ARGUMENTS))
                for name in ("one", "two")
            ]
            try:
                for node in nodes:
                    node.start()
                await drive(*nodes)
                nodes[1].kill()
                with trio.fail_after(SOON_S):
                    while "cluster.reaped member=two:" not in nodes[0].log():
                        await trio.sleep(0.05)
            finally:
                for node in nodes:
                    node.stop()
            _migrating(store)
        assert seen.problems() == []
        missing = [f"{each.tag}:{each.suffix}" for each in CATALOGUE if not seen.of(each)]
        assert missing == [], "declared, but nothing of the kind was written"
        never = [f"{each.tag}:{each.suffix}" for each in CATALOGUE if each.expires and "expire" not in seen.of(each)]
        assert never == [], "declared to expire, but it got no time to live"


def _migrating(store: RedisServer) -> None:
    """What a migration notes; there is none for this layout."""
    members = Keys("rookery", 1).members
    with store.client() as client:
        assert client.fcall("rk1_layout_begin", 1, members, "me", 1000, "1", "1>2", "a test")[0] == b"begun"
        assert client.fcall("rk1_layout_finish", 1, members, "me", "1") == 1


def test_every_suffix_of_the_functions_is_declared() -> None:
    """Also of what no test drives a node to."""
    folder = resources.files("cluster.redis") / "scripts"
    text = "\n".join(each.read_text() for each in folder.iterdir() if each.name.endswith(".lua"))
    used = set(re.findall(r"(?:\bp|keys\[1\]) \.\. '([^']+)'", text))
    suffixes = {each.suffix.split(":")[0] + (":" if ":" in each.suffix else "") for each in CATALOGUE}
    assert used and used <= suffixes, used - suffixes
    own = {value.decode() for name, value in vars(names).items() if name.isupper() and isinstance(value, bytes)}
    assert own - suffixes == {"k", "d"}  # a channel, and the kind of a timer


def test_what_is_no_key_of_ours() -> None:
    for name in (
        b"rookery:{c}:metal",
        b"rookery:{p1}:s:short",
        b"other:{c}:meta",
        b"rookery:{x}:meta",
        b"rookery:c:meta",
    ):
        assert declared("rookery", name) is None
    found = declared("rookery", b"rookery:{p12}:s:" + bytes(range(16)))
    assert found is not None and found.suffix == "s:SID"
    assert len({(each.tag, each.suffix) for each in CATALOGUE}) == len(CATALOGUE)
