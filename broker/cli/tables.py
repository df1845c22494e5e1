"""Text for people: tables, times, sizes. What clients chose is shown so that a terminal does not obey it."""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

NONE: Final = "-"

#: A cell is cut to this many columns; the last of a row may be longer.
CELL_MAX: Final = 60
LAST_CELL_MAX: Final = 500

BOLD: Final = "1"
DIM: Final = "2"
RED: Final = "31"
GREEN: Final = "32"
YELLOW: Final = "33"

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))

_GOOD: Final = {"ready", "connected", "true"}
_BAD: Final = {"critical", "error", "does not answer", "the store cannot be reached"}

#: The name of a column, where the field's own would be poor.
_TITLES: Final = {
    "client_id": "CLIENT",
    "connected_at_ms": "SINCE",
    "oldest_ms": "OLDEST",
    "payload_bytes": "SIZE",
    "protocol_version": "MQTT",
    "queued_bytes": "QUEUED BYTES",
    "subscription_identifier": "SUB ID",
    "ip": "ADDRESS",
    "username": "USER",
    "topic_filter": "FILTER",
    "filter": "FILTER",
}


# -- colour


def use_colour() -> bool:
    """Whether standard output is a terminal whose user has nothing against colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, code: str, colour: bool) -> str:
    """The text in a colour, if there are colours."""
    return f"\x1b[{code}m{text}\x1b[0m" if colour and text else text


def _colour_of(field: str, text: str) -> str:
    if field not in ("status", "severity", "level", "connected", "state"):
        return ""
    if text in _GOOD:
        return GREEN
    if text in _BAD:
        return RED
    return YELLOW if text not in (NONE, "false", "info", "debug") else DIM


# -- text


def plain(text: str) -> str:
    """The text in one line, with everything that does not print escaped: names are chosen by clients."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


