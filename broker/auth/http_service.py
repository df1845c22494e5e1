"""A web service that knows the users."""

from __future__ import annotations

import time
from collections.abc import Mapping

import trio

from broker.auth.api import ALLOW, DENIED, DENY, IGNORED, BackendError, ConnectRequest, Verdict
from broker.auth.base import BaseAuthenticator
from broker.auth.claims import attributes_of, expiry_of, name_of, rules_of, truth_of
from broker.auth.template import lookup_of
from broker.auth.web_question import Improper, WebQuestion, WebService
from broker.log import get_logger
from broker.options.authentication import HttpAuthentication

_log = get_logger("authentication")


class HttpUsers(BaseAuthenticator):
    """Implements `Authenticator`: the service decides.

    A client whose name or password cannot be sent (a slash where it would be part of the path, a password that is
    no UTF-8) is refused without a question.
    """

    def __init__(self, options: HttpAuthentication) -> None:
        super().__init__(options.label)
        question = WebQuestion(options.url, options.method, options.body, options.headers, frozenset({"password"}))
        self._service = WebService(question, options.method, options.timeout_s, options.pool, options.ca_certs)
        #: What a decision depends on, for who keeps decisions for a while.
        self.cached: frozenset[str] | None = question.names

    async def authenticate(self, request: ConnectRequest) -> Verdict:
        """See `Authenticator`."""
        try:
            password = None if request.password is None else request.password.decode()
            question = self._service.question.render(lookup_of(request, password=password))
        except (Improper, UnicodeDecodeError):
            _log.info("authentication.cannot_be_asked", authenticator=self.name, client_id=request.client_id)
            return DENIED
        decision, answer = await self._service.ask(question)
        if decision == ALLOW:
            try:
                return _verdict(answer)
            except ValueError as error:
                raise BackendError(f"{error!s:.200}") from None
        return DENIED if decision == DENY else IGNORED

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `Authenticator`."""
        await self._service.serve(task_status=task_status)


def _verdict(answer: Mapping[str, object]) -> Verdict:
    """What the service allows; ValueError for what makes no sense."""
    now = time.time()
    ends_s = expiry_of(answer.get("expire_at"), now)
    if ends_s is not None and ends_s <= now:
        return DENIED
    username = answer.get("username")
    client_id = answer.get("clientid")
    acl = answer.get("acl")
    return Verdict(
        ALLOW,
        None if username is None else name_of(username),
        client_id=None if client_id is None else name_of(client_id),
        superuser=truth_of(answer.get("is_superuser")),
        attributes=attributes_of(answer.get("client_attrs")),
        rules=None if acl is None else rules_of(acl),
        expires_at_s=ends_s,
    )
