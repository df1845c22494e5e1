"""TLS with pre-shared keys: a node on a Python that has them, and mosquitto's clients."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import mosquitto
from tests.integration.conftest import _running
from tests.integration.test_tls import port_of, secured, until_log
from tests.kit.broker_process import ROOT, BrokerFailed, BrokerProcess
from tests.kit.certificates import Chain

_ASK = "import ssl, sys; sys.exit(not (hasattr(ssl.SSLContext, 'set_psk_server_callback') and ssl.HAS_PSK))"


def can_psk(python: str) -> bool:
    """Whether this Python has them."""
    return subprocess.run([python, "-c", _ASK], capture_output=True).returncode == 0


def find_python() -> str | None:
    """This one, one on PATH, or one of pyenv's."""
    found = [sys.executable, *(shutil.which(f"python3.{minor}") for minor in (13, 14, 15))]
    found += [str(path) for path in sorted(Path.home().glob(".pyenv/versions/3.1[3-9]*/bin/python3"))]
    return next((python for python in found if python is not None and can_psk(python)), None)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with pre-shared keys and what the broker needs."""
    found = find_python()
    if found is None:
        pytest.skip("no Python >= 3.13 whose OpenSSL has pre-shared keys, neither on PATH nor below ~/.pyenv/versions")
    if found == sys.executable:
        return found
    folder = tmp_path_factory.mktemp("python") / "venv"
    subprocess.run([found, "-m", "venv", folder], check=True)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", *needed], check=True)
    return str(folder / "bin" / "python")


class OtherProcess(BrokerProcess):
    """A node on another Python."""

    python = sys.executable

    def command(self) -> list[str]:
        return [self.python, *super().command()[1:]]


@pytest.fixture
def node(python: str, tmp_path: Path) -> Iterator[OtherProcess]:
    """With two keys, and clients that come with none of them refused."""
    (tmp_path / "keys").write_text("# devices\nd1:00112233445566778899aabbccddeeff\n\nurn:d:2:c0ffee\n")
    listen = f"tls://127.0.0.1:0?psk_file={tmp_path}/keys&psk_hint=here&anonymous=false"
    process = OtherProcess(
        tmp_path / "n", "memory", listen=("tcp://127.0.0.1:0", listen),
        arguments=("--log-level", "debug", "--authentication", "psk"),
    )  # fmt: skip
    process.python = python
    process.start()
    _running.append(process)
    yield process
    _running.remove(process)
    process.stop()
    assert "Traceback" not in process.log()


def publishes(node: BrokerProcess, identity: str, key: str, version: int = 5) -> str:
    """mosquitto_pub with a key; "" if that went well."""
    done = mosquitto.run(
        "mosquitto_pub", node, "-p", str(port_of(node, "tls")), "--psk", key, "--psk-identity", identity, "-t", "t",
        "-m", "x", "-q", "1", "-d", version=version,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.timeout(120)
def test_identities_and_keys(node: OtherProcess, tmp_path: Path) -> None:
    assert publishes(node, "d1", "00112233445566778899aabbccddeeff") == ""
    assert publishes(node, "urn:d:2", "C0FFEE", 4) == ""
    assert publishes(node, "d1", "00112233445566778899aabbccddeef0") != ""
    assert publishes(node, "urn:d:2", "00112233445566778899aabbccddeeff") != ""
    assert publishes(node, "d3", "00112233445566778899aabbccddeeff") != ""
    assert publishes(node, "\udcff\udcfe".encode("utf-8", "surrogateescape").decode("latin-1"), "c0ffee") != ""
    # Others come in, and those who were in go out, without a restart.
    (tmp_path / "keys").write_text("d3:aa\n")
    os.kill(node.pid, signal.SIGHUP)
    until_log(node, "certificates.reloaded")
    assert publishes(node, "d3", "AA") == ""
    assert publishes(node, "urn:d:2", "C0FFEE") != ""
    (tmp_path / "keys").write_text("d3:not hexadecimal: secret\n")
    os.kill(node.pid, signal.SIGHUP)
    until_log(node, "certificates.not_reloaded")
    assert publishes(node, "d3", "AA") == ""
    assert "secret" not in node.log()


@pytest.mark.timeout(120)
def test_the_key_is_who_it_is_and_a_hint_is_given(node: OtherProcess) -> None:
    port = port_of(node, "tls")
    shown = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2", "-psk_identity", "d1", "-psk",
         "00112233445566778899aabbccddeeff"],
        input=b"", capture_output=True, timeout=20,
    ).stdout  # fmt: skip
    assert b"PSK identity hint: here" in shown
    assert b"ECDHE-PSK-" in shown


@pytest.mark.timeout(120)
def test_keys_beside_certificates(python: str, tmp_path: Path) -> None:
    chain = Chain(tmp_path / "chain")
    server = chain.server()
    (tmp_path / "keys").write_text("d1:aabb\n")
    listen = f"tls://127.0.0.1:0?certfile={server.certfile}&keyfile={server.keyfile}&psk_file={tmp_path}/keys"
    node = OtherProcess(tmp_path / "n", "memory", listen=("tcp://127.0.0.1:0", listen))
    node.python = python
    node.start()
    try:
        assert publishes(node, "d1", "AABB") == ""
        done = mosquitto.run("mosquitto_pub", node, *secured(node, chain), "-t", "t", "-m", "x", "-q", "1")
        assert done.returncode == 0, done.stderr
    finally:
        node.stop()


@pytest.mark.skipif(can_psk(sys.executable), reason="this Python has pre-shared keys")
def test_a_python_without_says_so(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("d1:aa\n")
    node = BrokerProcess(tmp_path / "n", "memory", listen=(f"tls://127.0.0.1:0?psk_file={tmp_path}/keys",))
    with pytest.raises(BrokerFailed, match=r"status 2:(.|\n)*pre-shared keys need Python 3\.13"):
        node.start()
