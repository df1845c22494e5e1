"""G2, G3: a QoS 2 message that was never published before its connection broke is published by the retry; one that was
is not published again."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.codec.packets import Pubcomp, Publish, Pubrec, Pubrel
from tests.conformance.peers import Peers
from tests.multinode.nodes import cluster


@pytest.mark.parametrize("back", ["a", "b"])
async def test_g2_a_retry_reaches_sessions_without_a_queue(tmp_path: Path, back: str) -> None:
    async with cluster(tmp_path, ("a", "b"), proxied=True, arguments=("--store-grace", "1h")) as nodes:
        peers = {name: Peers(nodes[name].host, nodes[name].port, "retry") for name in ("a", "b")}
        readers = [await peers[name].subscriber("t", qos=2) for name in ("a", "b")]
        publisher = await peers["a"].connect(client_id="p", persistent=True)
        # The packet id is reserved while nobody is there any more who would publish the message.
        nodes.proxies["a"].stall()
        await publisher.send(Publish("t", b"once", 2, False, False, 1))
        await readers[0].expect_nothing()
        await publisher.abort()
        await readers[0].expect_nothing()
        nodes.proxies["a"].resume()
        publisher = await peers[back].connect(client_id="p", persistent=True)
        await publisher.send(Publish("t", b"once", 2, False, True, 1))
        await publisher.expect(Pubrec)
        await publisher.send(Pubrel(1))
        for reader in readers:
            await reader.take(b"once")
            await reader.expect_nothing()
        for each in peers.values():
            await each.close()


@pytest.mark.parametrize("back", ["a", "b"])
async def test_g3_a_retry_adds_no_copy_for_sessions_without_a_queue(tmp_path: Path, back: str) -> None:
    async with cluster(tmp_path, ("a", "b")) as nodes:
        peers = {name: Peers(nodes[name].host, nodes[name].port, "retry") for name in ("a", "b")}
        readers = [await peers[name].subscriber("t", qos=qos) for name in ("a", "b") for qos in (2, 0)]
        publisher = await peers["a"].connect(client_id="p", persistent=True)
        await publisher.send(Publish("t", b"once", 2, False, False, 1))
        await publisher.expect(Pubrec)
        for reader in readers:
            await reader.take(b"once")
        await publisher.abort()
        publisher = await peers[back].connect(client_id="p", persistent=True)
        await publisher.send(Publish("t", b"once", 2, False, True, 1))
        await publisher.expect(Pubrec)
        await publisher.send(Pubrel(1))
        await publisher.expect(Pubcomp)
        await publisher.publish("t", b"next", qos=1)
        for reader in readers:
            await reader.take(b"next")
        for each in peers.values():
            await each.close()
