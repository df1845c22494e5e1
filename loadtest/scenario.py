"""What is measured: who publishes to whom, how much, how fast, and what happens to the connections meanwhile.

A scenario is a TOML file, one of those in `scenarios/` or a user's own. Each key is a field of `Scenario`; a table
`[[also]]` is further traffic at the same time, with the keys of `Stream`.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.wire import MINIMUM_PAYLOAD

FOLDER = Path(__file__).parent / "scenarios"
LAYOUTS = ("p2p", "fanin", "fanout", "shared", "retained", "none")
MOST_TEXT_BYTES = 65_535  # of a string in MQTT
LONGEST_TOPIC_BYTES = 100  # of what stands behind the prefix, and more than that
TIMES = ("settle", "warmup", "seconds", "drain")  # keys that say how long it is looked at, not at what
PROPERTIES = ("content_type", "response_topic", "message_expiry_interval", "payload_format_indicator", "user")


class ScenarioError(ValueError):
    """A scenario that cannot be: says where, which key, and what is allowed."""


def _key(default: Any, text: str, low: float | None = None, high: float | None = None, allowed: Any = None) -> Any:
    return field(default=default, metadata={"help": text, "low": low, "high": high, "allowed": allowed})


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Traffic from some publishers to some subscribers."""

    layout: str = _key("p2p", "who gets what (see the page on load tests)", allowed=LAYOUTS)
    publishers: int = _key(0, "clients that publish", 0, 1_000_000)
    subscribers: int = _key(0, "clients that subscribe", 0, 1_000_000)
    qos: int = _key(0, "of messages and subscriptions", allowed=(0, 1, 2))
    size: int = _key(64, "payload bytes", MINIMUM_PAYLOAD, 200_000_000)
    rate: float = _key(0.0, "messages a second over all publishers; 0: as fast as flow control permits", 0, 1e7)
    window: int = _key(32, "unacknowledged messages of a publisher (QoS 1 and 2)", 1, 65_535)
    cap: int = _key(100, "at rate 0 a publisher waits while so many of its messages are on their way", 1, 1_000_000)
    topics: int = _key(1, "retained messages of each publisher (layout retained)", 1, 1_000_000)
    prefix: str = _key("load", "first level of all topics")
    extra_filters: int = _key(0, "further subscriptions of each subscriber, which nothing matches", 0, 1_000_000)
    properties: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "of each PUBLISH (MQTT 5): " + ", ".join(PROPERTIES)}
    )


@dataclass(frozen=True, kw_only=True)
class Scenario(Stream):
    """A run: its streams, idle clients, connections and times."""

    name: str = field(default="", metadata={"help": "by which it is called; not a key of files"})
    title: str = _key("", "for the reader of reports")
    version: int = _key(5, "of MQTT: 4 is 3.1.1", allowed=(4, 5))
    idle: int = _key(0, "clients that are only connected", 0, 1_000_000)
    clean: bool = _key(True, "clean start; false: sessions outlive connections")
    expiry: int = _key(3600, "seconds that the broker keeps sessions without connection (MQTT 5)", 1, 2**32 - 1)
    keep_alive: int = _key(60, "seconds; PINGREQ after half of it, 0: never", 0, 65_535)
    connect_rate: float = _key(0.0, "connections a second; 0: as fast as possible", 0, 1e6)
    handshakes: int = _key(64, "connections at most between connect() and CONNACK", 1, 100_000)
    settle: float = _key(0.3, "seconds between the last SUBACK and the first message", 0, 3600)
    warmup: float = _key(1.0, "seconds of load before the measured window", 0, 86_400)
    seconds: float = _key(5.0, "the measured window", 0.1, 604_800)
    drain: float = _key(2.0, "seconds to wait for the rest while nothing of it comes", 0.1, 3600)
    cut: float = _key(0.0, "share of clients whose connection is cut in the window", 0, 1)
    cut_who: str = _key("all", "which clients are cut", allowed=("all", "publishers", "subscribers", "idle"))
    cut_how: str = _key("drop", "without DISCONNECT or with it", allowed=("drop", "disconnect"))
    cut_every: float = _key(0.0, "seconds from cut to cut; 0: once, after a quarter of the window", 0, 86_400)
    away: float = _key(0.0, "seconds until clients that were cut come back", 0, 86_400)
    strict: bool = _key(False, "all loss, duplicates and reordering are faults, even where QoS allows them")
    also: tuple[Stream, ...] = ()

    @property
    def streams(self) -> tuple[Stream, ...]:
        """All traffic; none for a layout that has none."""
        return (*([] if self.layout == "none" else [self]), *self.also)

    @property
    def clients(self) -> int:
        """How many connections it makes."""
        return self.idle + sum(each.publishers + each.subscribers for each in self.streams)

    def as_dict(self) -> dict[str, Any]:
        """Return every key but the name."""
        content = dataclasses.asdict(self)
        del content["name"]
        content["also"] = list(content["also"])
        return content


