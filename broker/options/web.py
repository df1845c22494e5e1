"""Values that only questions to web services have."""

from __future__ import annotations

import re

_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)?")


class HeaderLines:
    """Request headers: a TOML array of `Name: value`, or text with one in each line (%0A on the command line)."""

    label = "list of NAME:VALUE"
    metavar = "NAME:VALUE"

    def parse(self, raw: object) -> tuple[str, ...]:
        items = raw.split("\n") if isinstance(raw, str) else raw
        if not isinstance(items, (list, tuple)):
            raise ValueError("must be a list of NAME:VALUE")
        found: list[str] = []
        for item in items:
            if item == "":
                continue
            matched = _HEADER.fullmatch(item) if isinstance(item, str) else None
            if matched is None:  # the value may be a secret
                raise ValueError("has something that is no request header; write NAME:VALUE")
            found.append(f"{matched[1]}:{matched[2] or ''}")
        return tuple(found)

    def show(self, value: object) -> str:
        assert isinstance(value, tuple)
        return "\n".join(value)
