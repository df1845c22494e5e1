"""The shipped units as systemd reads them, the settings of the kernel, and the command of the unit as it runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from broker.codec.packets import Connect
from broker.config import Settings, load
from broker.process import MISCONFIGURED, STOP_S
from tests.deploy.composed import DEPLOY
from tests.kit.api import admin_of
from tests.kit.broker_process import ROOT, BrokerProcess
from tests.kit.certificates import Chain
from tests.kit.mqtt_client import MqttClient

FOLDER = DEPLOY / "systemd"
UNITS = ("rookery.service", "rookery@.service")

#: Of 10, which is a service without any limits.
EXPOSURE = 1.5


def analyze(*arguments: str) -> tuple[int, str]:
    """Exit status, and what systemd-analyze says."""
    done = subprocess.run(["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """With the broker of this folder."""
    program = Path(sys.executable).with_name("rookery")
    assert program.exists()
    for name in UNITS:
        text = (FOLDER / name).read_text()
        assert text.count("/opt/rookery/bin/rookery ") == 1
        (tmp_path / name).write_text(text.replace("/opt/rookery/bin/rookery ", f"{program} "))
    return tmp_path


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_no_fault(units: Path, name: str) -> None:
    assert analyze("verify", str(units / name)) == (0, "")
    (units / name).write_text((units / name).read_text().replace("[Service]\n", "[Service]\nWatchdogSecs=1\n"))
    assert "Unknown key" in analyze("verify", str(units / name))[1]


@pytest.mark.parametrize("name", UNITS)
def test_what_a_broken_in_node_could_reach(units: Path, name: str) -> None:
    status, told = analyze("security", "--offline=yes", f"--threshold={EXPOSURE * 10:.0f}", str(units / name))
    assert status == 0, told
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", told)
    assert found is not None and float(found[1]) <= EXPOSURE


def values_of(name: str) -> dict[str, list[str]]:
    """What is set in [Service]."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / name).read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_units_differ_only_in_their_names() -> None:
    one, several = (values_of(name) for name in UNITS)
    assert {key for key in several if several[key] != one.get(key)} == {
        "Environment", "EnvironmentFile", "ExecStart", "StateDirectory", "RuntimeDirectory",
    }  # fmt: skip
    assert one.keys() == several.keys()


def test_times_and_statuses_are_those_of_the_broker() -> None:
    told, settings = values_of("rookery.service"), Settings()
    assert int(told["TimeoutStopSec"][0].removesuffix("s")) > settings.drain_delay_s + settings.drain_timeout_s + STOP_S
    assert told["RestartPreventExitStatus"] == [str(MISCONFIGURED)]
    # Else the embedded store would be ended together with the node that still needs it.
    assert told["KillMode"] == ["mixed"]


def test_the_kernel_knows_the_settings() -> None:
    lines = (DEPLOY / "sysctl.d" / "60-rookery.conf").read_text().splitlines()
    given = dict(line.split(" = ") for line in lines if line and not line.startswith("#"))
    assert len(given) > 5
    missing = [name for name in given if not Path("/proc/sys", *name.split(".")).exists()]
    # What belongs to no network namespace is hidden in some containers.
    assert [name for name in missing if not name.startswith("net.core.")] == []
    low, high = (int(port) for port in given["net.ipv4.ip_local_port_range"].split())
    listening = {int(port) for port in re.findall(r"(?m)^\s+bind :(\d+)", (DEPLOY / "haproxy.cfg").read_text())}
    # With those of Redis Cluster, Sentinel, and what Kubernetes gives to Services.
    listening |= {16379, 26379, *range(30000, 32768)}
    assert [port for port in listening if low <= port <= high] == []
    # Distributions with systemd have higher limits of descriptors than anybody would write here.
    assert [name for name in given if name.startswith("fs.")] == []


