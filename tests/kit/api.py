"""The API of a node, for tests: requests with one of the ways to say who asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx

from broker.admin.operations import Operation
from tests.kit.broker_process import ADMIN_SECRET as ADMIN_SECRET
from tests.kit.broker_process import BrokerProcess

ADMIN_ARGUMENTS = ("--admin-secret", ADMIN_SECRET, "--http-rate", "0")
ADMIN = ("admin", ADMIN_SECRET)

PREFIX = "/api/v1"


def client_of(node: BrokerProcess, token: str | None = None, **options: Any) -> httpx.Client:
    """A client that has no credential, or sends this token; paths are below /api/v1."""
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    return httpx.Client(base_url=f"http://{node.http}{PREFIX}", headers=headers, timeout=20, trust_env=False, **options)


def admin_of(node: BrokerProcess) -> httpx.Client:
    """A client with the key `admin`."""
    return client_of(node, auth=ADMIN)


def path_of(operation: Operation[Any], **arguments: str) -> str:
    """The path of an operation; arguments that are not given are `nothing`."""
    path = operation.path
    for name in operation.path_names:
        value = quote(arguments.get(name, "nothing"), safe="")
        path = path.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
    return path


def make_key(admin: httpx.Client, name: str, scope: str, **options: Any) -> str:
    """The token of a new key."""
    answer = admin.post("/keys", json={"name": name, "scope": scope, **options})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


@contextmanager
def log_in(node: BrokerProcess, name: str, secret: str) -> Iterator[httpx.Client]:
    """A client with the cookie of a login, and its CSRF token in `X-CSRF-Token`."""
    with client_of(node) as client:
        answer = client.post("/login", json={"name": name, "secret": secret})
        assert answer.status_code == 200, answer.text
        client.headers["X-CSRF-Token"] = answer.json()["csrf_token"]
        yield client
