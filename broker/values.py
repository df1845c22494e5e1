"""Kinds of values a setting can have: from text or TOML to a checked Python value and back to text.

A kind raises ValueError with what is allowed; who knows the setting's name and origin turns that into a ConfigError.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

#: As a session expiry: the session does not end (the value MQTT 5 gives to it).
NEVER_S = 0xFFFFFFFF

_SIZE_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_TIME_UNITS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)

_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"}

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to listen: `scheme` is `tcp` or `http`, `host` has no brackets, port 0 picks a free one."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """`host:port`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. A name other than `localhost` counts as reachable."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


class Kind(Protocol):
    """How one kind of value is read and shown."""

    #: For the reference page and for `--help`.
    label: str
    metavar: str

    def parse(self, raw: object) -> object:
        """The value for text (command line, environment, TOML string) or a TOML value; ValueError if it is none."""
        ...

    def show(self, value: object) -> str:
        """The text that `parse` reads as `value`."""
        ...


class Text:
    """Any text."""

    label = "text"
    metavar = "TEXT"

    def parse(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise ValueError("must be text")
        if any(ord(character) < 0x20 for character in raw):
            raise ValueError("must not contain control characters")
        return raw

    def show(self, value: object) -> str:
        return str(value)


class Name(Text):
    """A name that is safe in keys, logs and file names."""

    label = "name"
    metavar = "NAME"

    def parse(self, raw: object) -> str:
        text = super().parse(raw)
        if not _NAME.fullmatch(text):
            raise ValueError("must be 1 to 64 of A-Z a-z 0-9 _ . - and begin with a letter or digit")
        return text


class Flag:
    """True or false."""

    label = "true or false"
    metavar = ""

    def parse(self, raw: object) -> bool:
        if isinstance(raw, bool):
            return raw
        if isinstance(raw, str):
            word = raw.strip().lower()
            if word in _TRUE:
                return True
            if word in _FALSE:
                return False
        raise ValueError("must be true or false")

    def show(self, value: object) -> str:
        return "true" if value else "false"


class Integer:
    """A whole number."""

    label = "number"
    metavar = "N"

    def parse(self, raw: object) -> int:
        if isinstance(raw, int) and not isinstance(raw, bool):
            return raw
        if isinstance(raw, str) and re.fullmatch(r"\s*-?\d{1,18}\s*", raw, re.ASCII):
            return int(raw)
        raise ValueError("must be a whole number")

    def show(self, value: object) -> str:
        return str(value)


class Size:
    """A number of bytes."""

    label = "size (bytes, or with KiB, MiB, GiB)"
    metavar = "SIZE"

    def parse(self, raw: object) -> int:
        number, unit = _number_and_unit(raw, "must be a size such as 65536, 64KiB or 1MiB")
        factor = _SIZE_UNITS.get(unit.lower())
        if factor is None:
            raise ValueError(f"has the unknown unit {unit!r}; use KiB, MiB or GiB")
        value = number * factor
        if value != int(value):
            raise ValueError("must be a whole number of bytes")
        return int(value)

    def show(self, value: object) -> str:
        assert isinstance(value, int)
        for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if value and value % factor == 0:
                return f"{value // factor}{unit}"
        return str(value)


class Duration:
    """A time span in seconds, fractions allowed."""

    label = "duration (seconds, or with ms, s, m, h, d)"
    metavar = "TIME"

    def parse(self, raw: object) -> float:
        number, unit = _number_and_unit(raw, "must be a duration such as 10s, 1.5m or 7d")
        factor = _TIME_UNITS.get(unit.lower())
        if factor is None:
            raise ValueError(f"has the unknown unit {unit!r}; use ms, s, m, h or d")
        return number * factor

    def show(self, value: object) -> str:
        assert isinstance(value, (int, float))
        if value and value == int(value):
            for unit, factor in (("d", 86400), ("h", 3600), ("m", 60)):
                if value % factor == 0:
                    return f"{int(value) // factor}{unit}"
            return f"{int(value)}s"
        return f"{value:.9f}".rstrip("0").rstrip(".") + "s"


class WholeSeconds(Duration):
    """A time span in whole seconds, as MQTT counts it."""

    label = "duration (whole seconds, or with s, m, h, d)"

    def parse(self, raw: object) -> int:
        value = super().parse(raw)
        if value != int(value):
            raise ValueError("must be a whole number of seconds")
        return int(value)


class Lifetime(WholeSeconds):
    """Whole seconds or `never`."""

    label = "duration (whole seconds, or with s, m, h, d) or never"

    def parse(self, raw: object) -> int:
        if isinstance(raw, str) and raw.strip().lower() == "never":
            return NEVER_S
        return super().parse(raw)

    def show(self, value: object) -> str:
        return "never" if value == NEVER_S else super().show(value)


class Choice:
    """One of a few words. Where two of them are yes and no, the truth values of TOML stand for these."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.label = " or ".join(words)
        self.metavar = "|".join(words)

    def parse(self, raw: object) -> str:
        if isinstance(raw, bool):
            raw = next((word for word in (("true", "on") if raw else ("false", "off")) if word in self.words), "")
        word = raw.strip().lower() if isinstance(raw, str) else ""
        if word not in self.words:
            raise ValueError(f"must be one of {', '.join(self.words)}")
        return word

    def show(self, value: object) -> str:
        return str(value)


class Assignments:
    """What is chosen for some names: a TOML array, or text separated by commas or spaces, of NAME=WORD."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.label = f"list of NAME={'|'.join(words)}"
        self.metavar = "NAME=WORD"

    def parse(self, raw: object) -> tuple[tuple[str, str], ...]:
        items = re.split(r"[,\s]+", raw.strip()) if isinstance(raw, str) else raw
        if not isinstance(items, (list, tuple)):
            raise ValueError(f"must be a list of NAME={'|'.join(self.words)}")
        pairs = [self._pair(item) for item in items if item != ""]
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"has {name!r} twice")
        return tuple(pairs)

    def _pair(self, item: object) -> tuple[str, str]:
        name, _, word = item.rpartition("=") if isinstance(item, str) else ("", "", "")
        if not name or re.search(r"[\s,/+#]", name) or word.lower() not in self.words:
            raise ValueError(f"has {item!r}; write NAME= and one of {', '.join(self.words)}")
        return name, word.lower()

    def show(self, value: object) -> str:
        assert isinstance(value, tuple)
        return ",".join(f"{name}={word}" for name, word in value)


