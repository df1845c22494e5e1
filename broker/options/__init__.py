"""Options of things a configuration may have several of: listeners, authenticators, rule sources, attributes.

One frozen dataclass per type, each field declared by `option`. Settings of these kinds are lists of blocks: TOML
tables, or `TYPE?name=value&name=value` on the command line and in the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qsl, quote

from broker.values import Kind, Url, hide_password

#: The value that a secret has where it is shown.
MASK = "***"


@dataclass(frozen=True, slots=True)
class Option:
    """What is declared of one option. `default` None: it has to be given."""

    attribute: str
    kind: Kind
    default: str | None
    help: str
    secret: bool
    at_least: float | None
    at_most: float | None

    @property
    def name(self) -> str:
        """As users write it: a duration carries its unit in the value."""
        return self.attribute.removesuffix("_s")

    def parse(self, raw: object) -> object:
        """The checked value; ValueError names the option, and the value unless it is secret."""
        try:
            value = self.kind.parse(raw)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if self.at_least is not None and value < self.at_least:
                    raise ValueError(f"must be at least {self.kind.show(self.at_least)}")
                if self.at_most is not None and value > self.at_most:
                    raise ValueError(f"must be at most {self.kind.show(self.at_most)}")
        except ValueError as error:
            raise ValueError(
                f"{self.name} = {MASK if self.secret else hide_password(repr(raw)[:80])}: {error}"
            ) from None
        return value


def option(
    kind: Kind,
    default: str | None,
    text: str,
    *,
    secret: bool = False,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """Declare a field of a subclass of `Options`; `default` is text that `kind` parses, None if it has to be given."""
    declared = Option("", kind, default, text, secret, at_least, at_most)
    if default is None:
        return dataclasses.field(repr=not secret, metadata={"option": declared})
    return dataclasses.field(default=kind.parse(default), repr=not secret, metadata={"option": declared})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The base of all option classes. `TYPE` is the word that users write, `HELP` one sentence for the reference."""

    TYPE: ClassVar[str] = ""
    HELP: ClassVar[str] = ""

    @classmethod
    def declared(cls) -> tuple[Option, ...]:
        """All options, in order."""
        return tuple(
            dataclasses.replace(field.metadata["option"], attribute=field.name)
            for field in dataclasses.fields(cls)
            if "option" in field.metadata
        )

    def check(self) -> None:
        """ValueError for what no option can tell alone."""

    def pairs(self, mask: bool) -> Iterator[tuple[str, str]]:
        """Name and text of every option that is not at its default; secrets as they are unless `mask`."""
        for item in self.declared():
            value = getattr(self, item.attribute)
            if item.default is not None and value == item.kind.parse(item.default):
                continue
            if mask and value and isinstance(item.kind, Url):
                yield item.name, item.kind.masked(value)
            else:
                yield item.name, MASK if mask and item.secret else item.kind.show(value)


O = TypeVar("O", bound="Options")


def read_options(of: type[O], raw: Mapping[str, object]) -> O:
    """The options of a table or query; ValueError names what is wrong."""
    by_name = {item.name: item for item in of.declared()}
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name not in by_name:
            close = difflib.get_close_matches(name, by_name, n=1, cutoff=0.6)
            raise ValueError(f"unknown option {name!r}" + (f"; did you mean {close[0]}?" if close else ""))
        values[by_name[name].attribute] = by_name[name].parse(value)
    missing = [item.name for item in by_name.values() if item.default is None and item.attribute not in values]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    made = of(**values)
    made.check()
    return made


def read_query(query: str) -> dict[str, object]:
    """The options behind a question mark; ValueError if one is there twice or has no value."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ValueError(f"has {query[:80]!r} after the question mark; write name=value&name=value") from None
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"has {name} twice")
        found[name] = value
    return found


def show_query(options: Options, mask: bool) -> str:
    """What `read_query` and `read_options` read as the same options, with its question mark; empty for defaults."""
    # In a list that is text, commas and spaces separate.
    text = "&".join(f"{name}={quote(value, safe='/:*${}')}" for name, value in options.pairs(mask))
    return f"?{text}" if text else ""


class Blocks:
    """A list of blocks, each of one of some types."""

    def __init__(self, *types: type[Options]) -> None:
        self.types = {each.TYPE: each for each in types}
        self.label = f"list of tables, of type {', '.join(self.types)}"
        self.metavar = "TYPE?OPTIONS"

    def parse(self, raw: object) -> tuple[Options, ...]:
        items = raw.split() if isinstance(raw, str) else raw
        if not isinstance(items, (list, tuple)):
            raise ValueError("must be a list of tables, or of texts such as TYPE?name=value&name=value")
        return tuple(self._block(item) for item in items if item != "")

    def _block(self, item: object) -> Options:
        if isinstance(item, Options):
            return item
        word: object
        if isinstance(item, str):
            word, _, query = item.strip().partition("?")
            table = read_query(query)
        elif isinstance(item, dict):
            table = dict(item)
            word = table.pop("type", "")
        else:
            raise ValueError(f"has {item!r:.60}, which is neither a table nor text")
        of = self.types.get(word) if isinstance(word, str) else None
        if of is None:
            close = difflib.get_close_matches(str(word), self.types, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(self.types)}"
            raise ValueError(f"has the unknown type {word!r:.60}; {hint}")
        try:
            return read_options(of, table)
        except ValueError as error:
            raise ValueError(f"{word}: {error}") from None

    def show(self, value: object) -> str:
        return self._text(value, False)

    def masked(self, value: object) -> str:
        """As `show`, without secrets."""
        return self._text(value, True)

    def _text(self, value: object, mask: bool) -> str:
        assert isinstance(value, tuple)
        return " ".join(block.TYPE + show_query(block, mask) for block in value)


class Words:
    """A list of words: a TOML array, or text separated by commas or spaces."""

    def __init__(self, what: str = "words", pattern: str = r"[^\s,]+") -> None:
        self.label = f"list of {what}"
        self.metavar = "A,B"
        self._what = what
        self._pattern = re.compile(pattern)

    def parse(self, raw: object) -> tuple[str, ...]:
        items = re.split(r"[,\s]+", raw.strip()) if isinstance(raw, str) else raw
        if not isinstance(items, (list, tuple)):
            raise ValueError(f"must be a list of {self._what}")
        words = tuple(str(item) for item in items if item != "")
        for word in words:
            if not self._pattern.fullmatch(word):
                raise ValueError(f"has {word!r:.60}; expected {self._what}")
        return words

    def show(self, value: object) -> str:
        assert isinstance(value, tuple)
        return ",".join(value)


class Networks:
    """A list of IP addresses and networks."""

    label = "list of IP addresses or networks (CIDR)"
    metavar = "CIDR"

    def parse(self, raw: object) -> tuple[str, ...]:
        found = Words(self.label).parse(raw)
        for text in found:
            try:
                ipaddress.ip_network(text, strict=False)
            except ValueError:
                raise ValueError(f"has {text!r:.60}, which is no IP address or network") from None
        return found

    def show(self, value: object) -> str:
        assert isinstance(value, tuple)
        return ",".join(value)
