"""The command line: output, exit statuses, and one line instead of a traceback."""

from __future__ import annotations

import io
import os
import platform
import re
import stat
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

import broker
from broker.auth.password_file import UserFile
from broker.cli import cli, main
from broker.cli.api_client import DEFAULT_URL, own_url
from broker.codec import compiled
from broker.config import SETTINGS, Settings
from broker.errors import ConfigError, StoreUnavailable

Run = Callable[[Settings, object], int]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("ROOKERY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stands for `broker.node`; its `run` is set by the test."""
    module = types.ModuleType("broker.node")
    monkeypatch.setitem(sys.modules, "broker.node", module)
    monkeypatch.setattr("broker.log.configure", lambda *_: None)
    return module


def _raising(error: BaseException) -> Run:
    def run(_settings: Settings, _reload: object) -> int:
        raise error

    return run


def _one_line(text: str) -> str:
    assert re.fullmatch(r"rookery: [^\n]+\n", text), text
    return text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rookery {broker.__version__}\n"
    assert main(["version"]) == 0
    core = "compiled" if compiled() else "interpreted"
    assert (
        capsys.readouterr().out == f"rookery {broker.__version__}\ncore: {core}, Python {platform.python_version()}\n"
    )


def test_help_lists_the_commands_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^  ([a-z][a-z-]+)  ", out, re.MULTILINE) == list(cli.commands)
    assert list(cli.commands) == [
        *("serve", "check-config", "config", "passwd", "ctl", "store", "probe", "import-mosquitto", "version")
    ]


def test_help_of_serve_has_every_setting_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    out = capsys.readouterr().out
    for setting in SETTINGS:
        assert re.search(rf"^  {setting.option}\b", out, re.MULTILINE), setting.option
        assert f"\n{setting.group}:\n" in out


def test_serve_runs_the_node_with_the_settings(node: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Settings] = []

    def run(settings: Settings, reload: object) -> int:
        seen.append(settings)
        return 7

    node.run = run  # type: ignore[attr-defined]
    arguments = ["serve", "--listen", "tcp://127.0.0.1:0", "--listen", "tcp://[::1]:0", "--store", "memory"]
    assert main([*arguments, "--no-retain-available", "--stall-timeout", "5s"]) == 7
    [settings] = seen
    assert [str(endpoint) for endpoint in settings.listen] == ["tcp://127.0.0.1:0", "tcp://[::1]:0"]
    assert (settings.store, settings.retain_available, settings.stall_timeout_s) == ("memory", False, 5.0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("data_dir is in use"), 2, "data_dir is in use"),
        (StoreUnavailable("no store at redis://h:1\nrefused"), 1, "no store at redis://h:1 refused"),
        (OSError(98, "Address already in use"), 1, "Address already in use"),
        (ExceptionGroup("trio", [ExceptionGroup("inner", [StoreUnavailable("gone")])]), 1, "gone"),
        (ExceptionGroup("trio", [ConfigError("wrong store")]), 2, "wrong store"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BaseExceptionGroup("trio", [KeyboardInterrupt()]), 130, "interrupted"),
    ],
)
def test_what_ends_a_node_is_one_line(
    node: types.ModuleType, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, said: str
) -> None:
    node.run = _raising(error)  # type: ignore[attr-defined]
    assert main(["serve"]) == status
    # After ^C click begins a new line: the terminal has just echoed the key.
    assert said in _one_line(capsys.readouterr().err.lstrip("\n"))