class FilePath:
    """A path; empty text is none. `~` is the home directory, a relative path starts where the broker was started."""

    label = "path"
    metavar = "PATH"

    def parse(self, raw: object) -> Path | None:
        if not isinstance(raw, (str, Path)) or "\0" in str(raw):
            raise ValueError("must be a path")
        if str(raw) == "":
            return None
        try:
            return Path(raw).expanduser()
        except RuntimeError as error:  # "~someone" who does not exist
            raise ValueError(str(error)) from None

    def show(self, value: object) -> str:
        return "" if value is None else str(value)


class HttpAddress:
    """`host:port` of the HTTP server, or `off`."""

    label = "HOST:PORT or off"
    metavar = "HOST:PORT"

    def parse(self, raw: object) -> Endpoint | None:
        if raw is False:
            return None
        if not isinstance(raw, str) or not raw.strip():
            raise ValueError("must be HOST:PORT or off")
        text = raw.strip().removeprefix("http://").removesuffix("/")
        return None if text.lower() == "off" else host_and_port("http", text, default_port=None)

    def show(self, value: object) -> str:
        return value.authority if isinstance(value, Endpoint) else "off"


class Store:
    """Where shared state lives."""

    label = (
        "embedded, memory, or a URL: redis://, redis+sentinel://, redis+cluster://, the same with rediss, or unix://"
    )
    metavar = "STORE"

    def parse(self, raw: object) -> str:
        text = raw.strip() if isinstance(raw, str) else ""
        if text.lower() in ("embedded", "memory"):
            return text.lower()
        try:
            url = urlsplit(text)
            options = {key for key, _ in parse_qsl(url.query, keep_blank_values=True)}
            servers = [urlsplit(f"//{server}") for server in url.netloc.rpartition("@")[2].split(",")]
            ports = [server.port for server in servers]
        except ValueError:
            raise ValueError("is no valid URL") from None
        base, _, kind = url.scheme.partition("+")
        if (base not in ("redis", "rediss") and url.scheme != "unix") or kind not in ("", "sentinel", "cluster"):
            raise ValueError(
                "must be embedded, memory, redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,HOST:PORT/PRIMARY, "
                "redis+cluster://HOST:PORT,HOST:PORT, one of these with rediss (TLS), or unix:///PATH?db=DB"
            )
        known = {"db"} | (_TLS_OPTIONS if base == "rediss" else set())
        if kind == "sentinel":
            known |= {"sentinel_username", "sentinel_password"}
        if options - known or url.fragment:
            raise ValueError(f"may have only {', '.join(sorted(known))} after the question mark")
        if url.scheme == "unix":
            if not url.path.startswith("/") or url.hostname:
                raise ValueError("must name an absolute path: unix:///PATH")
            return text
        if not all(server.hostname for server in servers):
            raise ValueError("must name a host")
        if 0 in ports:
            raise ValueError("must have a port from 1 to 65535")
        self._check_path(url.path, kind, len(servers))
        return text

    def _check_path(self, path: str, kind: str, servers: int) -> None:
        if kind == "sentinel":
            if not re.fullmatch(r"/[^/]+/?", path):
                raise ValueError("must end in the name by which the Sentinels know the primary, such as /mymaster")
        elif kind == "cluster":
            if path not in ("", "/", "/0"):
                raise ValueError("has a database number, but a Redis Cluster has only database 0")
        elif servers > 1:
            raise ValueError("has several hosts; redis+sentinel:// and redis+cluster:// take them")
        elif not re.fullmatch(r"(/\d{0,5})?", path, re.ASCII):
            raise ValueError("must end in a database number, such as /0")

    def show(self, value: object) -> str:
        return str(value)


