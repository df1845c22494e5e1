"""The load tester over TLS: with the right certificates, without checking them, and with nobody that may be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.__main__ import main
from loadtest.result import Report
from tests.kit.broker_process import BrokerProcess
from tests.kit.certificates import Chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    made = Chain(tmp_path_factory.mktemp("chain"))
    made.server()
    return made


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, chain: Chain) -> Iterator[int]:
    """Of a listener that speaks TLS."""
    server = chain.server()
    listener = f"tls://127.0.0.1:0?certfile={server.certfile}&keyfile={server.keyfile}"
    process = BrokerProcess(tmp_path_factory.mktemp("node"), "memory", listen=(listener,))
    process.start()
    yield int(process.listeners[0].rpartition(":")[2].partition("/")[0].partition("?")[0])
    process.stop()


def _run(port: int, path: Path, *arguments: str) -> int:
    command = ["run", "p2p1", "--target", f"mqtts://localhost:{port}", "--seconds", "0.5", "--warmup", "0"]
    command += ["--set", "publishers=3", "--set", "subscribers=3", "--size", "20000", "--json", str(path)]
    return main([*command, "--progress", "off", *arguments])


def test_trusted(port: int, chain: Chain, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert _run(port, path, "--ca", str(chain.ca)) == 0
    [result] = Report.read(path).results
    assert result.counts.received == result.counts.sent > 0
    assert result.targets == [f"mqtts://localhost:{port}"]


def test_not_checked(port: int, tmp_path: Path) -> None:
    assert _run(port, tmp_path / "report.json", "--insecure") == 0


def test_not_to_be_trusted(port: int, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert _run(port, path) == 2
    [result] = Report.read(path).results
    assert "CERTIFICATE_VERIFY_FAILED" in result.failure
