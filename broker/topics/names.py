"""Topic names and topic filters: what is valid, and the plain statement of what matches what.

Strings here are decoded UTF-8 already; the codec has refused what is no UTF-8. Only `/`, `+`, `#`,
NUL and a leading `$` mean something; a space, a dot, `*` and `>` are ordinary characters. How many levels
clients may use is a setting, which is asked where they come in.
"""

from __future__ import annotations

from typing import Final

from broker.errors import PeerError

MAX_BYTES: Final = 65535
"""Longest UTF-8 encoding of a name or filter, the limit of the wire format."""

_TOPIC_FILTER_INVALID: Final = 0x8F
_TOPIC_NAME_INVALID: Final = 0x90
_SHARE_PREFIX: Final = "$share/"
_SHOWN: Final = 80


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else repr(text[:_SHOWN]) + "..."


def _defect(text: str) -> str:
    """What is wrong with `text` both as a name and as a filter, or an empty string."""
    if not text:
        return "is empty"  # [MQTT-4.7.3-1]
    if "\x00" in text:
        return "contains a NUL character"  # [MQTT-4.7.3-2]
    # A character takes four bytes at most: most strings need no encoding to be known short enough.
    if len(text) * 4 > MAX_BYTES and len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        return f"is longer than {MAX_BYTES} bytes"  # [MQTT-4.7.3-3]
    return ""


def check_topic_name(topic: str) -> None:
    """Raise PeerError 0x90 unless messages may be published to `topic`."""
    defect = _defect(topic)
    if not defect and ("+" in topic or "#" in topic):
        defect = "contains a wildcard character"  # [MQTT-3.3.2-2]
    if defect:
        raise PeerError(_TOPIC_NAME_INVALID, f"topic name {_shown(topic)} {defect}")


def check_topic_filter(topic_filter: str) -> None:
    """Raise PeerError 0x8F unless `topic_filter`, plain or `$share/name/filter`, may be subscribed to."""
    share_name, plain_filter = split_shared(topic_filter)
    defect = _defect(plain_filter)
    if not defect and share_name and len(topic_filter.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        defect = f"is longer than {MAX_BYTES} bytes"
    if not defect and "\x00" in share_name:
        defect = "contains a NUL character"
    if not defect and ("+" in plain_filter or "#" in plain_filter):
        defect = _wildcard_defect(plain_filter)
    if defect:
        raise PeerError(_TOPIC_FILTER_INVALID, f"topic filter {_shown(topic_filter)} {defect}")


def _wildcard_defect(plain_filter: str) -> str:
    levels = plain_filter.split("/")
    last = len(levels) - 1
    for position, level in enumerate(levels):
        if "#" in level and (level != "#" or position != last):
            return "has a # that is not the whole last level"  # [MQTT-4.7.1-1]
        if "+" in level and level != "+":
            return "has a + that is not a whole level"  # [MQTT-4.7.1-2]
    return ""


def is_shared(topic_filter: str) -> bool:
    """Whether the filter is that of a shared subscription."""
    return topic_filter.startswith("$share/")


def split_shared(topic_filter: str) -> tuple[str, str]:
    """Return the share name ("" for a subscription that is not shared) and the filter without `$share/name/`.

    Raises PeerError 0x8F if the filter begins with `$share/` and no share name and filter follow.
    """
    if not topic_filter.startswith(_SHARE_PREFIX):
        return "", topic_filter
    share_name, slash, plain_filter = topic_filter[len(_SHARE_PREFIX) :].partition("/")
    if not share_name:
        defect = "has an empty share name"  # [MQTT-4.8.2-1]
    elif "+" in share_name or "#" in share_name:
        defect = "has a wildcard character in the share name"  # [MQTT-4.8.2-2]
    elif not slash or not plain_filter:
        defect = "has no filter after the share name"  # [MQTT-4.8.2-2]
    else:
        return share_name, plain_filter
    raise PeerError(_TOPIC_FILTER_INVALID, f"topic filter {_shown(topic_filter)} {defect}")


def has_wildcard(topic_filter: str) -> bool:
    """Whether a valid plain filter can match more than the one topic name it spells."""
    return "+" in topic_filter or "#" in topic_filter


def matches(topic_filter: str, topic_name: str) -> bool:
    """Whether a valid plain filter matches a valid topic name; the reference the indexes are tested against."""
    return levels_match(topic_filter.split("/"), topic_name.split("/"))


def levels_match(filter_levels: list[str], name_levels: list[str]) -> bool:
    """`matches` on strings that are split into their levels already."""
    if name_levels[0].startswith("$") and filter_levels[0] in ("+", "#"):
        return False  # [MQTT-4.7.2-1]
    for position, level in enumerate(filter_levels):
        if level == "#":
            return True
        if position == len(name_levels):
            return False
        if level != "+" and level != name_levels[position]:
            return False
    return len(filter_levels) == len(name_levels)
