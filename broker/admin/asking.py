"""Nodes asking each other: a question goes to each as a message of its own, and so do the answers come back.

All of it goes through the nodes' connections with the store, with the messages of clients, and with what tells the
cluster that a node lives. So few questions at a time are open between two nodes, an answer is small and not followed at
once by the next, and what nobody waits for any more is not begun.
"""

from __future__ import annotations

import inspect
import math
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from broker.admin.api import FAILED, UNAVAILABLE, AdminError
from broker.admin.inside import PRIVATE
from broker.admin.questions import LOOKS, QUESTIONS, Answers
from broker.admin.turns import ANSWERING, Turns
from broker.errors import ClusterError
from broker.log import get_logger
from broker.message import Message
from cluster.api import NodeTarget, Publication

if TYPE_CHECKING:
    from broker.admin.office import Office

ASK: Final = PRIVATE + "ask"
ANSWER: Final = PRIVATE + "answer"

#: How long the others may take.
PATIENCE_S: Final = 2.0

#: How long a node may take that never said anything though it was waited for once: most likely it is of an older
#: version, and knows no questions.
MUTE_S: Final = 0.2

#: Questions of one kind that one node has for another at a time; others wait.
OPEN_MAX: Final = 8

#: Bytes of an answer; a larger one is refused. Lists keep far below it (`broker.admin.paging.PART_BYTES`).
ANSWER_BYTES: Final = 4 * 1024 * 1024

#: Answers larger than this wait for each other: so many bytes a second of them leave a node.
_SMALL_BYTES: Final = 16 * 1024
_BYTES_PER_S: Final = 8 * 1024 * 1024

_log = get_logger("admin")


class _Question(msgspec.Struct):
    id: str
    back_to: str
    name: str
    arguments: dict[str, Any]
    #: Until when the answer is waited for (store time, ms).
    until_ms: int


class _Answer(msgspec.Struct):
    id: str
    node: str
    result: Any = None
    #: Status and text of an AdminError.
    refused: tuple[int, str] | None = None


class _Line:
    """Questions to one member: so many are open, and the others wait in order."""

    __slots__ = ("open", "waiting")

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.waiting: deque[tuple[str, bytes]] = deque()


class _Waiting:
    def __init__(self, members: dict[str, str], looks: bool) -> None:
        self.looks = looks
        #: Names of nodes by member, of those that have not answered.
        self.members = members
        self.answers = Answers()
        self.refusals: dict[str, AdminError] = {}
        #: All answered; all that are expected to.
        self.done = trio.Event()
        self.enough = trio.Event()

    def look(self, mute: Set[str]) -> None:
        """Whether anybody is missing."""
        if not self.members:
            self.done.set()
        if self.members.keys() <= mute:
            self.enough.set()


