"""What people want to see first of each thing: columns of tables, lines of events."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from broker.cli.manifest import Described
from broker.cli.tables import BOLD, DIM, GREEN, RED, YELLOW, cell, fields_of, label, painted, plain

#: Columns, by operation; those that no row has a value for are left out.
_COLUMNS: Final[dict[str, str]] = {
    "nodes.list": "node status version uptime_s connections store store_version durability store_round_trip_ms",
    "clients.list": "client_id username ip node connected connected_at_ms protocol_version transport keep_alive_s"
    " subscriptions in_flight queued output_bytes",
    "sessions.list": "client_id node connected expires_at_ms created_at_ms subscriptions queued queued_bytes oldest_ms"
    " in_flight",
    "sessions.messages": "seq topic delivery_qos retain payload_bytes accepted_at_ms expires_in_s payload",
    "subscriptions.list": "client_id topic_filter qos no_local retain_as_published subscription_identifier node",
    "retained.list": "topic qos payload_bytes accepted_at_ms expires_in_s payload",
    "retained.browse": "level has_message below topic",
    "groups.list": "topic_filter strategy members connected lag pending length oldest_ms",
    "delayed.list": "id topic due_at_ms qos payload_bytes payload",
    "trace.list": "id client_id topic_filter ip running started_at_ms ends_at_ms lines left_out",
    "alarms.list": "severity name node subject activated_at_ms message",
    "alarms.history": "severity name node subject activated_at_ms deactivated_at_ms message",
    "bans.list": "kind value until_at_ms by new_only reason",
    "keys.list": "name scope created_at_ms expires_at_ms generated fixed",
    "rules.list": "name rule error",
    "topic_metrics.list": "topic_filter received_per_s sent_per_s dropped_per_s received sent dropped created_at_ms",
    "users.list": "username password scram superuser disabled attributes",
    "subscriptions.of_client": "topic_filter qos no_local retain_as_published retain_handling subscription_identifier",
}

#: What is listed as lines, and not as a table.
LINES: Final = {"trace.lines", "logs.list"}

#: A table without a choice above has at most so many columns.
COLUMNS_MAX: Final = 9

_EVENT_COLOURS: Final = {
    "connected": GREEN,
    "disconnected": YELLOW,
    "activate": RED,
    "activated": RED,
    "deactivate": GREEN,
    "deactivated": GREEN,
}


def shown_fields(operation: Described, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of a table of such rows."""
    chosen = _COLUMNS.get(operation.name, "").split()
    known = chosen or [name for name, kind in operation.fields.items() if kind != "object"] or fields_of(rows)
    if not rows:
        return known[:COLUMNS_MAX]
    present = [name for name in known if any(row.get(name) not in (None, "", []) for row in rows)]
    if chosen and not present:
        present = fields_of(rows)
    return present if chosen else present[:COLUMNS_MAX]


def shown_rows(items: Sequence[Any], subject: str) -> list[Mapping[str, Any]]:
    """Items as rows: what a `message` inside of one has stands beside it; names alone become rows of one field."""
    rows: list[Mapping[str, Any]] = []
    for item in items:
        if not isinstance(item, dict):
            rows.append({subject: item})
        elif isinstance(item.get("message"), dict):
            rows.append({**item, **item["message"]})
        else:
            rows.append(item)
    return rows


def value_table(name: str, value: Mapping[str, Any]) -> tuple[list[str], list[Mapping[str, Any]]] | None:
    """Columns and rows of an answer that is best read as a table; None for the others."""
    if name == "stats.show":
        columns: dict[str, Mapping[str, Any]] = {"all": _numbers(value.get("cluster"))}
        columns |= {plain(node): _numbers(numbers) for node, numbers in sorted(value.get("nodes", {}).items())}
        uptimes = value.get("uptime_s", {})
        rows: list[Mapping[str, Any]] = [
            {"number": label(field), **{each: cell(field, of.get(field)) for each, of in columns.items()}}
            for field in columns["all"]
        ]
        rows.append({"number": "uptime", **{plain(node): cell("uptime_s", each) for node, each in uptimes.items()}})
        return ["number", *columns], rows
    if name == "stats.history":
        found: list[Mapping[str, Any]] = [
            {"at_ms": each.get("at_ms"), **_numbers(each.get("cluster"))} for each in value.get("items", ())
        ]
        return fields_of(found)[:12], found
    if name == "settings.show":
        return ["name", "value", "origin"], list(value.get("items", ()))
    return None


def _numbers(value: Any) -> dict[str, Any]:
    return {str(field): each for field, each in value.items()} if isinstance(value, dict) else {}


def event_line(name: str, value: Any, colour: bool) -> str:
    """An event in one line: when, what, and the rest as `field=value`."""
    if not isinstance(value, dict):
        return plain(str(value))
    rest = dict(value)
    if name.startswith("trace."):
        return _trace_line(rest, colour)
    if name == "stats.live":
        rest = {"at_ms": value.get("at_ms"), **_numbers(value.get("cluster"))}
    words = [painted(_clock(rest), DIM, colour)]
    for field in ("node", "severity", "level", "event", "client_id", "clientid", "name"):
        text = rest.pop(field, None)
        if text:
            code = _EVENT_COLOURS.get(str(text), BOLD if field in ("client_id", "clientid", "name") else "")
            words.append(painted(plain(str(text)), code, colour) if code else plain(str(text)))
    for field in ("text", "message", "detail"):
        text = rest.pop(field, None)
        if text:
            words.append(plain(str(text)))
    for field, each in rest.items():
        if field == "fields" and isinstance(each, dict):
            words += [f"{plain(str(key))}={cell(str(key), part)}" for key, part in each.items()]
        elif each not in (None, "", [], {}) and not field.endswith("_at_ms"):  # the line has a time of its own
            words.append(f"{plain(str(field))}={cell(field, each)}")
    return " ".join(word for word in words if word)


def _trace_line(value: dict[str, Any], colour: bool) -> str:
    """When, where, who, which way, what."""
    kind = str(value.get("kind", ""))
    way = {"in": "<", "out": ">"}.get(str(value.get("direction", "")), " ")
    text = plain(str(value.get("text", "")))
    code = RED if kind in ("drop", "disconnect") else YELLOW if kind in ("acl", "takeover", "will") else ""
    words = [
        painted(_clock(value), DIM, colour),
        plain(str(value.get("node", ""))),
        painted(plain(str(value.get("client_id") or value.get("peer") or "-")), BOLD, colour),
        way,
        painted(text, code, colour) if code else text,
    ]
    details = value.get("details")
    if isinstance(details, dict) and details.get("payload") is not None:
        words.append(f"payload={plain(str(details['payload']))}")
    return " ".join(words)


def _clock(value: dict[str, Any]) -> str:
    """The local time of an event, which is taken out of it: the latest moment that it tells."""
    moments = {
        field: each
        for field, each in value.items()
        if isinstance(each, (int, float)) and not isinstance(each, bool) and field.endswith(("at_ms", "at", "ts"))
    }
    if not moments:
        return datetime.fromtimestamp(time.time()).strftime("%H:%M:%S.%f")[:-3]
    field = max(moments, key=lambda each: moments[each])
    number = value.pop(field)
    try:
        return datetime.fromtimestamp(number / 1000 if number > 1e11 else number).strftime("%H:%M:%S.%f")[:-3]
    except (OverflowError, ValueError, OSError):
        return str(number)
