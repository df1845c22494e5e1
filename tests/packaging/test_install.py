"""The package as users install it: pipx, in a home of its own, with all that comes from the package index."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import broker
from tests.integration.paho_client import Paho
from tests.kit.broker_process import BrokerProcess
from tests.packaging.compiled import ROOT, call
from tests.packaging.conftest import Packages

#: Whichever test comes first builds the packages, which takes a minute of an idle processor.
pytestmark = pytest.mark.timeout(600)

_SHELL_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Home:
    """Where pipx puts what."""

    folder: Path
    bin: Path
    environment: dict[str, str]

    @property
    def rookery(self) -> Path:
        return self.bin / "rookery"


class Installed(BrokerProcess):
    """A node of the installed command, which finds neither the tree nor any program but its own."""

    def __init__(self, home: Home, directory: Path, store: str) -> None:
        super().__init__(directory, store, environment={"PYTHONPATH": "", "PATH": str(home.bin)})
        self._rookery = home.rookery

    def command(self) -> list[str]:
        python, _, _, *arguments = super().command()
        assert python == sys.executable
        return [str(self._rookery), *arguments]


@pytest.fixture(scope="module")
def home(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XDG_DATA_HOME")},
        "HOME": str(folder),
        "PIPX_HOME": str(folder / "pipx"),
        "PIPX_BIN_DIR": str(folder / "bin"),
        "PIPX_MAN_DIR": str(folder / "man"),
    }
    pipx = [sys.executable, "-m", "pipx", "install", "--python", sys.executable]
    call([*pipx, f"rookery[embedded] @ {packages.compiled.as_uri()}"], environment, folder)
    path = {"PATH": f"{folder / 'bin'}:{_SHELL_PATH}", "HOME": str(folder), "TERM": "dumb", "LANG": "C.UTF-8"}
    return Home(folder, folder / "bin", path)


@pytest.fixture
def node(home: Home, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[BrokerProcess]:
    node = Installed(home, tmp_path / "node", request.param)
    node.start()
    yield node
    assert node.terminate() == 0


def _said(home: Home, *command: str) -> str:
    return call(command, home.environment, home.folder)


def test_pipx_installs_the_wheel(home: Home) -> None:
    assert _said(home, "rookery", "version").splitlines() == [
        f"rookery {broker.__version__}",
        f"core: compiled, Python {sys.version.split()[0]}",
    ]
    assert "serve" in _said(home, "rookery", "--help")
    assert "configuration is valid" in _said(home, "rookery", "check-config", "--store", "memory")


@pytest.mark.parametrize("node", ["memory", "embedded"], indirect=True)
def test_the_installed_command_serves(node: BrokerProcess) -> None:
    """With the extra `embedded` there is nothing else to install."""
    subscriber, publisher = Paho(node, client_id="subscriber").connect(), Paho(node, client_id="publisher").connect()
    subscriber.subscribe("greetings/#", 1)
    publisher.publish("greetings/all", b"hello", 1)
    message = subscriber.take()
    assert (message.topic, message.payload) == ("greetings/all", b"hello")
    publisher.close()
    subscriber.close()


@pytest.mark.parametrize("page", ["rookery", "rookery.toml"])
def test_manual_pages_are_found(home: Home, page: str) -> None:
    where = _said(home, "man", "-M", str(home.folder / "man"), "-w", page).strip()
    assert where.startswith(str(home.folder))
    assert "MQTT broker" in _said(home, "man", "-M", str(home.folder / "man"), "rookery")


@pytest.mark.parametrize("name", ["man1/rookery.1", "man5/rookery.toml.5"])
def test_manual_pages_are_well_formed(name: str) -> None:
    page = ROOT / "share" / "man" / name
    lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True)
    # A version stands there: the page is the same whenever it is written.
    assert [line for line in lint.stdout.splitlines() if "missing date" not in line] == []
    shown = subprocess.run(
        ["man", "--warnings", "-l", page], capture_output=True, text=True, env={**os.environ, "LANG": "C.UTF-8"}
    )
    assert (shown.returncode, shown.stderr) == (0, "")


_BASH = """
source "$1/bash-completion/completions/rookery"
COMP_WORDS=(rookery che); COMP_CWORD=1
_rookery_completion rookery
printf '%s\\n' "${COMPREPLY[@]}"
"""

_ZSH = """
eval "$2"
autoload -Uz compinit && compinit -u -D
[[ $_comps[rookery] == _rookery ]] || exit 3
_describe() { print -rl -- "${(@P)3}" } # what the completion system would offer
compadd() { print -rl -- "$@" }
words=(rookery che); CURRENT=2
_rookery
"""

_FISH = """
set --prepend fish_complete_path $argv[1]/fish/vendor_completions.d
complete --do-complete "rookery che"
"""


@pytest.mark.parametrize(
    "command",
    [["bash", "--norc", "-c", _BASH, "bash"], ["zsh", "-f", "-c", _ZSH, "zsh"], ["fish", "--no-config", "-c", _FISH]],
    ids=lambda command: command[0],
)
def test_shells_complete_words(home: Home, command: list[str]) -> None:
    docs = (ROOT / "docs" / "install.md").read_text()
    (told,) = re.findall(r"(?m)^fpath=.*$", docs)  # what zsh has to be told
    offered = _said(home, *command, str(home.folder / ".local" / "share"), told)
    assert "check-config" in offered
    assert "serve" not in offered.split()