def test_the_files_are_put_in_place(tmp_path: Path) -> None:
    """As docs/systemd.md says, but for what needs another root and a systemd; again, it leaves alone what is there."""
    text = (ROOT / "docs" / "systemd.md").read_text()
    block = (
        text.partition("```\n")[2].partition("```")[0].replace(" -g rookery", "").replace("/etc/", f"{tmp_path}/etc/")
    )
    commands = "\n".join(line for line in block.splitlines() if not line.startswith("system"))
    for folder in ("systemd/system", "sysusers.d"):
        (tmp_path / "etc" / folder).mkdir(parents=True)
    config, secrets = (tmp_path / "etc" / "rookery" / name for name in ("rookery.toml", "rookery.env"))
    subprocess.run(["sh", "-e", "-c", commands], cwd=ROOT, check=True)
    assert {path.name for path in tmp_path.rglob("*.*") if path.is_file()} == {
        *UNITS, "rookery.conf", "rookery.toml", "rookery.env",
    }  # fmt: skip
    assert secrets.stat().st_mode & 0o777 == 0o600
    loaded = load({"config": str(config)}, {"ROOKERY_DATA_DIR": "/var/lib/rookery"}).settings
    assert (loaded.listen[0].port, str(loaded.data_dir)) == (1883, "/var/lib/rookery")
    secrets.write_text("ROOKERY_STORE_PASSWORD=x\n")
    config.write_text("# mine\n")
    subprocess.run(["sh", "-e", "-c", commands], cwd=ROOT, check=True)
    assert (secrets.read_text(), config.read_text()) == ("ROOKERY_STORE_PASSWORD=x\n", "# mine\n")


def test_the_user_is_made(tmp_path: Path) -> None:
    for name in ("passwd", "group"):
        (tmp_path / "etc").mkdir(exist_ok=True)
        (tmp_path / "etc" / name).write_text("")
    done = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", str(FOLDER / "rookery.sysusers.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [user] = values_of("rookery.service")["User"]
    assert re.search(rf"(?m)^{user}:", (tmp_path / "etc" / "passwd").read_text())


class ConfinedNode(BrokerProcess):
    """With the system calls that the unit leaves it."""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.deploy.confined", str(FOLDER / "rookery.service"), *super().command()]


async def test_a_node_lives_with_what_the_unit_leaves_it(tmp_path: Path) -> None:
    """Everything that asks most of the system: an embedded store, workers, TLS, HTTP, hashes in threads, a reload."""
    chain = Chain(tmp_path / "ca")
    issued = chain.server()
    node = ConfinedNode(
        tmp_path / "node",
        "embedded",
        listen=("tcp://127.0.0.1:0", f"tls://127.0.0.1:0?certfile={issued.certfile}&keyfile={issued.keyfile}"),
        http="127.0.0.1:0",
        arguments=("--workers", "2", "--authentication", "store"),
    )
    await trio.to_thread.run_sync(node.start)
    try:
        with admin_of(node) as admin:
            assert admin.put("/users/alice", json={"password": "a password", "scram": True}).status_code in (200, 201)
        os.kill(node.pid, signal.SIGHUP)
        async with await MqttClient.open(node.host, node.port) as client:
            connack = await client.connect(Connect(5, "a", True, 0, "alice", b"a password"))
            assert connack.reason_code == 0
    finally:
        status = await trio.to_thread.run_sync(node.terminate)
    assert status == 0 and "Operation not permitted" not in node.log(), node.log()


def test_what_the_unit_refuses_is_refused() -> None:
    """So that the test above means something."""
    script = "import os, socket\ntry:\n    {}\nexcept PermissionError:\n    print('refused')\n"
    for tried, refused in {
        "os.chown('/dev/null', 0, 0)": True,
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)": True,
        "__import__('mmap').mmap(-1, 4096, prot=7)": True,
        "socket.socket(socket.AF_INET6)": False,
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", "tests.deploy.confined", str(FOLDER / "rookery.service"), sys.executable, "-c",
             script.format(tried)],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        assert (done.stdout == "refused\n") == refused, (tried, done)