@pytest.mark.parametrize("error", [KeyError("defect"), ExceptionGroup("trio", [StoreUnavailable("x"), KeyError("y")])])
def test_a_defect_keeps_its_traceback(node: types.ModuleType, error: Exception) -> None:
    node.run = _raising(error)  # type: ignore[attr-defined]
    with pytest.raises(type(error)):
        main(["serve"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--listen", "quic://127.0.0.1"], "there are tcp://"),
        (["serve", "--listen", "tcp://0.0.0.0:1883"], "other machines can reach it"),
        (["serve", "--max-inflght", "5"], "--max-inflight"),
        (["serve", "extra"], "see `rookery serve --help`"),
        (["sevre"], "No such command 'sevre'"),
        (["check-config", "--max-qos", "9"], "must be at most 2"),
        (["config", "--config", "none.toml"], "none.toml"),
        (["passwd"], "Missing argument"),
        (["ctl", "health", "--http", "ftp://h"], "is no HTTP address"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in _one_line(captured.err)
    assert captured.out == ""


def test_wrong_variable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOKERY_STOER", "memory")
    assert main(["check-config"]) == 2
    assert "did you mean ROOKERY_STORE?" in _one_line(capsys.readouterr().err)


def test_check_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", "--max-qos", "1"]) == 0
    assert capsys.readouterr().out.startswith("configuration is valid: 1 settings given")
    Path("users").write_text("ann:secret\n")
    assert main(["check-config", "--authentication", "password_file?path=users"]) == 2
    assert "secret" not in _one_line(capsys.readouterr().err)


def test_config_tells_origins_and_hides_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("r.toml").write_text("max_qos = 1\nstore_password = 'hush'\n")
    monkeypatch.setenv("ROOKERY_DRAIN_RATE", "5")
    assert main(["config", "--config", "r.toml", "--store", "redis://ann:hush2@h/0"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: re.sub(r" +", " ", line) for line in out.splitlines()}
    assert lines["max_qos"] == "max_qos = 1 # r.toml:1"
    assert lines["store_password"] == "store_password = *** # r.toml:2"
    assert lines["store"] == "store = redis://h/0 # command line --store"
    assert lines["store_username"] == "store_username = ann # command line --store (in the URL)"
    assert lines["drain_rate"] == "drain_rate = 5 # environment ROOKERY_DRAIN_RATE"
    assert lines["max_inflight"] == "max_inflight = 100 # default"
    assert "hush" not in out
    assert list(lines) == [setting.name for setting in SETTINGS]


def _passwd(monkeypatch: pytest.MonkeyPatch, password: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(password + "\n"))
    return main(["passwd", "users", *arguments, "--stdin", "--iterations", "4096"])


def _is_password(user: str, password: str) -> bool:
    entry = UserFile(Path("users")).get(user)
    return entry is not None and entry.password is not None and entry.password.verify(password.encode())


def test_passwd_adds_changes_and_removes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _passwd(monkeypatch, "one", "ann") == 0
    assert stat.S_IMODE(Path("users").stat().st_mode) == 0o600
    assert _passwd(monkeypatch, "two", "b:ob") == 0
    assert _is_password("ann", "one")
    assert _is_password("b:ob", "two")

    text = "# keep me\n\n" + Path("users").read_text()
    Path("users").write_text(text)
    assert _passwd(monkeypatch, "three", "ann") == 0
    assert _is_password("ann", "three")
    assert not _is_password("ann", "one")
    changed = Path("users").read_text().splitlines()
    assert [line.split("$")[0] for line in changed] == ["# keep me", "", "ann:", "b:ob:"]

    assert main(["passwd", "-D", "users", "ann"]) == 0
    assert len(UserFile(Path("users"))) == 1
    assert main(["passwd", "-D", "users", "ann"]) == 1
    assert "has no user 'ann'" in _one_line(capsys.readouterr().err)
    assert [path.name for path in Path().iterdir()] == ["users"]


def test_passwd_keeps_both_ways_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds() -> list[str]:
        return [line.split("$")[0] for line in Path("users").read_text().splitlines()]

    assert _passwd(monkeypatch, "one", "ann", "--scram") == 0
    assert _passwd(monkeypatch, "x", "bob") == 0
    assert kinds() == ["ann:", "ann:SCRAM-SHA-512", "ann:SCRAM-SHA-256", "bob:"]
    before = Path("users").read_text().splitlines()
    assert _passwd(monkeypatch, "two", "ann") == 0  # no verifier of the old password stays
    assert kinds() == ["ann:", "ann:SCRAM-SHA-512", "ann:SCRAM-SHA-256", "bob:"]
    assert not set(before[:3]) & set(Path("users").read_text().splitlines())
    assert _passwd(monkeypatch, "three", "ann", "-H", "scram-sha-512") == 0
    assert kinds() == ["ann:SCRAM-SHA-512", "bob:"]
    assert _is_password("ann", "three")
    assert _passwd(monkeypatch, "four", "ann", "-H", "argon2id") == 0
    assert _is_password("ann", "four")
    assert Path("users").read_text().startswith("ann:$argon2id$v=19$")


def test_passwd_as_mosquitto_passwd(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passwd", "-c", "-b", "--iterations", "10", "users", "ann", "one"]) == 0
    Path("users").chmod(0o640)
    assert main(["passwd", "-b", "--iterations", "10", "users", "bob", "two"]) == 0
    assert stat.S_IMODE(Path("users").stat().st_mode) == 0o640
    assert _is_password("ann", "one") and _is_password("bob", "two")
    assert Path("users").read_text().startswith("ann:$7$10$")
    assert main(["passwd", "-c", "-b", "users", "carl", "three"]) == 0
    assert len(UserFile(Path("users"))) == 1
    for wrong in (["users"], ["-b", "users", "ann"], ["users", "ann", "x"], ["-U", "users", "ann"], ["-D", "users"]):
        assert main(["passwd", *wrong]) == 2
        assert "give FILE USER" in (said := _one_line(capsys.readouterr().err)) or "-U takes" in said


def test_passwd_upgrades_plain_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passwd", "-c", "-b", "--iterations", "10", "users", "ann", "one"]) == 0
    kept = Path("users").read_text()
    Path("users").write_text(f"# people\n{kept}bob:two: with a colon\r\n\n")
    assert main(["passwd", "-U", "--iterations", "10", "users"]) == 0
    text = Path("users").read_text()
    assert text.startswith(f"# people\n{kept}bob:$7$10$")
    assert _is_password("bob", "two: with a colon")
    Path("users").write_text("bob\n")
    assert main(["passwd", "-U", "users"]) == 1
    assert "line 1" in _one_line(capsys.readouterr().err)
    assert Path("users").read_text() == "bob\n"


def test_passwd_takes_one_spelling_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _passwd(monkeypatch, "one", "\u2168") == 0  # ROMAN NUMERAL NINE is IX (RFC 4013)
    assert _passwd(monkeypatch, "two", "IX") == 0
    assert len(UserFile(Path("users"))) == 1
    assert _is_password("IX", "two")


@pytest.mark.parametrize(
    ("password", "arguments", "said"),
    [
        ("", ["ann"], "empty"),
        ("x", ["#ann"], "begins with #"),
        ("x", [" ann"], "begins or ends with a space"),
        ("x", ["a\x07"], "user name"),
    ],
)
def test_passwd_refuses(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    password: str,
    arguments: list[str],
    said: str,
) -> None:
    assert _passwd(monkeypatch, password, *arguments) == 2
    assert said in _one_line(capsys.readouterr().err)
    assert not Path("users").exists()


def test_passwd_leaves_a_file_it_does_not_understand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("users").write_text("ann:$7$101$c2FsdA==$hash\n")
    assert _passwd(monkeypatch, "x", "bob") == 2
    assert "line 1" in _one_line(capsys.readouterr().err)
    assert Path("users").read_text() == "ann:$7$101$c2FsdA==$hash\n"


@pytest.fixture
def answers() -> Iterator[tuple[str, list[int], list[str]]]:
    """A small HTTP server: its address, the statuses it will answer with, the paths it was asked for."""
    statuses: list[int] = []
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(statuses.pop(0))
            self.end_headers()
            self.wfile.write(b'{"status": "x"}\n')

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}", statuses, paths
        server.shutdown()
        thread.join()


def test_ctl_health(answers: tuple[str, list[int], list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    address, statuses, paths = answers
    statuses += [200, 503]
    assert main(["ctl", "health", "--http", f"http://{address}/"]) == 0
    assert main(["ctl", "health", "--http", address]) == 1
    assert capsys.readouterr().out == '{"status": "x"}\n' * 2
    assert paths == ["/readyz", "/readyz"]


def test_ctl_asks_the_node_of_this_machine(
    answers: tuple[str, list[int], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The health check of an image does not know the port."""
    address, statuses, paths = answers
    file = tmp_path / "rookery.toml"
    monkeypatch.setenv("ROOKERY_CONFIG", str(file))
    statuses += [200, 404, 200]
    file.write_text(f'http = "{address}"\nsomething = "else that is wrong"\n')
    assert main(["ctl", "health"]) == 0
    assert main(["ctl", "api", "nodes", "list", "--key", "rk_a_b"]) == 4  # this one has no API
    monkeypatch.setenv("ROOKERY_HTTP", address.replace("127.0.0.1", "0.0.0.0"))
    file.write_text("nonsense")
    assert main(["ctl", "health"]) == 0
    assert [path.partition("?")[0] for path in paths] == ["/readyz", "/api/v1/nodes", "/readyz"]
    capsys.readouterr()
    monkeypatch.setenv("ROOKERY_HTTP", "off")
    assert main(["ctl", "health"]) == 2
    assert "http is off" in _one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("said", "url"),
    [
        ("[::]:8080", "http://[::1]:8080"),
        ("10.0.0.1:8080", "http://10.0.0.1:8080"),
        ("nonsense", DEFAULT_URL),
        ("", DEFAULT_URL),
    ],
)
def test_where_the_node_of_this_machine_is(monkeypatch: pytest.MonkeyPatch, said: str, url: str) -> None:
    monkeypatch.setenv("ROOKERY_HTTP", said)
    assert own_url() == url
    monkeypatch.delenv("ROOKERY_HTTP")
    monkeypatch.delenv("ROOKERY_CONFIG", raising=False)
    assert own_url() == DEFAULT_URL


def test_ctl_health_without_a_node(
    answers: tuple[str, list[int], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    # A port that accepts and closes: nothing else can take it meanwhile.
    address, _, _ = answers
    assert main(["ctl", "health", "--http", f"https://{address}"]) == 1
    assert f"no answer from https://{address}/readyz" in _one_line(capsys.readouterr().err)


def test_as_a_process(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "broker", "check-config", "--store", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "store = 'nowhere' (command line --store): must be embedded" in _one_line(done.stderr)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("ctl bans list", "ROOKERY_CONFIG, or ask a node: rookery ctl api bans"),
        ("ctl users show ann", "ROOKERY_CONFIG, or ask a node: rookery ctl api users"),
        ("ctl rules list", "ROOKERY_CONFIG, or ask a node: rookery ctl api rules"),
        ("store status", "name that of a node with --config or ROOKERY_CONFIG"),
        ("store migrate", "name that of a node with --config or ROOKERY_CONFIG"),
    ],
)
def test_no_store_without_a_configuration(command: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 1
    assert _one_line(capsys.readouterr().err).rstrip().endswith(said)
    # Who named a store knows which one it is.
    assert main([*command.split(), "--data-dir", "elsewhere"]) == 1
    assert "ROOKERY_CONFIG" not in _one_line(capsys.readouterr().err)


def test_rules_without_a_configuration_give_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = ["ctl", "rules", "test", "publish", "a/b c"]
    monkeypatch.setenv("ROOKERY_API_URL", "http://192.0.2.1:18083")
    for more in ([], ["--store", "redis://192.0.2.1"]):
        assert main([*question, *more]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert "ROOKERY_CONFIG" in _one_line(told.err)
        assert "rookery ctl api rules test --action publish --topic 'a/b c'" in told.err
    (tmp_path / "open.toml").write_text('node_name = "a"\n')
    assert main([*question, "--config", "open.toml"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  open.toml names no authorization, so a node with it allows everything"
    ]
    monkeypatch.setenv("ROOKERY_CONFIG", "open.toml")
    assert main(question) == 0


def test_rules_of_some_listeners_need_the_listener(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "acl").write_text("topic write up\n")
    source = '[[authorization]]\ntype = "acl_file"\npath = "acl"\nlisteners = ["inside"]\n'
    inside = '[[listen]]\nurl = "tcp://127.0.0.1:1883"\nname = "inside"\n'
    (tmp_path / "one.toml").write_text(inside + source)
    outside = inside.replace("inside", "outside").replace("1883", "1884")
    (tmp_path / "two.toml").write_text(inside + outside + source)
    question = ["ctl", "rules", "test", "publish", "up", "--config"]
    assert main([*question, "one.toml"]) == 0
    assert main([*question, "two.toml"]) == 2
    assert "give --listener (inside, outside)" in _one_line(capsys.readouterr().err)
    assert main([*question, "two.toml", "--listener", "inside"]) == 0
    capsys.readouterr()
    assert main([*question, "two.toml", "--listener", "outside"]) == 1
    assert "  acl_file: only about clients of inside\n" in capsys.readouterr().out
    assert main([*question, "two.toml", "--listener", "insid"]) == 2
