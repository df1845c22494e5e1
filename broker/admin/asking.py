"""Nodes asking each other: a question goes to each as a message of its own, and so do the answers come back."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from broker.admin.api import FAILED, AdminError
from broker.admin.inside import PRIVATE
from broker.admin.questions import QUESTIONS, Answers
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

_log = get_logger("admin")


class _Question(msgspec.Struct):
    id: str
    back_to: str
    name: str
    arguments: dict[str, Any]


class _Answer(msgspec.Struct):
    id: str
    node: str
    result: Any = None
    #: Status and text of an AdminError.
    refused: tuple[int, str] | None = None


class _Waiting:
    def __init__(self, members: dict[str, str]) -> None:
        #: Names of nodes by member, of those that have not answered.
        self.members = members
        self.answers = Answers()
        self.refusals: dict[str, AdminError] = {}
        self.done = trio.Event()


class Asking:
    """Of one office."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._waiting: dict[str, _Waiting] = {}
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
        waiting = _Waiting(dict(others))
        waiting.answers.missing = sorted(wanted - {*others.values(), here})
        key = os.urandom(8).hex()
        if others:
            self._waiting[key] = waiting
            own = next((member for member in members if members[member] == here), "")
            payload = msgspec.json.encode(_Question(key, own, name, dict(arguments)))
            self._send(ASK, payload, list(others))
        else:
            waiting.done.set()
        try:
            if here in wanted:
                try:
                    waiting.answers.by_node[here] = await self._carry_out(name, dict(arguments))
                except AdminError as error:
                    waiting.refusals[here] = error
            with trio.move_on_after(patience_s):
                await waiting.done.wait()
        finally:
            self._waiting.pop(key, None)
        waiting.answers.missing += sorted(waiting.members.values())
        return waiting.answers, waiting.refusals

    async def _carry_out(self, name: str, arguments: dict[str, Any]) -> Any:
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

        async def work() -> None:
            answer = _Answer(question.id, self._office.name)
            try:
                answer.result = await self._carry_out(question.name, question.arguments)
            except AdminError as error:
                answer.refused = (error.status, error.detail)
            except ClusterError as error:
                answer.refused = (503, str(error))
            except Exception as error:
                _log.exception("admin.question_failed", question=question.name)
                answer.refused = (FAILED, f"{type(error).__name__} in node {self._office.name}")
            self._send(ANSWER, msgspec.json.encode(answer), [question.back_to])

        self._office.server.start(work)

    def _answered(self, message: Message) -> None:
        try:
            answer = msgspec.json.decode(message.payload, type=_Answer)
        except msgspec.DecodeError:
            _log.warning("admin.bad_answer")
            return
        waiting = self._waiting.get(answer.id)
        if waiting is None:
            return  # too late
        member = next((each for each, node in waiting.members.items() if node == answer.node), None)
        if member is None:
            return
        node = waiting.members.pop(member)
        if answer.refused is not None:
            waiting.refusals[node] = AdminError(answer.refused[0], "a node refused", answer.refused[1])
        else:
            waiting.answers.by_node[node] = answer.result
        if not waiting.members:
            waiting.done.set()
