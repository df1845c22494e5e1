"""`rookery ctl` against a server that says what a test wants: requests, output, exit statuses."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import click
import pytest

import broker.admin.catalogue  # noqa: F401  # declares the operations
from broker.admin.operations import OPERATIONS
from broker.cli import cli, main
from broker.cli.ctl import SUBJECTS, api, ctl
from broker.cli.manifest import FILE, PAGE, Described, described, written
from broker.cli.operate import OperationCommand, option_name, path_names, request_of
from broker.cli.tables import Table, cell, moment, use_colour
from tests.kit.certificates import Chain

Answer = tuple[int, Any]


class _Quiet(ThreadingHTTPServer):
    """Says nothing of clients that leave."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Node:
    """Answers `METHOD /path` (without the query) with what `answers` holds: a value, or a function of the request."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer | Callable[[str, Any], Answer]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        node = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length)
                body = json.loads(raw) if raw else None
                node.requests.append((self.command, self.path, body))
                node.headers.append(dict(self.headers))
                found = node.answers[f"{self.command} {self.path.partition('?')[0].removeprefix('/api/v1')}"]
                status, value = found(self.path, body) if callable(found) else found
                content = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.answer)

        self.server = _Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Node]:
    for name in list(os.environ):
        if name.startswith("ROOKERY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    made = Node()
    monkeypatch.setenv("ROOKERY_API_URL", made.url)
    thread = Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


NODES = {
    "items": [
        {"node": "a", "status": "ready", "connections": 12, "store_round_trip_ms": 0.25},
        {"node": "b\x1b[2J", "status": "draining", "connections": 7, "store_round_trip_ms": 1.5},
    ]
}


# -- what there is


def test_the_description_is_that_of_the_declarations() -> None:
    assert FILE.read_text("utf-8") == written(), "run `make generate`"


def test_every_operation_has_a_command() -> None:
    context = click.Context(ctl, info_name="ctl")
    for name, declared in OPERATIONS.items():
        operation = described()[name]
        group = api.get_command(context, operation.subject.replace("_", "-"))
        assert isinstance(group, click.Group), name
        command = group.get_command(context, operation.verb)
        assert command is not None, name
        assert operation.verb in group.list_commands(context), name
        assert (operation.method, operation.path, operation.scope) == (declared.method, declared.path, declared.scope)


def test_every_argument_can_be_given() -> None:
    for operation in described().values():
        command = OperationCommand(operation)
        given = {name for parameter in command.params for name in parameter.opts}
        positional = [each.metavar for each in command.params if isinstance(each, click.Argument)]
        assert positional == [name.upper() for name in path_names(operation)], operation.name
        for argument in operation.arguments:
            if argument.name in path_names(operation) and not argument.inside:
                continue
            if operation.answer == PAGE and argument.name in ("cursor", "limit"):
                continue
            assert option_name(argument) in given, f"{operation.name}: {argument.name}"


def test_no_option_is_there_twice() -> None:
    for operation in described().values():
        spelled = [name for each in OperationCommand(operation).params for name in (*each.opts, *each.secondary_opts)]
        assert len(spelled) == len(set(spelled)), operation.name


def test_every_subject_is_explained() -> None:
    assert {each.subject for each in described().values()} <= SUBJECTS.keys()


def test_subjects_of_the_store_are_in_the_api_too() -> None:
    context = click.Context(ctl)
    of_api = set(api.list_commands(context))
    assert of_api == {each.subject.replace("_", "-") for each in described().values()}
    assert of_api <= set(ctl.list_commands(context))


@pytest.mark.parametrize("name", sorted(described()))
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    operation = described()[name]
    assert main(["ctl", "api", operation.subject.replace("_", "-"), operation.verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert operation.scope in out


def test_a_simple_call_needs_nothing_of_the_broker(node: Node) -> None:
    node.answers["GET /nodes"] = (200, NODES)
    script = (
        "import sys; from broker.cli import main; assert main(sys.argv[1:]) == 0;"
        "heavy = {'trio', 'msgspec', 'redis', 'hiredis', 'starlette', 'broker.server'} & sys.modules.keys();"
        "assert not heavy, heavy"
    )
    for arguments in (["ctl", "--help"], ["ctl", "nodes", "list"]):
        subprocess.run(
            [sys.executable, "-c", script, *arguments], check=True, capture_output=True, cwd=Path(__file__).parents[2]
        )


# -- what is asked


def test_tables_escape_and_align(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers["GET /nodes"] = (200, NODES)
    assert main(["ctl", "nodes"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NODE      STATUS    CONNECTIONS  STORE ROUND TRIP",
        "a         ready              12            0.25ms",
        "b\\x1b[2J  draining            7             1.5ms",
    ]


def test_json_is_that_of_the_api(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers["GET /nodes"] = (200, NODES)
    node.answers["GET /nodes/a"] = (200, NODES["items"][0])
    assert main(["ctl", "nodes", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == NODES["items"]
    assert main(["ctl", "nodes", "list", "--jsonl"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == NODES["items"]
    assert main(["ctl", "nodes", "show", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == NODES["items"][0]


def test_a_path_holds_any_name(node: Node) -> None:
    node.answers["GET /nodes/a%2Fb%20%3F%25%C3%BC"] = (200, NODES["items"][0])
    assert main(["ctl", "nodes", "show", "a/b ?%ü"]) == 0


def test_nothing_is_printed_where_nothing_is_said(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers["POST /nodes/a/undrain"] = (204, None)
    assert main(["ctl", "nodes", "undrain", "a"]) == 0
    assert capsys.readouterr() == ("", "")


def test_keys_are_sent_as_what_they_are(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node.answers["GET /nodes"] = (200, NODES)
    (tmp_path / "key").write_text("rk_file_1\nmore\n")
    monkeypatch.setenv("ROOKERY_API_KEY", "rk_environment_1")
    for arguments, expected in (
        ([], "Bearer rk_environment_1"),
        (["--key", "ann:s:e"], "Basic YW5uOnM6ZQ=="),
        (["--key", "", "--key-file", "key"], "Bearer rk_file_1"),
    ):
        assert main(["ctl", "nodes", "list", *arguments]) == 0
        assert node.headers[-1]["Authorization"] == expected


@pytest.mark.parametrize(
    ("status", "exit_status"), [(401, 3), (403, 3), (404, 4), (400, 1), (409, 1), (503, 5), (504, 5)]
)
def test_a_refusal_is_one_line(node: Node, capsys: pytest.CaptureFixture[str], status: int, exit_status: int) -> None:
    node.answers["GET /nodes/x"] = (status, {"title": "no", "detail": "there is\nno 'x'", "status": status})
    assert main(["ctl", "nodes", "show", "x"]) == exit_status
    captured = capsys.readouterr()
    assert captured.err.startswith("rookery: there is no 'x'")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_refusal_does_not_steer_the_terminal(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers["GET /nodes/x"] = (409, {"detail": "session of \x1b]0;x\x07 is connected"})
    assert main(["ctl", "nodes", "show", "x"]) == 1
    assert capsys.readouterr().err == "rookery: session of \\x1b]0;x\\x07 is connected\n"


def test_a_server_of_another_kind(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers["GET /nodes/x"] = (404, b"<html>")
    assert main(["ctl", "nodes", "show", "x"]) == 4
    assert "no API here" in capsys.readouterr().err


def test_nobody_there(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ctl", "nodes", "--url", "http://127.0.0.1:1"]) == 5
    assert capsys.readouterr().err == "rookery: http://127.0.0.1:1: Connection refused\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "ftp://h"], "is no HTTP address"),
        (["--url", "http://ann:secret@h"], "give the key with"),
        (["--url", "http://h:x"], "is no HTTP address"),
        (["--key", "", "--key-file", "none"], "--key-file none"),
        (["--url", "https://h", "--ca-file", "none"], "--ca-file none"),
        (["--key", "rk_ü"], "do not print"),
    ],
)
def test_wrong_usage(node: Node, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["ctl", "nodes", "list", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_https_trusts_whom_it_is_told(
    node: Node, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    chain = Chain(tmp_path_factory.mktemp("chain"))
    issued = chain.server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certfile, issued.keyfile)
    node.server.socket = context.wrap_socket(node.server.socket, server_side=True)
    url = node.url.replace("http://127.0.0.1", "https://localhost")
    node.answers["GET /nodes"] = (200, NODES)
    assert main(["ctl", "nodes", "--url", url, "--ca-file", str(chain.ca)]) == 0
    capsys.readouterr()
    assert main(["ctl", "nodes", "--url", url]) == 5
    assert "certificate" in capsys.readouterr().err.lower()


# -- pages


@pytest.fixture
def things(monkeypatch: pytest.MonkeyPatch, node: Node) -> list[dict[str, Any]]:
    """`clients.list`, as far as paging goes."""
    found = [{"client_id": f"c{number}", "connected": True} for number in range(1200)]

    def answer(path: str, body: Any) -> Answer:
        from urllib.parse import parse_qs, urlsplit

        query = parse_qs(urlsplit(path).query)
        start, count = int(query.get("cursor", ["0"])[0]), int(query["limit"][0])
        end = start + count
        return 200, {
            "items": found[start:end],
            "cursor": str(end) if end < len(found) else None,
            "missing_nodes": ["b"] if start else [],
        }

    node.answers["GET /clients"] = answer
    return found


def test_tables_end_where_they_are_told(
    node: Node, things: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ctl", "clients"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 101
    assert "the first 100; more with --limit N or --all" in captured.err
    assert main(["ctl", "clients", "list", "--limit", "3"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["CLIENT", "c0", "c1", "c2"]


def test_all_pages_and_who_did_not_answer(
    node: Node, things: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--json", "--jsonl", "--all"):
        assert main(["ctl", "clients", "list", option]) == 6
        captured = capsys.readouterr()
        assert captured.err == "# not complete: no answer from b\n"
        if option == "--json":
            assert json.loads(captured.out) == things
        elif option == "--jsonl":
            assert [json.loads(line) for line in captured.out.splitlines()] == things
        else:
            assert len(captured.out.splitlines()) == 1201


def test_an_empty_list(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers["GET /clients"] = (200, {"items": [], "cursor": None, "missing_nodes": []})
    assert main(["ctl", "clients", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["ctl", "clients", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


# -- written by hand


def test_drain_waits_until_nobody_is_left(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([5, 2, 0])
    monkeypatch.setattr("broker.cli.draining.POLL_S", 0)
    node.answers["POST /nodes/a/drain"] = (204, None)
    node.answers["GET /nodes/a"] = lambda path, body: (200, {"node": "a", "connections": next(left)})
    assert main(["ctl", "nodes", "drain", "a", "--wait"]) == 0
    assert [method for method, _, _ in node.requests] == ["POST", "GET", "GET", "GET"]
    node.answers["GET /nodes/a"] = (404, {"detail": "no such node"})
    assert main(["ctl", "nodes", "drain", "a", "--wait"]) == 0


def test_drain_waits_so_long(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers["POST /nodes/a/drain"] = (204, None)
    node.answers["GET /nodes/a"] = (200, {"node": "a", "connections": 3})
    assert main(["ctl", "nodes", "drain", "a", "--wait", "--wait-for", "0"]) == 1
    assert "still has 3 connections" in capsys.readouterr().err


def test_publish(node: Node, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    node.answers["POST /messages"] = (200, {"matched": 3})
    (tmp_path / "text").write_bytes(b"from a file\n")
    (tmp_path / "bytes").write_bytes(b"\xff\x00")
    arguments = ["a/b", "hello", "--qos", "1", "--retain", "--user-property", "k=v=w", "--content-type", "text/plain"]
    assert main(["ctl", "publish", *arguments]) == 0
    assert node.requests[-1][2] == {
        "topic": "a/b",
        "payload": "hello",
        "payload_encoding": "plain",
        "qos": 1,
        "retain": True,
        "properties": {"content_type": "text/plain", "user_properties": [["k", "v=w"]]},
    }
    assert "matched  3" in capsys.readouterr().out
    assert main(["ctl", "publish", "t", "-f", "text"]) == 0
    assert node.requests[-1][2] == {"topic": "t", "payload": "from a file\n", "payload_encoding": "plain"}
    assert main(["ctl", "messages", "publish", "t", "-f", "bytes"]) == 0
    assert node.requests[-1][2] == {"topic": "t", "payload": "/wA=", "payload_encoding": "base64"}
    assert main(["ctl", "publish", "t", "x", "-f", "bytes"]) == 2
    assert main(["ctl", "publish", "t", "x", "--user-property", "k"]) == 2


def _events(*values: Any) -> bytes:
    return b": hello\r\n\r\n" + b"".join(b"event: e\ndata: %s\n\n" % json.dumps(value).encode() for value in values)


def test_trace_begins_follows_and_ends(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {
            "at_ms": 1_700_000_000_123,
            "node": "a",
            "seq": 1,
            "client_id": "c\x07",
            "direction": "in",
            "text": "CONNECT",
            "details": {"x": 1},
        },
        {
            "at_ms": 1_700_000_000_456,
            "node": "b",
            "seq": 1,
            "client_id": "c",
            "direction": "out",
            "text": "PUBLISH",
            "details": {"payload": "x"},
        },
    ]
    node.answers["POST /traces"] = (200, {"id": "t1"})
    node.answers["GET /traces/t1/follow"] = (200, _events(*lines))
    node.answers["POST /traces/t1/stop"] = (200, {"id": "t1"})
    assert main(["ctl", "trace", "c", "--for", "2m"]) == 0
    assert node.requests[0][2] == {"client_id": "c", "duration_s": 120, "payload": False}
    assert [path for _, path, _ in node.requests] == [f"/api/v1/traces{end}" for end in ("", "/t1/follow", "/t1/stop")]
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("20.123 a c\\x07 < CONNECT")
    assert second.endswith("20.456 b c > PUBLISH payload=x")
    assert main(["ctl", "trace", "--topic", "a/#", "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines
    assert main(["ctl", "trace", "c", "--ip", "::1"]) == 2


def test_a_stream_ends_with_an_error(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    error = b'event: error\ndata: {"status": 503, "title": "the store cannot be reached"}\n\n'
    node.answers["GET /traces/t1/follow"] = (200, _events({"at_ms": 1, "text": "x"}) + error)
    assert main(["ctl", "trace", "follow", "t1", "--json"]) == 5
    captured = capsys.readouterr()
    assert captured.out == '{"at_ms":1,"text":"x"}\n'
    assert captured.err == "rookery: the store cannot be reached\n"
    assert main(["ctl", "trace", "follow", "t1", "--count", "1"]) == 0


def test_secrets_are_read_from_standard_input(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    node.answers["PUT /users/ann"] = (200, {"username": "ann"})
    monkeypatch.setattr(sys, "stdin", io.StringIO("hush\n"))
    assert main(["ctl", "api", "users", "put", "ann", "--password", "-"]) == 0
    assert node.requests[-1][2]["password"] == "hush"


# -- text


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("session_expiry_s", 7 * 86400, "7d"),
        ("uptime_s", 7500.4, "2h05m"),
        ("latency_ms", 1500, "1.5s"),
        ("queued_bytes", 1536, "1.5 KiB"),
        ("bytes_in_per_s", 10 * 1024 * 1024, "10.0 MiB"),
        ("messages_in_per_s", 1234.56, "1,234.6"),
        ("retain", False, "no"),
        ("username", None, "-"),
        ("nodes", ["a", "b"], "a, b"),
        ("client_id", "a\n\u202eb", "a\\n\\u202eb"),
    ],
)
def test_values_for_people(field: str, value: Any, text: str) -> None:
    assert cell(field, value) == text


def test_moments_are_local_and_have_an_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert moment(1_700_000_000, 1_700_000_090) == "2023-11-15 03:43:20+05:30 (1m30s ago)"
        assert moment(1_700_000_000, 1_699_990_000) == "2023-11-15 03:43:20+05:30 (in 2h46m)"
        assert moment(1e30).startswith("1e+30")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_wide_characters_align() -> None:
    rows = [{"a": "温度", "b": "x"}, {"a": "e\u0301t", "b": "y"}, {"a": "x" * 100, "b": "z"}]
    lines = Table(["a", "b"], False).lines(rows)
    assert lines[1] == "温度" + " " * 56 + "  x"
    assert lines[2] == "e\u0301t" + " " * 58 + "  y"
    assert lines[3] == "x" * 59 + "…  z"


def test_colours_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not use_colour()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert use_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_colour()
    assert Table(["status"], True).lines([{"status": "ready"}])[1] == "\x1b[32mready\x1b[0m"


# -- shells


def test_completion_scripts_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh"):
        assert main(["ctl", "completion", shell]) == 0
        script = capsys.readouterr().out
        program = shutil.which(shell)
        if program is None and shell != "bash":
            continue
        assert program is not None
        subprocess.run([program, "-n"], input=script.encode(), check=True, capture_output=True)
    assert main(["ctl", "completion", "fish"]) == 0
    assert "complete" in capsys.readouterr().out


def _completed(words: str, **environment: str) -> list[str]:
    script = Path(sys.executable).with_name("rookery")
    made = subprocess.run(
        [str(script)],
        env={**os.environ, "_ROOKERY_COMPLETE": "bash_complete", "COMP_WORDS": words, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return [line.partition(",")[2] for line in made.stdout.splitlines()]


def test_words_are_completed(node: Node) -> None:
    node.answers["GET /nodes"] = (200, {"items": [{"node": "north"}, {"node": "south"}]})
    assert {"list", "drain"} <= set(_completed("rookery ctl nodes ", COMP_CWORD="3"))
    assert _completed("rookery ctl nodes drain n", COMP_CWORD="4") == ["north"]
    node.answers["GET /nodes"] = (
        200,
        {"items": [{"node": name} for name in ("n", "n$(x)", "n;x", "n x", "n*", "n`x`")]},
    )
    assert _completed("rookery ctl nodes drain n", COMP_CWORD="4") == ["n"]
    node.answers["GET /nodes"] = (401, {})
    assert _completed("rookery ctl nodes drain n", COMP_CWORD="4") == [""]


def test_bash_takes_the_script(node: Node) -> None:
    """The script defines a completion that bash uses for `rookery`."""
    rookery = Path(sys.executable).with_name("rookery")
    script = f"source <({rookery} ctl completion bash) && complete -p rookery"
    made = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True)
    assert "rookery" in made.stdout


def test_the_group_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ctl", "--help"]) == 0
    out = capsys.readouterr().out
    for name in ("health", "nodes", "users", "api", "completion"):
        assert f"\n  {name} " in out
    assert isinstance(cli, click.Group)


def test_lists_send_their_arguments_as_texts() -> None:
    operation = Described("x.list", "viewer", "GET", "/x/{a:path}", "", "", PAGE, [], {})
    path, query, body = request_of(operation, {"a": "/t//u v", "flag": True, "many": ["1", "2"], "n": 3})
    assert (path, body) == ("/x//t//u%20v", None)
    assert query == [("flag", "true"), ("many", "1"), ("many", "2"), ("n", "3")]
