"""A web service that knows who may do what."""

from __future__ import annotations

import trio

from broker.auth.api import DENY, PUBLISH, Principal
from broker.auth.asking import AskingSource, Once, Question
from broker.auth.template import lookup_of
from broker.auth.web_question import Improper, Rendered, WebQuestion, WebService
from broker.options.authorization import HttpRules

_NAMES = frozenset({"topic", "action", "qos", "retain"})


class HttpRuleSource(AskingSource):
    """Implements `RuleSource`: the service is asked about each topic. What cannot be sent to it is denied."""

    def __init__(self, options: HttpRules) -> None:
        super().__init__(options.label, options.refresh_s)
        question = WebQuestion(options.url, options.method, options.body, options.headers, _NAMES)
        self._service = WebService(question, options.method, options.timeout_s, options.pool, options.ca_certs)
        self._once = Once()

    def asked(self, action: int, topic: str, qos: int, retain: bool) -> Question:
        """See `AskingSource`."""
        names = self._service.question.names
        return action, topic, qos if "qos" in names else 0, retain and "retain" in names

    async def question(self, principal: Principal, asked: Question) -> int:
        """See `AskingSource`."""
        action, topic, qos, retain = asked
        lookup = lookup_of(
            principal,
            topic=topic,
            action="publish" if action == PUBLISH else "subscribe",
            qos=str(qos),
            retain="true" if retain else "false",
        )
        try:
            question = self._service.question.render(lookup)
        except Improper:
            return DENY
        return await self._once.do(question.key, lambda: self._ask(question))

    async def _ask(self, question: Rendered) -> int:
        decision, _ = await self._service.ask(question)
        return decision

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `RuleSource`."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._serve_service)
            await nursery.start(self._serve_again)
            task_status.started()

    async def _serve_service(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self._service.serve(task_status=task_status)

    async def _serve_again(self, *, task_status: trio.TaskStatus[None]) -> None:
        await super().serve(task_status=task_status)
