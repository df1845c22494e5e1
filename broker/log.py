"""Structured logs on standard error: `event key=value …` or one JSON object per line.

Events have stable dotted names (`listener.started`); no payloads, no secrets, nothing per message above debug.
The libraries' own logs (hypercorn) come out in the same form.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Final, TextIO

import structlog

LEVELS = ("debug", "info", "warning", "error")

#: Every line begins with as many characters: ISO 8601 leaves out what would be .000000.
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"

#: Longer values are cut: a client decides how long its client id or topic is.
VALUE_LIMIT = 512

#: Warnings and errors that are remembered.
RECENT_LINES: Final = 500


class Recent(logging.Handler):
    """The last warnings and errors of this process, whatever the level of the log is, oldest first."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        #: Time since the epoch in seconds, level, event, and the other fields as text.
        self.lines: deque[tuple[float, str, str, dict[str, str]]] = deque(maxlen=RECENT_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if isinstance(record.msg, dict):
            fields = dict(record.msg)
            event = _cut(fields.pop("event", ""))
        else:
            fields, event = {"logger": record.name}, _cut(record.getMessage())
        for name in ("level", "timestamp"):
            fields.pop(name, None)
        if fields.pop("exc_info", None) or record.exc_info:
            fields["exception"] = _cause(record)
        shown = {name: _cut(value) for name, value in fields.items() if not name.startswith("_")}
        self.lines.append((record.created, record.levelname.lower(), event, shown))


def _cause(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else sys.exc_info()[1]
    return "" if error is None else f"{type(error).__name__}: {error}"


recent: Final = Recent()


def configure(level: str = "info", format: str = "text", stream: TextIO | None = None) -> None:  # noqa: A002
    """Send all logs of `level` and above to `stream` (standard error) as `text` or `json`; may be called again."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt=_TIME, utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    render = _render_json if format == "json" else _render_text
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                render,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler, recent]
    root.setLevel(level.upper())


def bind(**fields: object) -> None:
    """Every line of this task and those that it starts carries `fields`."""
    structlog.contextvars.bind_contextvars(**fields)


def level() -> str:
    """The level that is in force."""
    return logging.getLevelName(logging.getLogger().level).lower()


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module: `_log = get_logger(__name__)`, then `_log.info("node.ready", node="a")`."""
    return structlog.stdlib.get_logger(name)


def _render_text(_logger: object, _method: str, event: MutableMapping[str, object]) -> str:
    """`time level event key=value …`, a traceback on the lines below."""
    fields = dict(event)
    event_name = _word(fields.pop("event", ""), space=True)
    head = [str(fields.pop("timestamp", "")), f"{fields.pop('level', '')!s:<7}", event_name]
    trace = fields.pop("exception", None)
    head += [f"{key}={_word(value)}" for key, value in fields.items()]
    line = " ".join(head)
    return f"{line}\n{_indented(str(trace))}" if trace else line


def _indented(trace: str) -> str:
    """A traceback whose lines cannot be mistaken for others: the text of an error may have been chosen by a client."""
    lines = trace.split("\n")
    return "\n".join(
        "  " + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line) for line in lines
    )


def _render_json(_logger: object, _method: str, event: Mapping[str, object]) -> str:
    fields = {key: event[key] for key in ("timestamp", "level", "event") if key in event}
    for key, value in event.items():
        fields[key] = _cut(value) if isinstance(value, (str, bytes)) and key != "exception" else value
    return json.dumps(fields, default=_cut)


def _word(value: object, space: bool = False) -> str:
    """A value as one word, quoted where it could be mistaken for more than one, or for another line."""
    text = _cut(value)
    plain = text.isprintable() and not set(text) & set('"\\' if space else ' "=\\')
    return text if plain and text else json.dumps(text)


def _cut(value: object) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= VALUE_LIMIT else text[:VALUE_LIMIT] + "…"
