"""Log lines."""

from __future__ import annotations

import datetime
import io
import json
import logging
import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from broker import log


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    root.setLevel(level)


def _line(format: str, level: str = "info", **fields: object) -> str:  # noqa: A002
    stream = io.StringIO()
    log.configure(level, format, stream)
    log.get_logger("broker.test").info("listener.started", **fields)
    return stream.getvalue()


def test_text_line() -> None:
    line = _line("text", url="tcp://127.0.0.1:1883", count=3, client_id="a b", empty="", none=None, data=b"x\xff")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT[\d:.]+Z info    listener\.started url=tcp://127\.0\.0\.1:1883 count=3"
        r' client_id="a b" empty="" none=None data="x\\\\xff" logger=broker\.test\n',
        line,
    ), line


def test_time_of_a_full_second(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return cls(2026, 1, 2, 3, 4, 5, 0, tz)

    monkeypatch.setattr("structlog.processors.datetime", SimpleNamespace(datetime=Clock, timezone=datetime.timezone))
    assert _line("text").startswith("2026-01-02T03:04:05.000000Z info ")


@pytest.mark.parametrize("value", ["a\nb", "a\x1b[31m", "a\u2028b", "a\x9bb", 'a"b', "a=b", "\ud800", "\u202e"])
def test_what_a_client_sent_stays_one_word(value: str) -> None:
    line = _line("text", client_id=value)
    assert line.count("\n") == 1
    assert line.isascii()
    [word] = re.findall(r'client_id=("(?:[^"\\]|\\.)*") ', line)
    assert json.loads(word) == value


def test_what_a_client_sent_begins_no_line_of_a_traceback() -> None:
    stream = io.StringIO()
    log.configure("info", "text", stream)
    try:
        raise ValueError("bad topic 'a\n2026-01-01T00:00:00Z info    node.stopped\r2026\x1b[2J\u2028x'")
    except ValueError:
        log.get_logger("broker.test").exception("server.task_failed")
    first, *trace = stream.getvalue().removesuffix("\n").split("\n")
    assert "server.task_failed" in first
    assert trace
    assert all(line.startswith("  ") for line in trace)
    assert "\\r2026\\x1b[2J\\u2028x" in trace[-1]
    assert all(line.isprintable() for line in trace)


def test_json_line() -> None:
    line = _line("json", client_id="a\nb", count=3, ok=True, obj=frozenset({1}))
    assert line.count("\n") == 1
    event = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", event.pop("timestamp"))
    assert event == {
        "level": "info",
        "event": "listener.started",
        "logger": "broker.test",
        "client_id": "a\nb",
        "count": 3,
        "ok": True,
        "obj": "frozenset({1})",
    }


@pytest.mark.parametrize("format", ["text", "json"])
def test_long_values_are_cut(format: str) -> None:  # noqa: A002
    assert len(_line(format, client_id="x" * 65535)) < 2 * log.VALUE_LIMIT


@pytest.mark.parametrize("level", log.LEVELS)
def test_level(level: str) -> None:
    stream = io.StringIO()
    log.configure(level, "text", stream)
    logger = log.get_logger("broker.test")
    for name in log.LEVELS:
        getattr(logger, name)(f"e.{name}")
    assert re.findall(r"e\.(\w+)", stream.getvalue()) == list(log.LEVELS[log.LEVELS.index(level) :])


@pytest.mark.parametrize("format", ["text", "json"])
def test_tracebacks_and_logs_of_libraries(format: str) -> None:  # noqa: A002
    stream = io.StringIO()
    log.configure("info", format, stream)
    try:
        raise KeyError("why")
    except KeyError:
        log.get_logger("broker.test").exception("task.failed")
    logging.getLogger("hypercorn.error").warning("port %d", 5)
    out = stream.getvalue()
    assert "KeyError: 'why'" in out
    assert "Traceback" in out
    assert "port 5" in out
    assert "hypercorn.error" in out
