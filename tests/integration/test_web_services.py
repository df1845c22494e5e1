"""Authenticators and rule sources that ask web services, against nginx and a service behind it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.auth.api import (
    ALLOW,
    DENY,
    IGNORE,
    PUBLISH,
    READ,
    SUBSCRIBE,
    Authenticator,
    BackendError,
    ConnectRequest,
    Principal,
    RuleSource,
    Verdict,
)
from broker.auth.http_rules import HttpRuleSource
from broker.auth.http_service import HttpUsers
from broker.auth.jwt_tokens import JwtUsers
from broker.errors import ConfigError
from broker.options import read_options
from broker.options.authentication import HttpAuthentication, Jwt
from broker.options.authorization import HttpRules
from broker.peer import Peer
from tests.kit.certificates import Chain
from tests.kit.web_server import WebServer

Serve = Callable[[Authenticator | RuleSource], Any]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    with WebServer(tmp_path_factory.mktemp("web")) as server:
        yield server


@pytest.fixture
def web(shared: WebServer) -> WebServer:
    (shared.folder / "questions.jsonl").unlink(missing_ok=True)
    shared.users({"ann": {"password": "sesame"}})
    return shared


@pytest.fixture
async def serve(nursery: trio.Nursery) -> AsyncIterator[Serve]:
    """Starts the background work of what is tested."""

    async def start(each: Authenticator | RuleSource) -> None:
        async def work(task_status: trio.TaskStatus[None]) -> None:
            await each.serve(task_status=task_status)

        await nursery.start(work)

    yield start
    nursery.cancel_scope.cancel()


def http(url: str, **options: object) -> HttpUsers:
    return HttpUsers(read_options(HttpAuthentication, {"url": url, **options}))


async def ask(subject: Authenticator, username: str | None = "ann", password: bytes | None = b"sesame") -> Verdict:
    return await subject.authenticate(ConnectRequest("c1", username, password, Peer("10.0.0.1")))


@pytest.mark.parametrize("method", ["post", "get"])
async def test_the_service_decides(web: WebServer, serve: Serve, method: str) -> None:
    subject = http(f"{web.url}/auth", method=method)
    await serve(subject)
    assert (await ask(subject)).decision == ALLOW
    assert (await ask(subject, password=b"wrong")).decision == DENY
    assert (await ask(subject, "zoe")).decision == IGNORE
    assert (await ask(subject, None, None)).decision == IGNORE
    odd = 'a&password=b"},{\r\n%00'
    assert (await ask(subject, odd)).decision == IGNORE
    assert (await ask(subject, "ann", b"\xff")).decision == DENY
    asked = [each["asked"] for each in web.questions()]
    assert asked[0] == {"username": "ann", "password": "sesame", "clientid": "c1", "ip": "10.0.0.1"}
    assert asked[3]["username"] == "" and asked[4]["username"] == odd and len(asked) == 5


@pytest.mark.parametrize(("status", "decision"), [(200, ALLOW), (204, ALLOW), (401, DENY), (403, DENY)])
async def test_the_status_decides(web: WebServer, serve: Serve, status: int, decision: int) -> None:
    web.users({"ann": {"password": "sesame", "status": status}})
    subject = http(f"{web.url}/auth")
    await serve(subject)
    assert (await ask(subject)).decision == decision


async def test_what_else_the_service_says(web: WebServer, serve: Serve) -> None:
    ends = int(time.time()) + 100
    answer = {
        "is_superuser": True,
        "client_attrs": {"site": "north"},
        "expire_at": ends,
        "username": "Ann",
        "clientid": "device-1",
        "acl": [{"permission": "allow", "action": "all", "topic": "a/${username}/#"}],
    }
    web.users({"ann": {"password": "sesame", "answer": answer}})
    subject = http(f"{web.url}/auth")
    await serve(subject)
    found = await ask(subject)
    assert (found.username, found.client_id, found.superuser, found.expires_at_s) == ("Ann", "device-1", True, ends)
    assert found.attributes == {"site": "north"} and found.rules is not None and len(found.rules) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {"expire_at": "soon"},
        {"username": ""},
        {"clientid": 7},
        {"is_superuser": "perhaps"},
        {"client_attrs": []},
        {"acl": {"pub": "a/#/b"}},
        {"result": "perhaps"},
    ],
)
async def test_answers_that_make_no_sense(web: WebServer, serve: Serve, answer: dict[str, object]) -> None:
    web.users({"ann": {"password": "sesame", "answer": answer}})
    subject = http(f"{web.url}/auth")
    await serve(subject)
    with pytest.raises(BackendError):
        await ask(subject)


async def test_an_end_that_has_passed_is_a_refusal(web: WebServer, serve: Serve) -> None:
    web.users({"ann": {"password": "sesame", "answer": {"expire_at": 1000}}})
    subject = http(f"{web.url}/auth")
    await serve(subject)
    assert (await ask(subject)).decision == DENY


@pytest.mark.parametrize(
    "what", ["never", "redirect", "error", "html", "nonsense", "deep", "huge", "packed", "hangup", "absent"]
)
async def test_services_that_are_of_no_use(web: WebServer, serve: Serve, what: str) -> None:
    subject = http(f"{web.url}/odd/{what}", timeout="300ms" if what == "never" else "10s")
    await serve(subject)
    with pytest.raises(BackendError) as caught:
        await ask(subject, "ann")
    assert "ann" not in str(caught.value) and "sesame" not in str(caught.value)
    assert not web.questions("/auth"), "a redirect was followed"


async def test_nobody_there(web: WebServer, serve: Serve, tmp_path: Path) -> None:
    with WebServer(tmp_path / "w") as other:
        other.users({"ann": {"password": "sesame"}})
        subject = http(f"{other.url}/auth")
        await serve(subject)
        assert (await ask(subject)).decision == ALLOW
        other.stop()
        with pytest.raises(BackendError):
            await ask(subject)
        other.start()
        assert (await ask(subject)).decision == ALLOW


async def test_cookies_and_proxies_are_not_ours(
    web: WebServer, serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(netrc))
    subject = http(f"{web.url}/odd/cookie", headers=["X-Name: ${username}", "Authorization: Bearer abc"])
    await serve(subject)
    await ask(subject, "ann")
    await ask(subject, "bob")
    first, second = web.questions()
    assert "cookie" not in second["headers"]
    assert (first["headers"]["x-name"], second["headers"]["x-name"]) == ("ann", "bob")
    assert second["headers"]["authorization"] == "Bearer abc"
    assert (await ask(subject, "a\nb: c")).decision == DENY
    assert len(web.questions()) == 2


async def test_no_more_questions_at_a_time_than_allowed(web: WebServer, serve: Serve) -> None:
    subject = http(f"{web.url}/odd/crowd", pool=2, timeout="30s")
    await serve(subject)
    found: list[int] = []

    async def once() -> None:
        found.append(int((await ask(subject)).attributes["here"]))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(once)
    assert len(found) == 6 and max(found) <= 2


async def test_tls_of_a_known_authority_only(serve: Serve, tmp_path: Path) -> None:
    chain = Chain(tmp_path / "ca")
    with WebServer(tmp_path / "w", chain.server()) as web:
        web.users({"ann": {"password": "sesame"}})
        subject = http(f"{web.url}/auth", ca_certs=str(chain.ca))
        await serve(subject)
        assert (await ask(subject)).decision == ALLOW
        stranger = http(f"{web.url}/auth")
        await serve(stranger)
        with pytest.raises(BackendError):
            await ask(stranger)
    with pytest.raises(ConfigError, match="ca_certs"):
        http("https://localhost/", ca_certs=str(tmp_path / "absent"))


# -- rules


def rules(url: str, **options: object) -> HttpRuleSource:
    return HttpRuleSource(read_options(HttpRules, {"url": url, **options}))


async def test_rules_are_asked_once(web: WebServer, serve: Serve) -> None:
    web.acl([("ann", "publish", "a", "allow"), ("ann", "publish", "b", "ignore"), ("ann", "subscribe", "s/#", "allow")])
    subject = rules(f"{web.url}/acl", body="username=${username}&topic=${topic}&action=${action}&q=${qos}&r=${retain}")
    await serve(subject)
    judge = await subject.open(Principal("ann", "c1", Peer(), "ann"))
    assert judge.decide(PUBLISH, "a", 0, False) is None
    assert await judge.ask(PUBLISH, "a", 0, False) == ALLOW
    assert judge.decide(PUBLISH, "a", 0, False) == ALLOW
    assert judge.decide(PUBLISH, "a", 1, False) is None
    assert await judge.ask(PUBLISH, "b", 0, True) == IGNORE
    assert await judge.ask(PUBLISH, "c", 2, False) == DENY
    asked = [each["asked"] for each in web.questions()]
    assert asked[1] == {"username": "ann", "topic": "b", "action": "publish", "q": "0", "r": "true"}
    assert judge.decide(READ, "s/1", 0, False) == IGNORE and not judge.covers("s/#")
    assert await judge.ask(SUBSCRIBE, "s/#", 0, False) == ALLOW
    assert judge.decide(READ, "s/1", 0, False) == ALLOW and judge.covers("s/#")
    assert judge.decide(READ, "t/1", 0, False) == IGNORE
    # When other rules change its answers count as before.
    again = await subject.open(judge._principal)
    assert again.decide(SUBSCRIBE, "s/#", 0, False) == ALLOW == again.decide(READ, "s/1", 0, False)
    web.acl([])
    assert await again.ask(SUBSCRIBE, "s/#", 0, False) == DENY
    assert again.decide(READ, "s/1", 0, False) == IGNORE and not again.covers("s/#")


async def test_equal_questions_at_a_time_are_one(web: WebServer, serve: Serve) -> None:
    subject = rules(f"{web.url}/odd/never", timeout="300ms", pool=8)
    await serve(subject)
    failed: list[BackendError] = []

    async def once(client_id: str) -> None:
        judge = await subject.open(Principal("ann", client_id, Peer(), "ann"))
        with pytest.raises(BackendError) as caught:
            await judge.ask(PUBLISH, "a", 0, False)
        failed.append(caught.value)

    async with trio.open_nursery() as nursery:
        for client_id in ("c1", "c1", "c1", "c2"):
            nursery.start_soon(once, client_id)
    assert len(failed) == 4 and len(web.questions()) == 2


async def test_who_asks_first_may_leave(web: WebServer, serve: Serve) -> None:
    web.acl([("ann", "publish", "a", "allow")])
    subject = rules(f"{web.url}/acl")
    await serve(subject)
    judge = await subject.open(Principal("ann", "c1", Peer(), "ann"))
    found: list[int] = []

    async def second() -> None:
        found.append(await judge.ask(PUBLISH, "a", 0, False))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(second)
            scope.cancel()
            await judge.ask(PUBLISH, "a", 0, False)
    assert found == [ALLOW]


# -- key sets


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def set_of(**keys: rsa.RSAPrivateKey) -> str:
    listed = [
        {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": name} for name, key in keys.items()
    ]
    return json.dumps({"keys": listed})


def token(key: rsa.RSAPrivateKey, key_id: str | None, sub: str = "ann") -> bytes:
    headers = None if key_id is None else {"kid": key_id}
    return jwt.encode({"sub": sub, "exp": int(time.time()) + 60}, key, "RS256", headers).encode()


async def test_keys_are_rotated(web: WebServer, serve: Serve) -> None:
    old, new, stranger = new_key(), new_key(), new_key()
    url = web.file("rotate.json", set_of(old=old))
    subject = JwtUsers(read_options(Jwt, {"jwks_url": url}))
    await serve(subject)
    assert web.requests("/rotate.json") == 1
    assert (await ask(subject, password=token(old, "old"))).decision == ALLOW
    assert (await ask(subject, password=token(old, None))).decision == ALLOW
    assert (await ask(subject, password=token(stranger, "old"))).decision == DENY
    assert web.requests("/rotate.json") == 1
    web.file("rotate.json", set_of(new=new))
    assert (await ask(subject, password=token(new, "new"))).decision == ALLOW
    assert web.requests("/rotate.json") == 2
    assert (await ask(subject, password=token(old, "old"))).decision == DENY
    # Whoever makes up names of keys causes no more requests.
    for number in range(5):
        assert (await ask(subject, password=token(stranger, f"k{number}"))).decision == DENY
    assert web.requests("/rotate.json") == 2


async def test_keys_are_kept_while_the_service_is_away(web: WebServer, serve: Serve, tmp_path: Path) -> None:
    key, other = new_key(), new_key()
    with WebServer(tmp_path / "w") as away:
        url = away.file("keys.json", set_of(a=key))
        subject = JwtUsers(read_options(Jwt, {"jwks_url": url}))
        await serve(subject)
        away.stop()
        assert (await ask(subject, password=token(key, "a"))).decision == ALLOW
        with pytest.raises(BackendError):  # it may be a new one: nobody knows
            await ask(subject, password=token(other, "b"))
        assert (await ask(subject, password=token(key, "a"))).decision == ALLOW
        assert (await ask(subject, password=b"no token")).decision == IGNORE


async def test_keys_that_are_taken_back_count_no_more(web: WebServer, serve: Serve) -> None:
    key, other = new_key(), new_key()
    subject = JwtUsers(read_options(Jwt, {"jwks_url": web.file("back.json", set_of(a=key, b=other)), "refresh": "1s"}))
    await serve(subject)
    found = await ask(subject, password=token(key, "a"))
    principal = Principal("ann", "c1", Peer(), credential=found.credential)
    assert found.decision == ALLOW and await subject.still_valid(principal)
    web.file("back.json", set_of(b=other))
    with trio.fail_after(20):
        while await subject.still_valid(principal):
            await trio.sleep(0.02)
    assert (await ask(subject, password=token(key, "a"))).decision == DENY
    assert (await ask(subject, password=token(other, "b"))).decision == ALLOW
    # An answer that is no set takes no key away.
    web.file("back.json", "<html>")
    before = web.requests("/back.json")
    with trio.fail_after(20):
        while web.requests("/back.json") <= before:
            await trio.sleep(0.02)
    assert (await ask(subject, password=token(other, "b"))).decision == ALLOW


@pytest.mark.parametrize("text", ["", "[]", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "AAAA"}]}'])
async def test_without_keys_nobody_is_refused_for_good(web: WebServer, serve: Serve, text: str) -> None:
    subject = JwtUsers(read_options(Jwt, {"jwks_url": web.file("none.json", text)}))
    await serve(subject)
    with pytest.raises(BackendError):
        await ask(subject, password=token(new_key(), "a"))


async def test_a_secret_in_a_set_is_no_secret(web: WebServer, serve: Serve) -> None:
    key = new_key()
    keys = json.loads(set_of(a=key))
    keys["keys"].append({"kty": "oct", "k": "A" * 64, "kid": "s", "alg": "HS256"})
    subject = JwtUsers(read_options(Jwt, {"jwks_url": web.file("secret.json", json.dumps(keys))}))
    await serve(subject)
    forged = jwt.encode({"sub": "root", "exp": int(time.time()) + 60}, b"\0" * 48, "HS256", {"kid": "s"})
    assert (await ask(subject, password=forged.encode())).decision == DENY
