"""`rookery probe`: against a real node, as a user would run it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import StartNode
from tests.kit.api import ADMIN_ARGUMENTS, admin_of
from tests.kit.broker_process import ADMIN_SECRET, ROOT, BrokerProcess
from tests.kit.ports import free_port
from tests.kit.redis_server import make_certificate


def probe(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the command says."""
    return subprocess.run(
        [sys.executable, "-m", "broker", "probe", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "", "PYTHONPATH": str(ROOT), **environment},
    )


def _of(node: BrokerProcess) -> dict[str, str]:
    return {"ROOKERY_API_URL": f"http://{node.http}", "ROOKERY_API_KEY": f"admin:{ADMIN_SECRET}"}


def test_a_message_comes_back(start_node: StartNode) -> None:
    node = start_node(store="memory")
    done = probe(f"tcp://127.0.0.1:{node.port}")
    assert done.returncode == 0, done.stderr
    assert "published and received" in done.stdout


def test_a_user_that_is_made_for_it_is_removed(start_node: StartNode) -> None:
    arguments = ("--authentication", "store", "--authorization", "store", *ADMIN_ARGUMENTS)
    node = start_node(*arguments, store="memory", http="127.0.0.1:0")
    listener = f"tcp://127.0.0.1:{node.port}"
    refused = probe(listener)
    assert refused.returncode == 3, refused.stderr
    assert "refused with reason code 0x87" in refused.stderr
    done = probe(listener, "--make-user", **_of(node))
    assert done.returncode == 0, done.stderr
    with admin_of(node) as admin:
        assert admin.get("/users").json()["items"] == []
        assert admin.put("/users/ann", json={"password": "pencil"}).status_code == 200
    denied = probe(listener, MQTT_USERNAME="ann", MQTT_PASSWORD="pencil")
    assert denied.returncode == 3, denied.stderr
    assert "SUBSCRIBE answered by 0x87" in denied.stderr


def test_certificates_are_checked(start_node: StartNode, tmp_path: Path) -> None:
    make_certificate(tmp_path)
    options = f"certfile={tmp_path / 'cert.pem'}&keyfile={tmp_path / 'key.pem'}"
    node = start_node(store="memory", listen=(f"tls://127.0.0.1:0?{options}",))
    listener = node.listeners[0]
    assert probe(listener, "--ca", str(tmp_path / "cert.pem")).returncode == 0
    assert probe(listener, "--no-verify").returncode == 0
    untrusted = probe(listener)
    assert untrusted.returncode == 5
    assert "certificate" in untrusted.stderr


@pytest.mark.parametrize("listener", ["ws://127.0.0.1:8083", "127.0.0.1:1883", "tcp://127.0.0.1:port"])
def test_other_addresses_are_wrong_usage(listener: str) -> None:
    assert probe(listener).returncode == 2


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        waited = probe(f"tcp://127.0.0.1:{silent.getsockname()[1]}", "--wait", "0.2")
        assert waited.returncode == 5, waited.stderr
        assert "no answer within 0.2 s" in waited.stderr
        port = silent.getsockname()[1]
    gone = probe(f"tcp://127.0.0.1:{port}", "--wait", "0.2")
    assert gone.returncode == 5, gone.stderr
    assert "refused" in gone.stderr
    url = f"http://127.0.0.1:{port}"
    no_api = probe(f"tcp://127.0.0.1:{port}", "--wait", "0.2", "--make-user", "--url", url, ROOKERY_API_KEY="a:b")
    assert no_api.returncode == 5, no_api.stderr


@pytest.mark.parametrize("made", [False, True])
def test_what_comes_up_meanwhile_is_waited_for(start_node: StartNode, made: bool) -> None:
    """`helm test` right after `helm install`."""
    port, http = free_port(), free_port()
    options = ("--make-user", "--url", f"http://127.0.0.1:{http}") if made else ()
    early = subprocess.Popen(
        [sys.executable, "-m", "broker", "probe", f"tcp://127.0.0.1:{port}", "--wait", "60", *options],
        env={"PATH": "", "PYTHONPATH": str(ROOT), "ROOKERY_API_KEY": f"admin:{ADMIN_SECRET}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    users = ("--authentication", "store", "--authorization", "store", *ADMIN_ARGUMENTS) if made else ()
    start_node(*users, store="memory", http=f"127.0.0.1:{http}", listen=(f"tcp://127.0.0.1:{port}",))
    told, complained = early.communicate(timeout=60)
    assert early.returncode == 0, complained
    assert "published and received" in told


def test_users_do_not_stay_behind(start_node: StartNode) -> None:
    """Neither after SIGTERM, nor for ever after SIGKILL."""
    arguments = ("--authentication", "store", "--authorization", "store", *ADMIN_ARGUMENTS)
    node = start_node(*arguments, store="memory", http="127.0.0.1:0")
    with admin_of(node) as admin, socket.create_server(("127.0.0.1", 0)) as silent:

        def users() -> set[str]:
            return {user["username"] for user in admin.get("/users").json()["items"]}

        listener = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        for number in (signal.SIGTERM, signal.SIGHUP):
            ended = subprocess.Popen(
                [sys.executable, "-m", "broker", "probe", listener, "--wait", "60", "--make-user"],
                env={"PATH": "", "PYTHONPATH": str(ROOT), **_of(node)},
            )
            with silent.accept()[0]:
                assert len(users()) == 1
                ended.send_signal(number)
                assert ended.wait(30) == 128 + number
                assert not users()

        now = int(time.time())
        others = {"rookery-probe-west", f"rookery-probe-{now}-0123456789abcdef"}
        for name in (*others, f"rookery-probe-{now - 3600}-0123456789abcdef"):
            assert admin.put(f"/users/{name}", json={"password": "pencil"}).status_code == 200
        done = probe(f"tcp://127.0.0.1:{node.port}", "--make-user", **_of(node))
        assert done.returncode == 0, done.stderr
        assert users() == others


@pytest.mark.parametrize("versions", ["3.1", "3.1.1", "5"])
def test_listeners_of_one_version(start_node: StartNode, versions: str) -> None:
    """And of one connection for each address."""
    limit = ("--max-connections-per-ip", "1")
    node = start_node(*limit, store="memory", listen=(f"tcp://127.0.0.1:0?versions={versions}",))
    done = probe(node.listeners[0].partition("?")[0])
    assert done.returncode == 0, done.stderr
