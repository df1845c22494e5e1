"""The layout of what lies in the store: its version, and what to do about another one."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker import __version__

#: The version of keys, records and functions together. A release that changes it comes with a migration
#: (`cluster.redis.migrating`); docs/upgrading.md says when that is.
LAYOUT = 1

#: What this version can do beyond that; nodes use only what all live ones can. 2: takes runs of packets of other nodes.
FEATURES = 2
#: From this level on nodes push runs to each other (`cluster.records.PUSHED_RUN`).
RUNS = 2


def parsed(text: str) -> tuple[int, int]:
    """The layout that a store has and the one that it is moved to, from what it says: "1", or "1>2" on the way.

    Raises ValueError."""
    found, moving, target = text.partition(">")
    return int(found), int(target) if moving else int(found)


def refusal(text: str) -> str:
    """One line for a node that finds a store which says this, and not its own layout: what to do."""
    own = f"version {__version__} has layout {LAYOUT}"
    try:
        found, target = parsed(text)
    except ValueError:
        return f"the store's data has the unknown layout {text[:40]!r}; {own}"
    if target > LAYOUT:
        return f"the store's data has layout {text}, {own}: start a newer version, or restore a backup for this one"
    if found != target:
        return (
            f"the store's data is on its way from layout {found} to {target}, {own}: let `rookery store migrate` come "
            "to its end, run it again if it was interrupted"
        )
    return (
        f"the store's data has layout {found}, {own}: stop all nodes and run `rookery store migrate`, "
        "or go on with the version before"
    )


@dataclass
class Member:
    """One incarnation of a node. `lease_s`: how long it is live without a beat; less than 0: over."""

    node: str
    incarnation: int
    version: str
    library: str
    level: int
    lease_s: float


@dataclass
class StoreStatus:
    """Of one namespace. `layout` "" : there is no data yet. `libraries`: by server, names with whether they are those
    of this version, of another build of it, or of another version. `migration`: see `cluster.redis.migrating`."""

    namespace: str
    layout: str
    partitions: int
    generation: tuple[int, int]
    members: list[Member]
    dead: int
    libraries: dict[str, dict[str, str]] = field(default_factory=dict)
    migration: dict[str, str] = field(default_factory=dict)

    @property
    def level(self) -> int | None:
        """The feature level that all members have; None without any."""
        return min((each.level for each in self.members), default=None)
