"""A node that cannot start: one clear line on standard error, the right exit status, no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.broker_process import ROOT, BrokerProcess
from tests.kit.ports import free_port
from tests.kit.redis_server import redis_server

FAILED = 1
MISCONFIGURED = 2
#: Longer than the node may try.
LIMIT_S = 60.0


def _serve(folder: Path, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """Run a node that has to give up; returns its exit status and its own words, without the log of events."""
    command = [sys.executable, "-m", "broker", "serve", "--http", "off", "--data-dir", str(folder / "data"), *arguments]
    if "--listen" not in arguments:
        command += ["--listen", "tcp://127.0.0.1:0"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, timeout=LIMIT_S, check=False)
    text = done.stderr.decode()
    assert "Traceback" not in text + done.stdout.decode(), text
    assert "secret" not in text
    return done.returncode, [line for line in text.splitlines() if line.startswith("rookery:")]


def _gives_up(folder: Path, status: int, words: tuple[str, ...], *arguments: str, **environment: str) -> None:
    code, lines = _serve(folder, *arguments, **environment)
    assert code == status, lines
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0], lines[0]


def test_an_unreachable_store(tmp_path: Path) -> None:
    port = free_port()
    _gives_up(tmp_path, FAILED, (f"127.0.0.1:{port}",), "--store", f"redis://127.0.0.1:{port}/0")


def test_a_store_with_an_unknown_name(tmp_path: Path) -> None:
    _gives_up(tmp_path, FAILED, ("nowhere.invalid",), "--store", "redis://nowhere.invalid:6379/0")


def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    _gives_up(tmp_path, FAILED, (str(tmp_path / "none"),), "--store", f"unix://{tmp_path / 'none'}?db=0")


@pytest.fixture
def other_server() -> Iterator[tuple[str, int]]:
    """Something that speaks HTTP and not RESP."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                except OSError:
                    continue

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_a_store_that_is_no_redis(tmp_path: Path, other_server: tuple[str, int]) -> None:
    host, port = other_server
    _gives_up(tmp_path, FAILED, (f"{host}:{port}",), "--store", f"redis://{host}:{port}/0")


def test_a_store_that_is_a_broker(tmp_path: Path) -> None:
    node = BrokerProcess(tmp_path / "other")
    node.start()
    try:
        _gives_up(tmp_path, FAILED, (f"127.0.0.1:{node.port}",), "--store", f"redis://127.0.0.1:{node.port}/0")
    finally:
        node.stop()


def test_a_wrong_password(tmp_path: Path) -> None:
    with redis_server(options=("--requirepass", "right")) as server:
        url = f"redis://127.0.0.1:{server.address.port}/0"
        _gives_up(tmp_path, FAILED, (str(server.address.port),), "--store", url, ROOKERY_STORE_PASSWORD="secret")
        _gives_up(tmp_path, FAILED, (str(server.address.port),), "--store", url)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_store_that_may_evict(tmp_path: Path, policy: str) -> None:
    with redis_server(options=("--maxmemory-policy", policy)) as server:
        url = f"redis://127.0.0.1:{server.address.port}/0"
        _gives_up(tmp_path, FAILED, ("noeviction", policy), "--store", url)


def test_a_database_that_does_not_exist(tmp_path: Path) -> None:
    with redis_server() as server:
        _gives_up(tmp_path, FAILED, ("99",), "--store", f"redis://127.0.0.1:{server.address.port}/99")


def test_a_data_directory_of_another_node(tmp_path: Path) -> None:
    other = BrokerProcess(tmp_path, "embedded")
    other.start()
    try:
        _gives_up(tmp_path, FAILED, (str(tmp_path / "data"),), "--store", "embedded")
    finally:
        other.stop()


def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    _gives_up(tmp_path, FAILED, (str(tmp_path / "data"),), "--store", "embedded")


@pytest.mark.parametrize("option", ["--listen", "--http"])
def test_a_port_in_use(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        value = f"tcp://127.0.0.1:{port}" if option == "--listen" else f"127.0.0.1:{port}"
        _gives_up(tmp_path, MISCONFIGURED, (str(port), "in use"), "--store", "memory", option, value)


def test_an_address_of_somebody_else(tmp_path: Path) -> None:
    # 192.0.2.0/24 is for documentation: no machine has an address of it.
    arguments = ("--store", "memory", "--allow-anonymous", "--listen", "tcp://192.0.2.1:1883")
    _gives_up(tmp_path, MISCONFIGURED, ("192.0.2.1:1883",), *arguments)


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    _gives_up(tmp_path, MISCONFIGURED, ("none.toml",), "--config", str(tmp_path / "none.toml"))
    _gives_up(tmp_path, MISCONFIGURED, (str(tmp_path),), "--config", str(tmp_path))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    _gives_up(tmp_path, MISCONFIGURED, ("bytes.toml",), "--config", str(tmp_path / "bytes.toml"))
    (tmp_path / "bad.toml").write_text("listen = [\n")
    _gives_up(tmp_path, MISCONFIGURED, ("bad.toml",), "--config", str(tmp_path / "bad.toml"))
    (tmp_path / "unknown.toml").write_text("max_packet_sise = 3\n")
    _gives_up(tmp_path, MISCONFIGURED, ("max_packet_sise",), "--config", str(tmp_path / "unknown.toml"))


def _users(path: Path) -> tuple[str, str]:
    return "--authentication", f"password_file?path={path}"


def test_users_that_cannot_be_read(tmp_path: Path) -> None:
    _gives_up(tmp_path, MISCONFIGURED, ("none",), "--store", "memory", *_users(tmp_path / "none"))
    (tmp_path / "users").write_text("ann:secret\n")
    _gives_up(tmp_path, MISCONFIGURED, ("users",), "--store", "memory", *_users(tmp_path / "users"))


def test_a_ready_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "none" / "ready.json"
    _gives_up(tmp_path, FAILED, (str(path.parent),), "--store", "memory", "--ready-file", str(path))
