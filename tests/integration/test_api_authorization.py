"""Who may do what over HTTP: every operation that is declared, with every kind of credential."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from broker.admin.api import SCOPES, Scope, permits
from broker.admin.catalogue import SUBJECTS
from broker.admin.operations import INTERNAL, OPERATIONS, Operation
from tests.kit.api import ADMIN_ARGUMENTS, ADMIN_SECRET, admin_of, client_of, log_in, make_key, path_of
from tests.kit.broker_process import BrokerProcess

assert SUBJECTS

EVERY = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)


class World:
    """A node with keys of each scope, and a login."""

    def __init__(self, node: BrokerProcess, open_: ExitStack) -> None:
        def key(name: str, scope: str, **options: Any) -> httpx.Client:
            return open_.enter_context(client_of(node, make_key(self.admin, name, scope, **options)))

        self.admin = open_.enter_context(admin_of(node))
        self.by_scope = {scope: key(f"test-{scope}", scope) for scope in SCOPES}
        self.nobody = open_.enter_context(client_of(node))
        self.login = open_.enter_context(log_in(node, "admin", ADMIN_SECRET))
        self.deleted = key("gone", "admin")
        self.wrong = open_.enter_context(client_of(node, "rk_test-admin_" + "0" * 64))
        assert self.deleted.get("/whoami").status_code == 200
        assert self.admin.delete("/keys/gone").status_code == 204
        self.over = key("over", "admin", expires_in_s=1)
        while self.over.get("/whoami").status_code == 200:  # it ends within a second
            pass
        while self.deleted.get("/whoami").status_code == 200:
            pass


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    node = BrokerProcess(tmp_path_factory.mktemp("api") / "n", "memory", http="127.0.0.1:0", arguments=ADMIN_ARGUMENTS)
    node.start()
    try:
        with ExitStack() as open_:
            yield World(node, open_)
    finally:
        node.stop()


def send(client: httpx.Client, operation: Operation[Any], **headers: str) -> int:
    """The status of an operation that lacks its arguments: it does nothing, and authorization comes first."""
    with client.stream(operation.method, path_of(operation), headers=headers) as answer:
        if answer.status_code != 200 or not operation.events:
            answer.read()
            if answer.status_code >= 400:
                assert answer.headers["content-type"] == "application/problem+json"
                problem = answer.json()
                assert problem["status"] == answer.status_code and problem["title"]
        return answer.status_code


@EVERY
def test_nobody_is_refused(world: World, operation: Operation[Any]) -> None:
    assert send(world.nobody, operation) == 401


@EVERY
def test_keys_that_count_no_more_are_refused(world: World, operation: Operation[Any]) -> None:
    assert send(world.deleted, operation) == 401
    assert send(world.over, operation) == 401
    assert send(world.wrong, operation) == 401


@EVERY
@pytest.mark.parametrize("scope", SCOPES)
def test_scope_decides(world: World, operation: Operation[Any], scope: Scope) -> None:
    status = send(world.by_scope[scope], operation)
    if permits(scope, operation.scope):
        assert status not in (401, 403) and status < 500
    else:
        assert status == 403


@EVERY
def test_a_login_needs_its_token_where_something_changes(world: World, operation: Operation[Any]) -> None:
    assert send(world.login, operation) not in (401, 403)
    without = send(world.login, operation, **{"X-CSRF-Token": ""})
    wrong = send(world.login, operation, **{"X-CSRF-Token": "0" * 64})
    if operation.method == "GET":
        assert without not in (401, 403) and wrong not in (401, 403)
    else:
        assert without == wrong == 403


@EVERY
def test_pages_of_others_cannot_use_a_login(world: World, operation: Operation[Any]) -> None:
    assert send(world.login, operation, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert send(world.login, operation, **{"Sec-Fetch-Site": "same-site"}) == 403
    assert send(world.login, operation, **{"Sec-Fetch-Site": "same-origin"}) != 403


@pytest.mark.parametrize("name", sorted(INTERNAL))
def test_what_http_servers_ask_has_no_way_in(world: World, name: str) -> None:
    for path in (f"/{name}", f"/{name.replace('.', '/')}"):
        assert world.admin.post(path, json={"name": "admin", "secret": "x", "token": "x"}).status_code == 404
