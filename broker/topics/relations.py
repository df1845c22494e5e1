"""How topic filters relate to each other: which matches all that another matches, and what two have in common.

Filters are valid and split into their levels. There are infinitely many names for a level, so no number of names
covers a `+`; `#` matches the level above it too; a leading wildcard matches no name that begins with `$`; and the
empty text is no topic name.
"""

from __future__ import annotations

from collections.abc import Sequence


def covers(wide: Sequence[str], narrow: Sequence[str]) -> bool:
    """Whether every topic name that `narrow` matches is matched by `wide`."""
    if narrow[0].startswith("$") and wide[0] in ("+", "#"):
        return False
    if narrow[0] == "#":
        narrow = ("+", "#")  # no name has less than one level
    elif narrow[0] == "" and len(narrow) == 2 and narrow[1] == "#":
        narrow = ("", "+", "#")
    for position, level in enumerate(wide):
        if level == "#":
            return True
        if position == len(narrow):
            return False
        other = narrow[position]
        if other == "#" or (level != "+" and level != other):
            return False
    return len(wide) == len(narrow)


def common(one: Sequence[str], two: Sequence[str]) -> list[str] | None:
    """The filter of the topic names that both match; None if there are none."""
    if (one[0].startswith("$") and two[0] in ("+", "#")) or (two[0].startswith("$") and one[0] in ("+", "#")):
        return None
    found: list[str] = []
    for position in range(max(len(one), len(two))):
        here = one[position] if position < len(one) else None
        there = two[position] if position < len(two) else None
        if here is None:
            return found if there == "#" and found != [""] else None
        if there is None:
            return found if here == "#" and found != [""] else None
        if here == "#":
            return [*found, *two[position:]]
        if there == "#":
            return [*found, *one[position:]]
        if here != there and "+" not in (here, there):
            return None
        found.append(there if here == "+" else here)
    return found