def keys(kind: type[Stream] = Scenario) -> dict[str, dataclasses.Field[Any]]:
    """Return what files may say, by name."""
    return {each.name: each for each in dataclasses.fields(kind) if each.name not in ("name", "also")}


def names() -> list[str]:
    """Return the scenarios that come with the load tester."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find(name: str) -> Path:
    """Return the file of a scenario: of one that comes along by its name, of a user's own by its path."""
    known = FOLDER / f"{name}.toml"
    if name in names():
        return known
    path = Path(name)
    if path.suffix != ".toml" and not path.exists():
        raise ScenarioError(f"no scenario {name!r}: give one of {', '.join(names())}, or the path of a TOML file")
    return path


def load(name: str, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """Read a scenario by name or path; `overrides` count instead of the file's keys."""
    path = find(name)
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return parse(content, path.stem, str(path), overrides)


def parse(content: Mapping[str, Any], name: str, where: str, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """Make a scenario of what a file at `where` says, and of `overrides`."""
    content = dict(content)
    also = content.pop("also", [])
    if not isinstance(also, list) or not all(isinstance(each, dict) for each in also):
        raise ScenarioError(f"{where}: also: give tables, [[also]]")
    checked = _checked(content, Scenario, where)
    checked |= _checked(overrides or {}, Scenario, "--set")
    if "title" not in (overrides or {}):
        checked["title"] = _told(checked.get("title", name), overrides or {}, content)
    streams = tuple(Stream(**_checked(each, Stream, f"{where}: [[also]]")) for each in also)
    scenario = Scenario(**{**checked, "name": name, "also": streams})
    for stream in scenario.streams:
        _check_stream(stream, scenario, where)
    if not scenario.clients:
        raise ScenarioError(f"{where}: nobody connects: publishers, subscribers and idle are 0")
    return scenario


def _told(title: str, overrides: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """Return a title that says what is not as its file says."""
    others = [(key, value) for key, value in overrides.items() if key not in TIMES and content.get(key) != value]
    return f"{title} ({', '.join(f'{key} {_plain(value)}' for key, value in others)})" if others else title


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _check_stream(stream: Stream, scenario: Scenario, where: str) -> None:
    if stream.layout == "none":
        raise ScenarioError(f"{where}: [[also]]: layout: none is no traffic")
    for key in ("publishers", "subscribers"):
        if not getattr(stream, key):
            raise ScenarioError(f"{where}: {key}: layout {stream.layout} needs at least 1")
    if stream.layout == "p2p" and stream.publishers != stream.subscribers:
        raise ScenarioError(
            f"{where}: subscribers: {stream.subscribers}, but layout p2p needs as many as there are publishers, "
            f"{stream.publishers}"
        )
    if stream.layout == "retained" and scenario.also:
        raise ScenarioError(f"{where}: also: layout retained stands alone")
    if stream.properties and scenario.version != 5:
        raise ScenarioError(f"{where}: properties: only with version = 5")
    if any(sign in stream.prefix for sign in "+#\0") or not stream.prefix:
        raise ScenarioError(f"{where}: prefix: {stream.prefix!r} is no topic name")
    if stream.prefix.startswith("$"):
        raise ScenarioError(f"{where}: prefix: {stream.prefix[:40]!r}: topics that begin with $ are the broker's own")
    _check_text(stream.prefix, f"{where}: prefix", MOST_TEXT_BYTES - LONGEST_TOPIC_BYTES)


def _checked(content: Mapping[str, Any], kind: type[Stream], where: str) -> dict[str, Any]:
    known = keys(kind)
    checked = {}
    for key, value in content.items():
        if key not in known:
            raise ScenarioError(f"{where}: {key}: unknown key; known are {', '.join(known)}")
        checked[key] = _value(value, known[key], f"{where}: {key}")
    return checked


def _value(given: Any, key: dataclasses.Field[Any], where: str) -> Any:
    value = given
    if key.name == "properties":
        return _properties(value, where)
    wanted = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}[str(key.type)]
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
    if not isinstance(value, kinds[str(key.type)]) or isinstance(value, bool) != (key.type == "bool"):
        raise ScenarioError(f"{where}: {value!r} is not {wanted}")
    low, high, allowed = (key.metadata[name] for name in ("low", "high", "allowed"))
    if allowed is not None and value not in allowed:
        raise ScenarioError(f"{where}: {value!r} is none of {', '.join(str(each) for each in allowed)}")
    if low is not None and not low <= value <= high:
        raise ScenarioError(f"{where}: {value!r} is not within {low:g} to {high:g}")
    return float(given) if key.type == "float" else given


def _properties(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ScenarioError(f"{where}: {value!r} is no table")
    for name, each in value.items():
        if name not in PROPERTIES:
            raise ScenarioError(f"{where}.{name}: unknown property; known are {', '.join(PROPERTIES)}")
        kind: type = {"message_expiry_interval": int, "payload_format_indicator": int, "user": dict}.get(name, str)
        if not isinstance(each, kind) or isinstance(each, bool):
            raise ScenarioError(f"{where}.{name}: {each!r} is not of type {kind.__name__}")
        high = {"message_expiry_interval": 2**32 - 1, "payload_format_indicator": 1}.get(name)
        if high is not None and not 0 <= value[name] <= high:
            raise ScenarioError(f"{where}.{name}: {each} is not within 0 to {high}")
        for text in [*each, *each.values()] if isinstance(each, dict) else [each]:
            _check_text(str(text), f"{where}.{name}")
    if any(sign in value.get("response_topic", "") for sign in "+#") or value.get("response_topic") == "":
        raise ScenarioError(f"{where}.response_topic: {value['response_topic']!r} is no topic name")
    return dict(value)


def _number(text: str) -> float | str:
    """Read what TOML does not call a number, `.2`; what is none remains a text."""
    try:
        return float(text)
    except ValueError:
        return text


def _check_text(text: str, where: str, most: int = MOST_TEXT_BYTES) -> None:
    if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ScenarioError(f"{where}: {text[:40]!r} has characters that MQTT does not permit")
    if (size := len(text.encode())) > most:
        raise ScenarioError(f"{where}: {size:,} bytes, but at most {most:,} are possible")


def override(text: str) -> tuple[str, Any]:
    """Read `key=value` of a command line: TOML, or a text without its quotes."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ScenarioError(f"--set {text}: give KEY=VALUE")
    name = name.strip()
    try:
        found = tomllib.loads(f"it = {value}")["it"]
    except tomllib.TOMLDecodeError:
        found = _number(value) if name in keys() and keys()[name].type == "float" else value
    if name in keys() and keys()[name].type == "str" and not isinstance(found, str):
        found = value
    return name, found
