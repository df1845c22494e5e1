"""What credentials of others' making carry beside a name: rules, attributes and an end, as JSON.

JSON web tokens and web services use the same forms, those of EMQX. ValueError says what is wrong with them: nothing
of it is guessed, because a rule that is left out may be one that denies.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

from broker.auth.api import Rule
from broker.auth.rules import rule_from

MAX_RULES: Final = 1000
MAX_ATTRIBUTES: Final = 100

#: Ends that are further away count as none: no timer runs so long.
_FAR_AHEAD_S: Final = 50 * 365 * 86400.0

_ACTIONS: Final = {"pub": "publish", "sub": "subscribe", "all": "all"}
_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def json_object(data: bytes | str) -> dict[str, object]:
    """The object that `data` is; ValueError for anything else, however deep it is nested."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("JSON that is no object")
    return value


def rules_of(value: object) -> list[Rule]:
    """Rules of an `acl`: `{"pub": [FILTER], "sub": [FILTER], "all": [FILTER]}`, which allows, or a list of
    `{"permission": "allow", "action": "publish", "topic": FILTER, "qos": [0, 1], "retain": false}`."""
    tables = _of_lists(value) if isinstance(value, dict) else _of_tables(value)
    if len(tables) > MAX_RULES:
        raise ValueError(f"acl has {len(tables)} rules, at most {MAX_RULES}")
    return [rule_from(table) for table in tables]


def _of_lists(value: Mapping[object, object]) -> list[dict[str, object]]:
    tables: list[dict[str, object]] = []
    for key, topics in value.items():
        if key not in _ACTIONS:
            raise ValueError(f"acl has {key!r:.60}; there are pub, sub and all")
        named = _topics(topics)
        if named:
            tables.append({"permission": "allow", "action": _ACTIONS[str(key)], "topics": named})
    return tables


def _of_tables(value: object) -> list[dict[str, object]]:
    if not isinstance(value, list):
        raise ValueError(f"acl is {value!r:.60}, neither an object nor a list")
    tables: list[dict[str, object]] = []
    for item in value:
        if not isinstance(item, dict):
            raise ValueError(f"acl has {item!r:.60}, which is no object")
        rest = dict(item)
        table: dict[str, object] = {
            "permission": rest.pop("permission", None),
            "action": rest.pop("action", "all"),
            "topics": _topics(rest.pop("topic", None)) + _topics(rest.pop("topics", None)),
        }
        qos = rest.pop("qos", None)
        if qos is not None:
            table["qos"] = _qos(qos)
        retain = rest.pop("retain", "all")
        if retain != "all":
            table["retain"] = _flag(retain)
        if rest:  # a condition that is not known here would make the rule apply to more than was meant
            raise ValueError(f"a rule of acl has {next(iter(rest))!r:.60}, which is not known")
        if not table["topics"]:
            raise ValueError("a rule of acl has no topic")
        tables.append(table)
    return tables


def _topics(value: object) -> list[str]:
    topics: list[str] = []
    for topic in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(topic, str) or not topic or not _encodable(topic):
            raise ValueError(f"acl has the topic {topic!r:.60}, which is no text")
        topics.append(topic)
    return topics


def _qos(value: object) -> list[int]:
    if isinstance(value, str):
        parts: Sequence[object] = value.split(",")
    else:
        parts = value if isinstance(value, list) else [value]
    found = [int(part) if isinstance(part, str) and part.strip() in ("0", "1", "2") else part for part in parts]
    if not found or any(isinstance(part, bool) or part not in (0, 1, 2) for part in found):
        raise ValueError(f"a rule of acl has the qos {value!r:.60}")
    return [part for part in found if isinstance(part, int)]


def _flag(value: object) -> bool:
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    if value in ("true", "false", "0", "1"):
        return value in ("true", "1")
    raise ValueError(f"expected true or false, got {value!r:.60}")


def truth_of(value: object) -> bool:
    """Whether it makes a superuser: only what says so beyond doubt; absent or null does not."""
    return False if value is None else _flag(value)


def attributes_of(value: object) -> dict[str, str]:
    """Client attributes: an object of texts, numbers and truth values."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_ATTRIBUTES:
        raise ValueError(f"client attributes must be an object of at most {MAX_ATTRIBUTES} texts")
    found: dict[str, str] = {}
    for name, item in value.items():
        if not _ATTRIBUTE.fullmatch(str(name)):
            raise ValueError(f"{name!r:.60} can be no client attribute")
        found[str(name)] = text_of(item)
    return found


def text_of(value: object) -> str:
    """A scalar as text; ValueError for anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)) and _encodable(str(value)):
        return str(value)
    raise ValueError(f"{value!r:.60} is no text")


def _encodable(text: str) -> bool:
    """JSON can name halves of characters, which nothing else can carry."""
    return not any("\ud800" <= character <= "\udfff" for character in text) and "\0" not in text


def name_of(value: object) -> str:
    """A user name or client id: text that MQTT can carry."""
    if not isinstance(value, str) or not value or not _encodable(value) or len(value.encode()) > 65535:
        raise ValueError(f"{value!r:.60} can be no name")
    return value


def expiry_of(value: object, now_s: float) -> float | None:
    """Seconds since 1970, None for never or so far away that it does not matter."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r:.60} is no time")
    return float(value) if value - now_s < _FAR_AHEAD_S else None
