"""Mosquitto's acl_file: its syntax and its answers.

`topic [read|write|readwrite|deny] FILTER` is about clients without a user name until the first `user NAME` line, then
about that user. `pattern [...] FILTER` is about everybody, with %c for the client id and %u for the user name; it
counts after the topics of the user. Denials count first among each of the two.

Mosquitto grants every SUBSCRIBE and looks at deliveries. Here one of which nothing could be delivered is refused, and
the rest is the same. A value with a `/` is not put into a pattern here, as one with `+` or `#` is not there, and one
that begins with `$` not at the beginning.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from broker.auth.api import ALLOW, DENY, PUBLISH, READ, SUBSCRIBE, Principal
from broker.auth.base import BaseSource
from broker.auth.judging import EntriesJudge, Entry
from broker.auth.template import TOPIC_FORBIDDEN
from broker.errors import ConfigError, PeerError
from broker.options.authorization import AclFile
from broker.topics.names import check_topic_filter
from broker.topics.relations import common, covers

MAX_FILE_BYTES: Final = 64 * 1024 * 1024

_ACCESS: Final = {"read": READ, "write": PUBLISH, "readwrite": READ | PUBLISH, "deny": READ | PUBLISH}
_PLACE: Final = re.compile(r"%[cu]")

#: What C's isspace takes for a space.
_SPACES: Final = " \t\n\v\f\r"


class AclFileRules(BaseSource):
    """Implements `RuleSource`; reads the file when made (ConfigError)."""

    steady = True

    def __init__(self, options: AclFile) -> None:
        super().__init__(options.label)
        self._path = options.path
        self._acl = read_acl(options.path)

    async def open(self, principal: Principal) -> AclJudge:
        """See `RuleSource`."""
        return self._acl.judge(principal)

    def files(self) -> Sequence[Path]:
        """See `RuleSource`."""
        return (self._path,)

    def reload(self) -> None:
        """See `RuleSource`."""
        self._acl = read_acl(self._path)
        self.generation += 1


class AclJudge(EntriesJudge):
    """Answers as Mosquitto does."""

    __slots__ = ()

    def find_for_filter(self, levels: list[str], qos: int) -> Entry | None:
        """The first that lets something of a filter be read; else one that denies all of it."""
        denied: list[Entry] = []
        for entry in self.entries:
            if entry.decision == DENY:
                if covers(entry.levels, levels):
                    return entry
                denied.append(entry)
            elif entry.actions & READ:
                shared = common(entry.levels, levels)
                if shared is not None and not any(covers(each.levels, shared) for each in denied):
                    return entry
        return None


class Acl:
    """What is in a file: the entries of users (None: of clients without a name) and the patterns, denials first."""

    __slots__ = ("_patterns", "_topics")

    def __init__(self) -> None:
        self._topics: defaultdict[str | None, list[Entry]] = defaultdict(list)
        self._patterns: list[Entry] = []

    def add(self, username: str | None, entry: Entry) -> None:
        """Take a `topic` line of a user."""
        _insert(self._topics[username], entry)

    def add_pattern(self, entry: Entry) -> None:
        """Take a `pattern` line."""
        _insert(self._patterns, entry)

    def judge(self, principal: Principal) -> AclJudge:
        """The rules for one client."""
        entries = list(self._topics.get(principal.username, ()))
        if not self._patterns:
            return AclJudge(entries)
        names = {"%c": principal.client_id, "%u": principal.username}
        if any(character in (name or "") for name in names.values() for character in TOPIC_FORBIDDEN):
            # Not even its own topics count then: what a pattern denies must not be open to a chosen name.
            return AclJudge(entries, DENY)
        for pattern in self._patterns:
            text = pattern.topic_filter
            found = _PLACE.findall(text)
            if not found:
                entries.append(pattern)
                continue
            if any(names[each] is None for each in found):
                continue
            rendered = _PLACE.sub(_value_of(names), text)
            if not rendered.startswith("$") or text.startswith("$"):
                entries.append(Entry(pattern.decision, pattern.actions, rendered, pattern.origin))
        return AclJudge(entries)


def _value_of(names: dict[str, str | None]) -> Callable[[re.Match[str]], str]:
    return lambda match: names[match[0]] or ""


def _insert(entries: list[Entry], entry: Entry) -> None:
    if entry.decision == DENY:
        entries.insert(0, entry)
    else:
        entries.append(entry)


def read_acl(path: Path) -> Acl:
    """The rules of a file; ConfigError names the file and the line."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"acl_file {str(path)!r}: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"acl_file {str(path)!r}: more than {MAX_FILE_BYTES} bytes")
    found = Acl()
    username: str | None = None
    for number, raw in enumerate(data.split(b"\n"), start=1):
        try:
            line = raw.decode().rstrip(_SPACES)
            word, _, rest = line.lstrip(" ").partition(" ")
            if not word or line.startswith("#"):
                continue
            if word == "user":
                username = rest.strip(_SPACES)
                if not username:
                    raise ValueError("the user name is missing")
            elif word == "topic":
                found.add(username, _entry(rest, f"{path.name} line {number}"))
            elif word == "pattern":
                found.add_pattern(_entry(rest, f"{path.name} line {number}"))
            else:
                raise ValueError(f"{word!r:.60} is none of topic, pattern and user")
        except UnicodeDecodeError:
            raise ConfigError(f"acl_file {str(path)!r}, line {number}: not UTF-8") from None
        except (ValueError, PeerError) as error:
            raise ConfigError(f"acl_file {str(path)!r}, line {number}: {error}") from None
    return found


def _entry(text: str, origin: str) -> Entry:
    access, _, topic_filter = text.lstrip(" ").partition(" ")
    topic_filter = topic_filter.strip(_SPACES)
    if not topic_filter:
        access, topic_filter = "readwrite", access
    if access not in _ACCESS:
        raise ValueError(f"{access!r:.60} is none of read, write, readwrite and deny")
    check_topic_filter(topic_filter)
    return Entry(
        DENY if access == "deny" else ALLOW,
        _ACCESS[access] | SUBSCRIBE,
        topic_filter,
        f"{origin}: {access} {topic_filter}",
    )
