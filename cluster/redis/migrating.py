"""Moves what a namespace has from one layout to the next: portion by portion, by commands, while no node is a member.

A portion is one call of a function that begins where the one before ended. It may be executed twice, when whoever works
was killed before it noted how far it came: functions of migrations are idempotent. They do nothing at all when they
come later than the time that they are given: somebody else may be at it by then.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

from broker import __version__
from broker.errors import ClusterError, StoreUnavailable
from cluster import layout
from cluster.api import LEASE_S
from cluster.keys import Keys
from cluster.policy import BEAT_S
from cluster.redis.direct import Direct
from cluster.redis.library import source

#: How long one that works is alone without saying so again: far longer than a portion takes.
LOCK_S: Final = 30.0
#: How often members whose leases are over are looked at, while they are watched.
_LOOK_S: Final = BEAT_S / 4

Place = Literal["partitions", "retained", "routes", "members"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """One function that is called for each prefix of a place until all is done.

    `function` gets the store time until which it may run (ms) and a cursor ('' at first), and returns {next cursor or
    '' at the end, how many entries it looked at}; it raises an error whose first word is LATE after that time. `total`
    (no writes, no arguments) returns how many there are."""

    name: str
    place: Place
    function: str
    total: str


@dataclass(frozen=True)
class Migration:
    """From one layout to the next one; `library` has the functions."""

    layout: int
    text: str
    steps: tuple[Step, ...]
    library: Callable[[], bytes] = source


#: One for each layout that there was, in order. There is only layout 1 so far.
MIGRATIONS: Final[list[Migration]] = []


class Migrator:
    """The migrations of one namespace. All methods raise ClusterError; then what is done stays done, and whoever runs
    it again goes on there."""

    def __init__(self, store: Direct, namespace: str, say: Say) -> None:
        self._store = store
        self._namespace = namespace
        #: Between two looks.
        self.wait: Callable[[float], None] = time.sleep
        self._members = Keys(namespace, 1).members
        self._say = say
        #: No two alike; it is shown to others.
        self._who = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._until_ms = 0

    def plan(self) -> list[Migration]:
        """What has to be run, in order; nothing if the layout is that of this version. Raises ClusterError where there
        is no way, and without data: another namespace was meant."""
        text = self._meta()[0]
        if not text:
            raise ClusterError(f"there is no data in the namespace {self._namespace!r} of this store")
        if text == str(layout.LAYOUT):
            return []
        try:
            found, target = layout.parsed(text)
        except ValueError:
            raise ClusterError(layout.refusal(text)) from None
        known = {each.layout for each in MIGRATIONS}
        if max(found, target) > layout.LAYOUT:
            raise ClusterError(layout.refusal(text))
        if any(each not in known for each in range(found, layout.LAYOUT)):
            raise ClusterError(f"version {__version__} knows no way from layout {found} to {layout.LAYOUT}")
        return [each for each in MIGRATIONS if found <= each.layout < layout.LAYOUT]

    def dry_run(self) -> bool:
        """Says what `run` would do, and changes nothing. Returns whether there is anything."""
        migrations = self.plan()
        for migration in migrations:
            self._say(f"layout {migration.layout} to {migration.layout + 1}: {migration.text}")
            for step in migration.steps:
                self._say(f"  {step.name}: {self._total(migration, step)} entries")
        return bool(migrations)

    def run(self) -> bool:
        """Does all of it, or what is left of it. Returns whether there was anything."""
        migrations = self.plan()
        for migration in migrations:
            begun = self._begin(migration)
            try:
                self._migrate(migration, begun)
                self._must(self._call("rk1_layout_finish", self._who, migration.layout + 1))
            except StoreUnavailable:
                # A call may still be on its way: nobody else goes on before it would come too late.
                raise
            except ClusterError:
                with contextlib.suppress(ClusterError):
                    self._call("rk1_layout_release", self._who)
                raise
            self._say(f"layout {migration.layout + 1}: done")
        return bool(migrations)

    def _begin(self, migration: Migration) -> dict[bytes, bytes]:
        before, moving = str(migration.layout), f"{migration.layout}>{migration.layout + 1}"
        seen, since_ms, until_ms = b"", 0, 0
        while True:
            reply = self._call(
                "rk1_layout_begin", self._who, int(LOCK_S * 1000), before, moving, __version__,
                seen, since_ms, until_ms, int(LEASE_S * 1000),
            )  # fmt: skip
            match reply:
                case [b"watch", int(now), bytes(found), bytes(member)]:
                    if found != seen or now > until_ms:
                        # Or the store, or this process, stood still, and beats of nodes wait.
                        self._say(
                            f"the lease of node {member.decode()} is over: waiting {LEASE_S:g} s whether it comes back"
                        )
                        seen, since_ms = found, now
                    until_ms = now + int(BEAT_S * 1000)
                    self.wait(_LOOK_S)
                case _:
                    return self._begun(reply)

    def _begun(self, reply: object) -> dict[bytes, bytes]:
        match reply:
            case [b"begun", int(now), list(fields), list(dead)]:
                self._until_ms = now + int(LOCK_S * 1000)
                self._fence(dead)
                return dict(zip(fields[::2], fields[1::2], strict=True))
            case [b"member", bytes(member), int(left_ms)]:
                raise ClusterError(
                    f"node {member.decode()} is a member: stop all nodes first (the lease of one that was killed ends "
                    f"by itself, this one in {left_ms / 1000:.1f} s)"
                )
            case [b"locked", bytes(who), int(left_ms)]:
                raise ClusterError(
                    f"{who.decode()} (host:process) is at it; if it was killed, try again in {left_ms / 1000:.0f} s"
                )
            case [_, bytes(found)]:
                raise ClusterError(f"the layout has become {found.decode()!r} meanwhile")
        raise ClusterError(f"unexpected answer of the store: {reply!r:.100}")

    def _fence(self, dead: Sequence[bytes]) -> None:
        """What these sent before their leases ended may still be under way: none of it opens or takes a session, adds
        anything, or makes keys. What goes by the token of a session alone (acknowledgements, ends of connections) would
        be executed; it would have to be under way since more than a lease ago."""
        keys = Keys(self._namespace, int(self._meta()[1]))
        for prefix in (*keys.partitions, *keys.retained, keys.routes) if dead else ():
            self._store.function(prefix, "rk1_layout_fence", *dead)
            self._renew()

    def _migrate(self, migration: Migration, begun: dict[bytes, bytes]) -> None:
        resumed = begun.get(b"step", b"").decode()
        names = [step.name for step in migration.steps]
        if resumed and resumed not in names:
            by = begun.get(b"by", b"").decode()
            raise ClusterError(f"version {by} began this migration and was at {resumed!r}: go on with that version")
        self._say(f"layout {migration.layout} to {migration.layout + 1}: {migration.text}")
        first = names.index(resumed) if resumed else 0
        for number, step in enumerate(migration.steps[first:], first):
            at, cursor, done = 0, b"", 0
            if resumed and number == first:
                at, cursor, done = int(begun[b"at"]), begun[b"cursor"], int(begun[b"done"])
                self._say(f"  {step.name}: goes on behind {done} entries")
            self._step(migration, step, at, cursor, done)

    def _step(self, migration: Migration, step: Step, at: int, cursor: bytes, done: int) -> None:
        total, told_s = self._total(migration, step, self._renew), time.monotonic()
        self._renew()
        for position, prefix in enumerate(self._prefixes(step)):
            if position < at:
                continue
            while True:
                reply = self._store.function(prefix, step.function, self._until_ms, cursor, library=migration.library)
                cursor, count = cast("tuple[bytes, int]", reply)
                done += count
                self._keep(
                    "step", step.name, "at", position if cursor else position + 1, "cursor", cursor, "done", done
                )
                if time.monotonic() - told_s > 1:
                    told_s = time.monotonic()
                    self._say(f"  {step.name}: {done} of {total}")
                if not cursor:
                    break
        self._say(f"  {step.name}: {done} entries done")

    def _keep(self, *progress: object) -> None:
        self._renew(*progress)

    def _renew(self, *progress: object) -> None:
        now = self._must(self._call("rk1_layout_keep", self._who, int(LOCK_S * 1000), *progress))
        self._until_ms = now + int(LOCK_S * 1000)

    def _must(self, reply: object) -> int:
        if not isinstance(reply, int) or not reply:
            raise ClusterError("it took too long, and somebody else went on with the migration")
        return reply

    def _total(self, migration: Migration, step: Step, counted: Callable[[], None] = lambda: None) -> int:
        total = 0
        for prefix in self._prefixes(step):
            total += cast(int, self._store.function(prefix, step.total, library=migration.library))
            counted()
        return total

    def _prefixes(self, step: Step) -> Sequence[bytes]:
        keys = Keys(self._namespace, int(self._meta()[1]))
        if step.place == "partitions":
            return keys.partitions
        if step.place == "retained":
            return keys.retained
        return [keys.routes if step.place == "routes" else keys.members]

    def _meta(self) -> tuple[str, str]:
        found = cast("list[bytes | None]", self._store.ask(
            self._members, "HMGET", self._members + b"meta", "layout", "partitions"
        ))  # fmt: skip
        return (found[0] or b"").decode(), (found[1] or b"0").decode()

    def _call(self, name: str, *arguments: object) -> object:
        return self._store.function(self._members, name, *arguments)