class Asking:
    """Of one office."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._waiting: dict[str, _Waiting] = {}
        #: By member, and by whether they look.
        self._lines: dict[tuple[str, bool], _Line] = {}
        #: Members that said something, and those that did not though they were waited for.
        self._heard: set[str] = set()
        self._mute: set[str] = set()
        self._answering = Turns(ANSWERING)
        #: When the next large answer may leave.
        self._free_at = 0.0
        office.inside.listen(ASK, self._asked)
        office.inside.listen(ANSWER, self._answered)

    async def ask(
        self, name: str, arguments: Mapping[str, Any], nodes: Sequence[str] | None, patience_s: float
    ) -> tuple[Answers, dict[str, AdminError]]:
        """Ask live nodes (None: all, this one included) by name; returns what they said, and who refused."""
        office = self._office
        members = {member: member.rpartition(":")[0] for member in office.cluster.health().members}
        here = office.name
        wanted = {*members.values(), here} if nodes is None else set(nodes)
        others = {member: node for member, node in members.items() if node in wanted and node != here}
        looks = name in LOOKS
        waiting = _Waiting(dict(others), looks)
        waiting.answers.missing = sorted(wanted - {*others.values(), here})
        key = os.urandom(8).hex()
        if others:
            self._waiting[key] = waiting
            own = next((member for member in members if members[member] == here), "")
            until_ms = office.cluster.now_ms() + round(1000 * patience_s)
            payload = msgspec.json.encode(_Question(key, own, name, dict(arguments), until_ms))
            for member in others:
                self._ask(member, looks, key, payload)
        waiting.look(self._mute)
        begun = trio.current_time()
        try:
            if here in wanted:
                try:
                    waiting.answers.by_node[here] = await self._carry_out(name, dict(arguments), patience_s, None)
                except AdminError as error:
                    waiting.refusals[here] = error
            with trio.move_on_after(patience_s):
                await waiting.enough.wait()
                with trio.CancelScope(deadline=begun + MUTE_S):
                    await waiting.done.wait()
            if waiting.members and patience_s >= PATIENCE_S:
                self._mute = (self._mute | waiting.members.keys()) & members.keys() - self._heard
        finally:
            self._waiting.pop(key, None)
            for member in waiting.members:
                self._done(member, looks, key)
        waiting.answers.missing += sorted(waiting.members.values())
        return waiting.answers, waiting.refusals

    def _hear(self, member: str) -> None:
        """It knows questions."""
        if member not in self._heard:
            self._heard = (self._heard & set(self._office.cluster.health().members)) | {member}
            self._mute.discard(member)

    def _ask(self, member: str, looks: bool, key: str, payload: bytes) -> None:
        """Ask, now or when an earlier question is done with."""
        line = self._lines.setdefault((member, looks), _Line())
        if len(line.open) < OPEN_MAX:
            line.open.add(key)
            self._send(ASK, payload, [member])
        else:
            line.waiting.append((key, payload))

    def _done(self, member: str, looks: bool, key: str) -> None:
        """This question to the member was answered, or is not waited for any more."""
        line = self._lines.get((member, looks))
        if line is None:
            return
        line.open.discard(key)
        while line.waiting and len(line.open) < OPEN_MAX:
            following, payload = line.waiting.popleft()
            if following in self._waiting:
                line.open.add(following)
                self._send(ASK, payload, [member])
        if not line.open:
            del self._lines[member, looks]

    async def _carry_out(self, name: str, arguments: dict[str, Any], patience_s: float, turns: Turns | None) -> Any:
        """What the node says, when it has its turn. What was begun and does not only look is not broken off."""
        with trio.move_on_after(patience_s) as scope:
            async with self._office.looking.turn() if name in LOOKS else _at_once() if turns is None else turns.turn():
                if name not in LOOKS:
                    scope.deadline = math.inf
                return await self._say(name, arguments)
        raise AdminError(UNAVAILABLE, "busy", f"node {self._office.name!r} could not answer in time")

    async def _say(self, name: str, arguments: dict[str, Any]) -> Any:
        handler = QUESTIONS.get(name)
        if handler is None:
            raise AdminError(FAILED, "unknown question", f"the node does not know the question {name!r}")
        result = handler(self._office, arguments)
        if inspect.isawaitable(result):
            result = await result
        return msgspec.to_builtins(result)

    def _send(self, topic: str, payload: bytes, members: Sequence[str]) -> None:
        message = Message(topic.encode(), payload, 0, False)
        targets = [NodeTarget(member.encode()) for member in members]
        self._office.cluster.publish(Publication(message, nodes=targets))
        self._office.server.reactor.wake()

    def _asked(self, message: Message) -> None:
        """Another node has a question."""
        try:
            question = msgspec.json.decode(message.payload, type=_Question)
        except msgspec.DecodeError:
            _log.warning("admin.bad_question")
            return
        self._hear(question.back_to)

        until = trio.current_time() + (question.until_ms - self._office.cluster.now_ms()) / 1000

        async def work() -> None:
            left_s = until - trio.current_time()
            if left_s <= 0:
                return  # nobody waits for it any more
            answer = _Answer(question.id, self._office.name)
            try:
                answer.result = await self._carry_out(question.name, question.arguments, left_s, self._answering)
            except AdminError as error:
                answer.refused = (error.status, error.detail)
            except ClusterError as error:
                answer.refused = (503, str(error))
            except Exception as error:
                _log.exception("admin.question_failed", question=question.name)
                answer.refused = (FAILED, f"{type(error).__name__} in node {self._office.name}")
            payload = msgspec.json.encode(answer)
            if len(payload) > ANSWER_BYTES:
                refused = (UNAVAILABLE, f"the answer of node {answer.node!r} is too large: {len(payload)} bytes")
                payload = msgspec.json.encode(_Answer(question.id, answer.node, refused=refused))
            if len(payload) > _SMALL_BYTES:
                leaves_at = max(trio.current_time(), self._free_at)
                if leaves_at > until:
                    return
                self._free_at = leaves_at + len(payload) / _BYTES_PER_S
                await trio.sleep_until(leaves_at)
            self._send(ANSWER, payload, [question.back_to])

        self._office.server.start(work)

    def _answered(self, message: Message) -> None:
        try:
            answer = msgspec.json.decode(message.payload, type=_Answer)
        except msgspec.DecodeError:
            _log.warning("admin.bad_answer")
            return
        waiting = self._waiting.get(answer.id)
        if waiting is None:  # too late
            for each in self._office.cluster.health().members:
                if each.rpartition(":")[0] == answer.node:
                    self._hear(each)
            return
        member = next((each for each, node in waiting.members.items() if node == answer.node), None)
        if member is None:
            return
        self._hear(member)
        node = waiting.members.pop(member)
        self._done(member, waiting.looks, answer.id)
        if answer.refused is not None:
            waiting.refusals[node] = AdminError(answer.refused[0], "a node refused", answer.refused[1])
        else:
            waiting.answers.by_node[node] = answer.result
        waiting.look(self._mute)


@asynccontextmanager
async def _at_once() -> AsyncIterator[None]:
    yield
