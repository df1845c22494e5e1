"""Documents as commands see them: on every kind of store, beside the nodes."""

from __future__ import annotations

import dataclasses
import itertools
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker.config import Settings, load
from broker.errors import ClusterError, ConfigError, StoreFull, StoreUnavailable
from broker.stores import open_documents
from cluster.policy import ClusterLimits
from cluster.redis import direct
from cluster.redis.address import Deployment, StoreAddress
from cluster.redis.documents import Documents
from cluster.redis.embedded import EmbeddedServer
from cluster.redis.slots import slot_of
from cluster.redis.store import RedisCluster
from cluster.registry import BANS, USERS
from tests.kit.cluster_world import served
from tests.kit.ports import free_port
from tests.kit.redis_server import (
    RedisServer,
    ServerCluster,
    make_certificate,
    redis_server,
    replicated_server,
    sentinels,
)

_numbers = itertools.count(1)


def settings(**given: object) -> Settings:
    return load(given, {}).settings


async def works(address: Deployment, namespace: str) -> None:
    """What a command changes is there for a node, and the other way round."""
    documents = Documents(address, namespace)
    assert documents.version() == 0
    assert documents.documents(USERS) == {}
    many: dict[str, bytes | None] = {f"n{number}": b"%d" % number for number in range(3000)}
    version = documents.change(USERS, {"anna": b"\0\xff", "\udcff": b"", **many})
    async with served(RedisCluster(address, "a", ClusterLimits(), namespace, 16)) as world:
        registry = world.cluster.registry
        assert await registry.version() == version == documents.version()
        assert await registry.documents(USERS) == documents.documents(USERS)
        assert await registry.change(USERS, {"anna": b"2"}) == documents.version()
        assert documents.document(USERS, "anna") == b"2"
        assert documents.document(USERS, "nobody") is None
        assert documents.remove(USERS, {"anna": b"2", "n1": b"other"}) > version
        assert await registry.document(USERS, "anna") is None
        assert await registry.document(USERS, "n1") == b"1"
        documents.change(USERS, {"n1": None})
        assert await registry.document(USERS, "n1") is None
    documents.close()
    documents.close()


async def test_one_server_with_the_least_rights(limited: StoreAddress) -> None:
    await works(limited, f"t{next(_numbers)}docs")


async def test_before_any_node_was_there() -> None:
    with redis_server() as server:
        await works(server.address, "fresh")


async def test_a_database_with_a_password() -> None:
    with redis_server(password="secret word") as server:
        await works(dataclasses.replace(server.address, db=3), "x")


async def test_redis_cluster(shards: ServerCluster) -> None:
    await works(shards.address, f"docs{next(_numbers)}")


async def test_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "DNS:localhost")
    with redis_server(tls=certificate) as server:
        await works(server.address, "x")
        with pytest.raises(ClusterError, match=r"certificate|TLS|SSL"):
            Documents(dataclasses.replace(server.address, ca_file=""), "x").version()


async def test_sentinels() -> None:
    with replicated_server() as store, sentinels(store, 3) as address:
        await works(address, "x")


async def test_a_moved_slot_is_followed(shards: ServerCluster) -> None:
    namespace = f"docs{next(_numbers)}"
    documents = Documents(shards.address, namespace)
    documents.change(USERS, {"anna": b"1"})
    key = f"{namespace}:{{c}}:".encode()
    source = shards.owner(key)
    target = next(each for each in shards.primaries if each is not source)
    shards.move(slot_of(key), source, target)
    try:
        assert documents.document(USERS, "anna") == b"1"
        documents.change(USERS, {"anna": b"2"})
        assert documents.documents(USERS) == {"anna": b"2"}
    finally:
        shards.move(slot_of(key), target, source)


def test_a_full_store_refuses_what_adds(single: RedisServer) -> None:
    documents = Documents(single.address, f"docs{next(_numbers)}")
    documents.change(BANS, {"ip:1.2.3.4": b"1"})
    with single.client() as client:
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(StoreFull):
                documents.change(BANS, {"x": b"1"})
            documents.change(BANS, {"ip:1.2.3.4": None})
        finally:
            client.config_set("maxmemory", "0")
    assert documents.documents(BANS) == {}


