"""Where arguments of operations stand in requests, and how many requests one caller may make."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Annotated, Any

import msgspec
import pytest

from broker.admin.api import AdminError, Caller, Scope
from broker.admin.operations import Method, Operation
from broker.http.rates import BUCKETS_MAX, Rates
from broker.http.shapes import Shape
from broker.http.shares import Shares


class Arguments(msgspec.Struct, kw_only=True):
    """Of all kinds."""

    id: str
    count: Annotated[int, msgspec.Meta(ge=1)] = 10
    flag: bool | None = None
    limited: Annotated[int | None, msgspec.Meta(description="x")] = None
    text: str | None = None
    many: list[str] = []


def shape(method: Method, path: str = "/things/{id}") -> Shape:
    return Shape(Operation("things.do", "viewer", method, path, "", Arguments, Arguments, lambda: None))


def read(made: Shape, query: bytes = b"", body: bytes = b"", id_: str = "a") -> dict[str, Any]:
    arguments = made.read({"id": id_}, query, body)
    made.operation.read(arguments)
    return arguments


def test_query() -> None:
    made = shape("GET")
    assert read(made) == {"id": "a"}
    assert read(made, b"count=3&flag=true&text=null&many=x&many=y%2Fz") == {
        "id": "a",
        "count": "3",
        "flag": "true",
        "text": "null",
        "many": ["x", "y/z"],
    }


@pytest.mark.parametrize(
    "query",
    [b"count=0", b"count=x", b"count=", b"count=1&count=2", b"flag=null", b"limited=null", b"id=b", b"other=1", b"%ff"],
)
def test_queries_that_are_refused(query: bytes) -> None:
    with pytest.raises(AdminError, match=r".+") as caught:
        read(shape("GET"), query)
    assert caught.value.status == 400


def test_body() -> None:
    made = shape("POST")
    assert read(made, body=b'{"count": 3, "flag": null, "text": "null"}') == {
        "id": "a",
        "count": 3,
        "flag": None,
        "text": "null",
    }
    assert read(made) == {"id": "a"}


@pytest.mark.parametrize(
    "body", [b'{"count": "3"}', b'{"id": "b"}', b"[]", b"null", b"{", b'{"more": 1}', b"\xff", b"[" * 100_000]
)
def test_bodies_that_are_refused(body: bytes) -> None:
    with pytest.raises(AdminError) as caught:
        read(shape("PUT"), body=body)
    assert caught.value.status == 400


def test_nothing_stands_in_two_places() -> None:
    with pytest.raises(AdminError):
        read(shape("GET"), body=b'{"count": 1}')
    with pytest.raises(AdminError):
        read(shape("POST"), b"count=1")


@pytest.mark.parametrize(("given", "expected"), [("a%2Fb", "a/b"), ("%00", "\0"), ("%C3%A4", "ä"), ("+", "+")])
def test_parts_of_paths_are_decoded_once(given: str, expected: str) -> None:
    assert read(shape("GET"), id_=given)["id"] == expected


def test_parts_of_paths_are_text() -> None:
    with pytest.raises(AdminError):
        read(shape("GET"), id_="%ff")


def test_rates() -> None:
    now = 0.0
    rates = Rates(5, lambda: now)
    assert [rates.allows("a") for _ in range(12)] == [True] * 10 + [False] * 2
    assert rates.allows("b")
    now = 0.4
    assert [rates.allows("a") for _ in range(3)] == [True, True, False]
    assert all(Rates(0).allows("a") for _ in range(1000))


def test_rates_forget_who_was_not_seen_for_longest() -> None:
    rates = Rates(1, lambda: 0.0)
    for _ in range(3):
        rates.allows("first")
    for number in range(BUCKETS_MAX):
        rates.allows(str(number))
    assert rates.allows("first")
    assert len(rates._buckets) == BUCKETS_MAX


def admits(shares: Shares, stack: ExitStack, name: str, scope: Scope = "viewer") -> bool:
    with suppress(AdminError):
        stack.enter_context(shares.taken(Caller(name, scope)))
        return True
    return False


def test_one_credential_has_a_share() -> None:
    shares = Shares("streams", most=5, each=2, kept=1)
    with ExitStack() as stack:
        assert [admits(shares, stack, "a") for _ in range(3)] == [True, True, False]
        assert [admits(shares, stack, "b") for _ in range(3)] == [True, True, False]
        assert not admits(shares, stack, "c")  # the last one is for admins
        assert admits(shares, stack, "root", "admin")
        assert not admits(shares, stack, "other", "admin")
    with ExitStack() as stack:
        assert [admits(shares, stack, "a") for _ in range(3)] == [True, True, False]
        assert admits(shares, stack, "c")