def hide_password(url: str) -> str:
    """The URL with `***` for the user and password in it; to be safe with any text, not only with valid URLs."""
    hidden = re.sub(r"(['\"])[^\s/'\"]*:[^\s/'\"]*@", r"\1***@", re.sub(r"//.*@", "//***@", url))
    return re.sub(r"sentinel_password=[^&#]*", "sentinel_password=***", hidden)


class Url(Text):
    """A URL that may have a secret in it: shown without user, password and what the query says."""

    label = "URL"
    metavar = "URL"

    def masked(self, value: object) -> str:
        """As `show`, without secrets; placeholders stay."""
        assert isinstance(value, str)
        return re.sub(r"([?&][^=&#]*=)(?!\$\{\w+\}(?:&|$))[^&#]+", r"\1***", hide_password(value))


def _number_and_unit(raw: object, expected: str) -> tuple[float, str]:
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        if not 0 <= raw < 1 << 53:  # False for NaN as well
            raise ValueError(expected)
        return float(raw), ""
    match = _NUMBER.fullmatch(raw) if isinstance(raw, str) and len(raw) <= 32 else None
    if match is None:
        raise ValueError(expected)
    return float(match[1]), match[2]


def host_and_port(scheme: str, text: str, default_port: int | None) -> Endpoint:
    """The endpoint for `host:port`, `[v6]:port`, `host` or `:port` (all interfaces)."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:/?#@\[\]\s]*))(?::(\d{1,5}))?/?", text, re.ASCII)
    if match is None:
        raise ValueError(f"has {text!r}, which is not HOST:PORT (an IPv6 address goes in [brackets])")
    if match[1] is not None:
        try:
            ipaddress.IPv6Address(match[1])
        except ValueError:
            raise ValueError(f"has {match[1]!r}, which is no IPv6 address") from None
    host = match[1] or match[2] or "0.0.0.0"
    if match[3] is None and (default_port is None or not text):
        raise ValueError(f"has {text!r}, which names no port")
    port = int(match[3]) if match[3] is not None else default_port
    if port is None or port > 65535:
        raise ValueError(f"has port {port}; a port is 0 to 65535")
    return Endpoint(scheme, host, port)