def test_another_layout_is_left_alone(single: RedisServer) -> None:
    documents = Documents(single.address, namespace := f"docs{next(_numbers)}")
    documents.change(USERS, {"anna": b"1"})
    with single.client() as client:
        before = client.get(f"{namespace}:{{c}}:docver")
        for found, told in (("1>2", "start a newer version"), ("0>1", "on its way"), ("7", "newer"), ("x", "unknown")):
            client.hset(f"{namespace}:{{c}}:meta", "layout", found)
            for work in (
                lambda: documents.change(USERS, {"anna": None}),
                lambda: documents.remove(USERS, {"anna": b"1"}),
                lambda: documents.documents(USERS),
                lambda: documents.document(USERS, "anna"),
            ):
                with pytest.raises(ClusterError, match=told):
                    work()
        assert client.get(f"{namespace}:{{c}}:docver") == before
        client.hset(f"{namespace}:{{c}}:meta", "layout", "1")
    assert documents.documents(USERS) == {"anna": b"1"}
    documents.close()


def test_settings_say_where() -> None:
    with (
        redis_server(password="p@ss") as server,
        open_documents(
            settings(store=f"redis://127.0.0.1:{server.address.port}/2", store_password="p@ss", namespace="other")
        ) as documents,
    ):
        documents.change(USERS, {"anna": b"1"})
        with server.client() as client:
            client.execute_command("SELECT", 2)
            assert client.hget("other:{c}:doc:users", "anna") == b"1"


async def test_the_embedded_store_of_a_running_node(tmp_path: Path) -> None:
    embedded = EmbeddedServer(tmp_path / "data")
    found = settings(store="embedded", data_dir=str(tmp_path / "data"))
    with pytest.raises(ClusterError, match="no node runs on the data directory"), open_documents(found):
        pass
    await embedded.start()
    try:
        with open_documents(found) as documents:
            documents.change(USERS, {"anna": b"1"})
            assert documents.documents(USERS) == {"anna": b"1"}
    finally:
        await embedded.stop()
    with pytest.raises(ClusterError, match="no node runs on the data directory"), open_documents(found):
        pass


def test_memory_is_out_of_reach() -> None:
    with pytest.raises(ConfigError, match="memory"), open_documents(settings(store="memory")):
        pass


def test_nobody_there() -> None:
    documents = Documents(StoreAddress(port=free_port()), "x")
    with pytest.raises(StoreUnavailable, match=r"store redis://127\.0\.0\.1"):
        documents.version()


def test_a_wrong_password() -> None:
    with redis_server(password="right") as server:
        with pytest.raises(ClusterError):
            Documents(dataclasses.replace(server.address, password="wrong"), "x").version()
        with pytest.raises(ClusterError):
            Documents(dataclasses.replace(server.address, password=""), "x").version()


@pytest.mark.parametrize("last", ["", "-READONLY You can't write against a read only replica.\r\n"])
def test_a_second_attempt_that_may_have_been_executed(last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked has to know that the call may still be on its way; where the store refused it, that it is not."""
    monkeypatch.setattr(direct, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:

        def serve() -> None:
            for answer in ("-READONLY not here\r\n", last):
                connection, _ = listener.accept()
                with connection:
                    while received := connection.recv(65536):
                        if b"FCALL" not in received:
                            connection.sendall(b"+OK\r\n" * received.count(b"*"))
                        elif answer:
                            connection.sendall(answer.encode())

        served = pool.submit(serve)
        store = direct.Direct(StoreAddress(port=listener.getsockname()[1]))
        try:
            with pytest.raises(ClusterError) as failed:
                store.function(b"x:{c}:", "rk1_layout_keep", "me", 30000)
        finally:
            store.close()
        served.result()
    assert isinstance(failed.value, StoreUnavailable) == (not last)
