"""Mountpoints: a prefix of all topics of a client, which the client does not see.

What it publishes to and subscribes to is below the prefix; on the way to it the prefix is taken off. `$share/NAME/`
and `$delayed/SECONDS/` stay in front. Names that the server keeps to itself (`$SYS/`, `$share/`) are not moved, so they
are refused as everywhere. A Response Topic is payload to the broker and travels as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from broker.auth.api import Principal
from broker.auth.template import TOPIC_FORBIDDEN, Template, Unresolved, lookup_of
from broker.errors import ConfigError, PeerError
from broker.extensions.delayed import PREFIX as DELAYED
from broker.options.listener import Listener
from broker.topics.names import split_shared

_RESERVED = (b"$SYS/", b"$rookery/", b"$share/")


class Mount:
    """One prefix."""

    __slots__ = ("prefix", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.prefix = text.encode()

    def topic(self, topic: bytes) -> bytes:
        """The real name of a topic that the client names. What is no valid name stays none."""
        if topic.startswith(b"$"):
            if topic.startswith(DELAYED):
                digits, slash, rest = topic[len(DELAYED) :].partition(b"/")
                return DELAYED + digits + slash + (self.topic(rest) if rest else b"")
            if topic.startswith(_RESERVED):
                return topic
        return self.prefix + topic if topic else topic

    def filter(self, topic_filter: str) -> str:
        """The real filter; `topic_filter` is valid."""
        share_name, plain = split_shared(topic_filter)
        mounted = self.text + plain
        return f"$share/{share_name}/{mounted}" if share_name else mounted

    def seen(self, topic_filter: str) -> str:
        """A real filter as the client knows it."""
        share_name, plain = split_shared(topic_filter)
        plain = plain.removeprefix(self.text)
        return f"$share/{share_name}/{plain}" if share_name else plain


def mount_of(principal: Principal, mountpoint: str) -> Mount | None:
    """The mount of a client; PeerError 0x87 if a value for it is missing, or would move it elsewhere."""
    if not mountpoint:
        return None
    try:
        text = _template(mountpoint).render(lookup_of(principal), TOPIC_FORBIDDEN)
    except Unresolved as error:
        raise PeerError(0x87, f"the mountpoint needs a usable value of {error}") from None
    if text.startswith("$"):
        raise PeerError(0x87, "the mountpoint would be a topic of the server")
    return Mount(text)


@lru_cache(256)
def _template(text: str) -> Template:
    return Template(text)


def check_mountpoints(listeners: Sequence[Listener]) -> None:
    """ConfigError for a mountpoint that can never be one."""
    for listener in listeners:
        text = listener.options.mountpoint
        if not text:
            continue
        try:
            _template(text)
        except ValueError as error:
            raise ConfigError(f"mountpoint of {listener.name}: {error}") from None
        if not text.endswith("/") or text.startswith(("/", "$S", "$s", "$d")) or any(c in "+#\0" for c in text):
            raise ConfigError(
                f"mountpoint of {listener.name}: {text!r:.80} must end with /, begin with neither / nor a topic of the "
                "server, and have no wildcards"
            )
