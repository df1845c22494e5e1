"""A node that starts before its store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.broker_process import BrokerProcess
from tests.kit.ports import free_port
from tests.kit.redis_server import RedisServer, wait_until


class _Early(BrokerProcess):
    """Is not waited for."""

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    made = RedisServer(tmp_path / "redis", port=free_port())
    yield made
    made.stop()


def _node(tmp_path: Path, server: RedisServer, wait: str) -> _Early:
    http = f"127.0.0.1:{free_port()}"
    node = _Early(tmp_path / "n", str(server.address), http=http, arguments=("--store-wait", wait))
    node.start()
    node.http = http
    return node


def _status(node: BrokerProcess, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{node.http}{path}", timeout=10) as answer:
            json.load(answer)
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_a_node_waits_for_its_store(tmp_path: Path, server: RedisServer) -> None:
    node = _node(tmp_path, server, "1h")
    try:
        wait_until(lambda: node.log().count("node.waits_for_store") >= 2, 40)
        assert _status(node, "/healthz") == 200
        assert _status(node, "/readyz") == 503
        server.start()
        wait_until(lambda: _status(node, "/readyz") == 200, 40)
        assert (node.directory / "ready.json").exists()
        assert "node.ready " in node.log().replace("node.ready_again", "")
    finally:
        node.stop()


def test_a_node_that_waits_can_be_stopped(tmp_path: Path, server: RedisServer) -> None:
    node = _node(tmp_path, server, "1h")
    wait_until(lambda: "node.waits_for_store" in node.log(), 40)
    os.kill(node.pid, signal.SIGTERM)
    assert node.wait() == 0


def test_its_patience_ends(tmp_path: Path, server: RedisServer) -> None:
    node = _node(tmp_path, server, "300ms")
    assert node.wait() == 1
    assert "cannot connect to the store" in node.log()
