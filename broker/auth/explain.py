"""Which rule decides a question, in words: for those who write rules."""

from __future__ import annotations

from typing import Final

import trio

from broker.auth.api import ALLOW, IGNORE, SUBSCRIBE, BackendError, Judge, Principal, RuleSource
from broker.auth.judging import EntriesJudge
from broker.auth.permissions import Authorization, Permissions

_WORDS: Final = {True: "allow", False: "deny"}


class Explanation:
    """An answer and where it comes from."""

    __slots__ = ("allowed", "notes", "reason")

    def __init__(self, allowed: bool, reason: str, notes: list[str]) -> None:
        self.allowed = allowed
        self.reason = reason
        #: What was asked before, and what else there is to know.
        self.notes = notes

    def __str__(self) -> str:
        return f"{_WORDS[self.allowed]}: {self.reason}"


async def explain(
    authorization: Authorization, principal: Principal, action: int, topic: str, qos: int = 0, retain: bool = False
) -> Explanation:
    """Ask the sources as a connection would; `topic` is a filter for SUBSCRIBE. Raises BackendError.

    Sources have to be served meanwhile."""
    permissions = await authorization.permissions(principal)
    if permissions.unrestricted:
        why = "a superuser may do everything" if principal.superuser else "no rule source is asked about this client"
        return Explanation(True, why, [])
    listener = principal.peer.listener
    notes = [
        f"{source.name}: only about clients of {', '.join(listeners)}"
        for source, listeners in authorization.sources
        if listeners and listener not in listeners
    ]
    for name, judge in permissions.judges():
        decision, origin = await _asked(judge, action, topic, qos, retain)
        source = name or "rules of the credentials"
        if decision == IGNORE:
            notes.append(f"{source}: no rule applies")
            continue
        if action == SUBSCRIBE and decision == ALLOW:
            notes.append(_of_deliveries(permissions.covers(topic)))
        return Explanation(decision == ALLOW, f"{source}: {origin}" if origin else f"{source} says so", notes)
    allowed = authorization.no_match(topic)
    return Explanation(allowed, f"no rule applies, and no_match = {_WORDS[allowed]}", notes)


def _of_deliveries(covered: bool) -> str:
    if covered:
        return "everything that the filter matches may be read"
    return "what is delivered is looked at message by message: a topic of the filter may be denied"


async def _asked(judge: Judge, action: int, topic: str, qos: int, retain: bool) -> tuple[int, str]:
    if isinstance(judge, EntriesJudge):
        entry = judge.find(action, topic, qos, retain)
        if entry is not None:
            return entry.decision, entry.origin
        return judge.otherwise, "" if judge.otherwise == IGNORE else "whatever no rule before decides"
    decision = judge.decide(action, topic, qos, retain)
    if decision is None:
        decision = await judge.ask(action, topic, qos, retain)
    return decision, ""


def explain_now(
    authorization: Authorization, permissions: Permissions, action: int, topic: str, qos: int, retain: bool
) -> str:
    """Where the answer comes from that the permissions of a connection just gave; nobody is asked again."""
    for name, judge in permissions.judges():
        source = name or "rules of the credentials"
        if isinstance(judge, EntriesJudge):
            entry = judge.find(action, topic, qos, retain)
            if entry is not None:
                return f"{source}: {entry.origin}" if entry.origin else source
            if judge.otherwise != IGNORE:
                return f"{source}: whatever no rule before decides"
        elif judge.decide(action, topic, qos, retain) != IGNORE:
            return source  # None: the answer is not kept, so it was this one
    return f"no rule applies, and no_match = {_WORDS[authorization.no_match_allows]}"


async def explain_once(
    authorization: Authorization, principal: Principal, action: int, topic: str, qos: int, retain: bool
) -> Explanation:
    """The same with sources that nobody serves yet."""
    found: Explanation | BackendError
    async with trio.open_nursery() as nursery:
        for source in authorization.asked(principal):
            await nursery.start(_served, source)
        try:
            found = await explain(authorization, principal, action, topic, qos, retain)
        except BackendError as error:
            found = error
        nursery.cancel_scope.cancel()
    if isinstance(found, BackendError):
        raise found
    return found


async def _served(source: RuleSource, *, task_status: trio.TaskStatus[None]) -> None:
    await source.serve(task_status=task_status)