def width(text: str) -> int:
    """Columns of a terminal that printable text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) or each == "\u200d" else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )


def cut(text: str, columns: int) -> str:
    """At most so many columns; an ellipsis stands for the rest."""
    if width(text) <= columns:
        return text
    taken = 0
    for index, each in enumerate(text):
        taken += width(each)
        if taken > columns - 1:
            return text[:index] + "…"
    return text


# -- values


def duration(seconds: float) -> str:
    """Two units at most: 2h05m, 3d, 12s, 350ms."""
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 1:
        return f"{seconds * 1000:.3g}ms" if seconds else "0s"
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.3g}s"
    whole = int(seconds)
    for index, (unit, letter) in enumerate(_UNITS):
        if whole >= unit:
            rest = whole % unit
            if not rest or index + 1 == len(_UNITS):
                return f"{whole // unit}{letter}"
            below, below_letter = _UNITS[index + 1]
            return (
                f"{whole // unit}{letter}{rest // below:02}{below_letter}"
                if rest // below
                else f"{whole // unit}{letter}"
            )
    return "0s"


def size(count: float) -> str:
    """Bytes, KiB and so on."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def moment(epoch_s: float, now_s: float | None = None) -> str:
    """Local time in ISO 8601 and how long ago, or how long until then."""
    try:
        text = datetime.fromtimestamp(epoch_s).astimezone().isoformat(sep=" ", timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{epoch_s:g}"
    away = (time.time() if now_s is None else now_s) - epoch_s
    return f"{text} ({duration(int(away))} ago)" if away >= 0 else f"{text} (in {duration(int(-away) or 1)})"


def age(epoch_s: float, now_s: float | None = None) -> str:
    """How long ago, for a column."""
    away = (time.time() if now_s is None else now_s) - epoch_s
    return duration(int(away)) if away >= 0 else f"in {duration(int(-away) or 1)}"


def cell(field: str, value: Any, *, wide: bool = False) -> str:
    """A value as text, by the name of its field; `wide` where there is a line for it alone."""
    if value is None or value == "" or value == [] or value == {}:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(field, value, wide)
    if isinstance(value, list):
        return ", ".join(cell(field, each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{plain(str(key))}={cell(str(key), each)}" for key, each in value.items())
    return plain(str(value))


def _number(field: str, value: int | float, wide: bool) -> str:
    if field.endswith("_at_ms") or (field.endswith("_ms") and value > 1e11):
        return moment(value / 1000) if wide else age(value / 1000)
    if (field.endswith(("_at", "_at_s", "until_s")) or field in ("created", "expires", "until")) and value > 1e8:
        return moment(value) if wide else age(value)
    if field.startswith("bytes") or field.endswith("bytes") or field == "size":
        return size(value)
    if field.endswith("_per_s"):
        return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
    if field.endswith("_ms"):
        return duration(value / 1000)
    if field.endswith("_s"):
        return duration(value)
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def title(field: str) -> str:
    """The head of a column."""
    if field in _TITLES:
        return _TITLES[field]
    for suffix in ("_at_ms", "_at", "_bytes", "_ms", "_s"):
        if field.endswith(suffix) and not field.endswith("_per_s") and field != suffix[1:]:
            field = field.removesuffix(suffix)
            break
    return field.replace("_per_s", "/s").replace("_", " ").upper()


# -- tables


class Table:
    """Rows of the same fields, printed in portions: columns keep the widths of the portions before."""

    def __init__(self, fields: Sequence[str], colour: bool) -> None:
        self.fields = list(fields)
        self._colour = colour
        self._widths = [width(title(field)) for field in self.fields]
        self._headed = False

    def lines(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """A portion, the first one with the heads of the columns."""
        cells = [[cell(field, row.get(field)) for field in self.fields] for row in rows]
        last = len(self.fields) - 1
        cells = [
            [cut(text, LAST_CELL_MAX if column == last else CELL_MAX) for column, text in enumerate(row)]
            for row in cells
        ]
        for row in cells:
            self._widths = [max(had, width(text)) for had, text in zip(self._widths, row, strict=True)]
        right = [
            bool(rows) and all(type(row.get(field)) in (int, float, type(None)) for row in rows)
            for field in self.fields
        ]
        found = []
        if not self._headed:
            self._headed = True
            heads = [self._padded(title(field), column, right[column]) for column, field in enumerate(self.fields)]
            found.append(painted("  ".join(heads).rstrip(), BOLD, self._colour))
        for row in cells:
            texts = []
            for column, text in enumerate(row):
                padded = self._padded(text, column, right[column])
                code = _colour_of(self.fields[column], text)
                texts.append(padded.replace(text, painted(text, code, self._colour), 1) if code else padded)
            found.append("  ".join(texts).rstrip())
        return found

    def _padded(self, text: str, column: int, right: bool) -> str:
        room = " " * (self._widths[column] - width(text))
        return room + text if right else text + room


def card(values: Mapping[str, Any], colour: bool) -> list[str]:
    """One thing with all its fields, one per line; lists of things as tables below."""
    short = {key: value for key, value in values.items() if not _is_table(value) and (value or key != "missing_nodes")}
    names = {key: label(key, values) for key in short}
    room = max((width(name) for name in names.values()), default=0)
    found = []
    for key, value in short.items():
        text = cell(key, value, wide=True)
        code = _colour_of(key, text)
        name = painted(names[key] + " " * (room - width(names[key])), BOLD, colour)
        found.append(f"{name}  {painted(text, code, colour) if code else text}")
    for key, value in values.items():
        if _is_table(value):
            found += ["", painted(f"{plain(key).replace('_', ' ')}:", BOLD, colour)]
            found += ["  " + line for line in Table(fields_of(value), colour).lines(value)]
    return found


def label(field: str, others: Container[str] = ()) -> str:
    """A field's name without its unit, which its value has; with it where one of the others has that name."""
    for suffix, short in (("_at_ms", "_at"), ("_ms", ""), ("_per_s", "/s"), ("_s", ""), ("_bytes", "")):
        if field.endswith(suffix):
            name = field.removesuffix(suffix) + short
            return plain(field if name in others else name).replace("_", " ")
    return plain(field).replace("_", " ")


def fields_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All fields of rows, as they come."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)
