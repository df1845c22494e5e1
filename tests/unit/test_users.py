"""Users with passwords: the file, the registry, what unknown users cost, the chain over them, and its cache."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.auth import checking, hashes
from broker.auth.api import ALLOW, DENY, IGNORE, BackendError, ConnectRequest, Principal, Verdict
from broker.auth.base import BaseAuthenticator
from broker.auth.cache import Cache
from broker.auth.chain import Chain
from broker.auth.checking import Busy, Checks
from broker.auth.decoys import SECRETS, DecoySecret
from broker.auth.hashes import make_pbkdf2, parse_hash
from broker.auth.password_file import PasswordFileUsers, UserFile, split_line
from broker.auth.scram import SHA_256, SHA_512, ScramExchange, make_verifier
from broker.auth.stored_users import StoredUserAccounts, UserDocument
from broker.auth.users import DirectoryAuthenticator, Entry, canonical, entry_of, truth
from broker.errors import ConfigError, PeerError
from broker.options.authentication import PasswordFile, StoredUsers
from broker.options.listener import ListenerOptions
from broker.peer import Peer
from cluster.memory.registry import MemoryRegistry
from cluster.registry import USERS

ANNA = make_pbkdf2("apple", 30)
BERT = make_pbkdf2("banana", 40)
CARL = make_verifier("cherry", 4096, b"0123456789abcdef")
DORA = make_verifier("date", 5000, b"fedcba9876543210", SHA_512)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "users"
    file.write_text(f"# people\n\nanna:{ANNA}\n  bert:{BERT}  \r\ncarl:{CARL}\n", encoding="utf-8")
    return file


def request(username: str | None, password: bytes | None, client_id: str = "c") -> ConnectRequest:
    return ConnectRequest(client_id, username, password, Peer("192.0.2.1", 1, "tcp"))


def file_users(path: Path, name: str = "", registry: MemoryRegistry | None = None) -> PasswordFileUsers:
    return PasswordFileUsers(PasswordFile(path=path, name=name), registry)


def is_password(users: UserFile, name: str, password: str) -> bool:
    entry = users.get(name)
    return entry is not None and entry.password is not None and entry.password.verify(password.encode())


OPTIONS = ListenerOptions()


async def code(chain: Chain, username: str | None, password: bytes | None) -> int:
    with pytest.raises(PeerError) as caught:
        await chain.authenticate(request(username, password), OPTIONS)
    return caught.value.reason_code


async def name_of(chain: Chain, username: str | None, password: bytes | None) -> str:
    return (await chain.authenticate(request(username, password), OPTIONS)).identity


def test_file_with_comments_blank_lines_and_odd_names(path: Path) -> None:
    users = UserFile(path)
    assert len(users) == 3
    assert is_password(users, "anna", "apple")
    assert is_password(users, "bert", "banana")
    assert is_password(users, "carl", "cherry")
    assert users.get("dora") is None
    odd = f"\ufeffa:b c:{ANNA}\n\uff24ora:{BERT}\n\U0001f600:{ANNA}\naa:$7:{BERT}\nx:SCRAM-SHA-256$:{ANNA}\n"
    path.write_text(odd, encoding="utf-8")
    users.reload()
    assert len(users) == 5
    assert is_password(users, "a:b c", "apple")
    assert is_password(users, "Dora", "banana")  # SASLprep narrows wide letters
    assert is_password(users, "\U0001f600", "apple")  # and knows no emoji
    assert is_password(users, "aa:$7", "banana")
    assert is_password(users, "x:SCRAM-SHA-256$", "apple")
    path.write_bytes(b"")
    users.reload()
    assert len(users) == 0
    assert users.get("anna") is None


def test_a_hash_and_verifiers_of_one_user(path: Path) -> None:
    path.write_text(f"anna:{CARL}\nanna:{ANNA}\nanna:{DORA}\n")
    users = UserFile(path)
    entry = users.get("anna")
    assert entry is not None and len(users) == 1
    assert is_password(users, "anna", "apple")
    assert not is_password(users, "anna", "cherry")
    assert [verifier.mechanism for verifier in entry.verifiers] == [SHA_256, SHA_512]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"dora:hunter2", "not <user>:<hash>"),
        (b"dora", "not <user>:<hash>"),
        (ANNA.encode(), "not <user>:<hash>"),
        (b":" + ANNA.encode(), "not <user>:<hash>"),
        (b"d\x00:" + ANNA.encode(), "control characters"),
        (b"\xff:" + ANNA.encode(), "UTF-8"),
        (b"d" * 1025 + b":" + ANNA.encode(), "1024"),
        (b"anna:" + BERT.encode(), "'anna' is there twice"),
        (b"carl:" + CARL.encode(), "'carl' is there twice"),
        ("\uff41nna:".encode() + BERT.encode(), "'anna' is there twice"),
        (b"dora:" + CARL.replace("$4096", "$1000").encode(), "iterations must be 4096"),
        (b"dora:" + ANNA.replace("$30$", "$99999999$").encode(), "iterations must be 1 to 10000000"),
        (b"dora:" + CARL.encode() + b"x", "base64"),
        (b"dora:$9$hunter2", "no known kind"),
    ],
)
def test_errors_name_file_and_line_and_keep_the_old(path: Path, line: bytes, problem: str) -> None:
    users = UserFile(path)
    good = path.read_bytes()
    path.write_bytes(b"new:" + ANNA.encode() + b"\n" + good + line + b"\n")
    with pytest.raises(ConfigError, match=problem) as caught:
        users.reload()
    assert f"{str(path)!r}, line 7: " in str(caught.value)
    # Neither the message nor a chained cause repeats a line: it may hold somebody's password.
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert len(users) == 3
    assert users.get("new") is None
    assert is_password(users, "anna", "apple")
    with pytest.raises(ConfigError, match=problem):
        UserFile(path)


def test_missing_file(path: Path) -> None:
    users = UserFile(path)
    path.unlink()
    with pytest.raises(ConfigError, match=r"user file .*users': No such file"):
        users.reload()
    assert users.get("anna") is not None


NAMES = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(NAMES, st.sampled_from([ANNA, CARL, DORA, "$argon2id$x", "{SSHA}AAAA", "pbkdf2_sha256$1$a$b"]))
def test_any_name_is_split_from_its_hash(name: str, text: str) -> None:
    assert split_line(f"{name}:{text}".encode()) == (canonical(name), text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b"a:", b"$7$", b"\n", ANNA.encode(), b"#"]))))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes(b"".join(pieces))
    try:
        assert len(UserFile(file)) <= len(pieces) + 1
    except ConfigError as error:
        said = str(error)
    else:
        said = "line"
    assert "line" in said


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_document_is_read_or_refused(raw: bytes) -> None:
    try:
        read = UserDocument.read(raw)
    except ValueError as error:
        said = str(error)
    else:
        said = read.write().decode()
        assert isinstance(json.loads(raw), dict) and UserDocument.read(read.write()).write() == read.write()
    assert said


def test_documents_round_trip() -> None:
    document = UserDocument(ANNA, [CARL], superuser=True, attributes={"site": "b\u00e9"})
    read = UserDocument.read(document.write())
    assert (read.password, read.scram, read.superuser, read.disabled) == (ANNA, [CARL], True, False)
    assert read.attributes == {"site": "b\u00e9"}
    for wrong in (b"[]", b'{"superuser": 1}', b'{"scram": ["x", 2]}', b'{"attributes": {"a": 1}}', b'{"password": 3}'):
        with pytest.raises(ValueError, match=r"."):
            UserDocument.read(wrong)


async def test_passwords(path: Path) -> None:
    chain = Chain(False, [file_users(path)])
    assert await name_of(chain, "anna", b"apple") == "anna"
    assert await name_of(chain, "\uff42ert", b"banana") == "bert"
    assert await name_of(chain, "carl", b"cherry") == "carl"
    for username, password in (
        ("anna", b"banana"),
        ("anna", b""),
        ("anna", None),
        ("Anna", b"apple"),
        ("dora", b"apple"),
        ("", b"apple"),
        ("\x00", b"apple"),
        ("\ud800", b"apple"),
        ("a" * 16000, b"apple"),
        ("anna", b"apple" * 13_000),
    ):
        assert await code(chain, username, password) == 0x86
    assert await code(chain, None, None) == 0x87


async def test_a_wrong_password_ends_the_chain_and_an_unknown_user_does_not(path: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.write_text(f"anna:{BERT}\ndora:{BERT}\n")
    chain = Chain(True, [file_users(path), file_users(second, "second")])
    assert await name_of(chain, "dora", b"banana") == "dora"
    assert await code(chain, "anna", b"banana") == 0x86
    # Nor is somebody who claims a name an anonymous client.
    assert await code(chain, "nobody", b"banana") == 0x86
    assert await name_of(chain, None, None) == ""


async def test_unknown_users_cost_the_same(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(f"anna:{ANNA}\nbob:{make_pbkdf2('b', 30)}\n", encoding="utf-8")
    second = tmp_path / "second"
    second.write_text(f"carl:{BERT}\n")
    chain = Chain(False, [file_users(path), file_users(second, "second")])
    costs: list[tuple[str, int]] = []
    threads: set[int] = set()
    real = hashlib.pbkdf2_hmac

    def counted(name: str, password: bytes, salt: bytes, iterations: int, size: int | None = None) -> bytes:
        costs.append((name, iterations))
        threads.add(threading.get_ident())
        return real(name, password, salt, iterations, size)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", counted)
    for username, password in (
        ("anna", b"x"),  # wrong in the first
        ("carl", b"apple"),  # wrong in the second
        ("dora", b"apple"),  # nowhere
        ("anna", b"\xff"),
        ("anna", None),
        ("c" * 9999, b""),
    ):
        costs.clear()
        assert await code(chain, username, password) == 0x86
        assert costs == [("sha512", 30), ("sha512", 40)], username
    assert threading.get_ident() not in threads


def test_decoys_are_of_the_kinds_of_the_file(path: Path) -> None:
    models = UserFile(path).models
    kinds = [models.password(b"secret", f"nobody{number}").kind for number in range(60)]
    assert {kind.split(":")[1] for kind in kinds} == {"30", "40", "4096"}
    assert kinds == [models.password(b"secret", f"nobody{number}").kind for number in range(60)]
    salts = {str(models.verifier(b"secret", "nobody", SHA_256)) for _ in range(3)}
    assert len(salts) == 1
    assert models.verifier(b"other", "nobody", SHA_256).salt != models.verifier(b"secret", "nobody", SHA_256).salt


async def test_refusals_read_the_same(path: Path) -> None:
    chain = Chain(False, [file_users(path)])
    texts = set()
    for username in ("anna", "dora", ""):
        with pytest.raises(PeerError) as caught:
            await chain.authenticate(request(username, b"wrong"), OPTIONS)
        texts.add(caught.value.text)
    assert len(texts) == 1


async def test_nodes_show_strangers_the_same_salts(path: Path) -> None:
    registry = MemoryRegistry()
    nodes = [file_users(path, registry=registry) for _ in range(3)]
    other = file_users(path, registry=MemoryRegistry())
    for node in (*nodes, other):
        await node.refresh()
    shown = {str((await node.verifier(request(None, None), "nobody", SHA_512))[0].salt) for node in nodes}
    assert len(shown) == 1
    assert str((await other.verifier(request(None, None), "nobody", SHA_512))[0].salt) not in shown


async def test_a_decoy_secret_made_twice_becomes_one() -> None:
    registry = MemoryRegistry()
    one, two = DecoySecret(registry), DecoySecret(registry)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.load)
        nursery.start_soon(two.load)
    await one.load()
    await two.load()
    assert one.value == two.value
    await registry.change(SECRETS, {"decoys": b"broken"})
    await one.load()
    assert one.value == two.value


async def test_who_is_still_valid(path: Path) -> None:
    users = file_users(path)
    chain = Chain(False, [users])
    anna = await chain.authenticate(request("anna", b"apple"), OPTIONS)
    bert = await chain.authenticate(request("bert", b"banana"), OPTIONS)
    assert await chain.still_valid(anna) and await chain.still_valid(bert)
    path.write_text(f"anna:{make_pbkdf2('apple', 30)}\nbert:{BERT}\n")
    assert chain.files() == [path]
    chain.reload()
    assert not await chain.still_valid(anna)  # her line is another one
    assert await chain.still_valid(bert)
    path.write_text(f"anna:{ANNA}\nbert:hunter2\n")
    with pytest.raises(ConfigError):
        chain.reload()
    assert await chain.still_valid(bert)
    path.write_text("")
    chain.reload()
    assert not await chain.still_valid(bert)
    assert await code(chain, "bert", b"banana") == 0x86


async def stored(**documents: UserDocument) -> tuple[MemoryRegistry, StoredUserAccounts]:
    registry = MemoryRegistry()
    await registry.change(USERS, {name: document.write() for name, document in documents.items()})
    users = StoredUserAccounts(StoredUsers(), registry)
    await users.refresh()
    return registry, users


async def test_stored_users() -> None:
    document = UserDocument(ANNA, [CARL], superuser=True, attributes={"site": "bern"})
    registry, users = await stored(anna=document, gone=UserDocument(BERT, disabled=True), locked=UserDocument())
    chain = Chain(False, [users])
    anna = await chain.authenticate(request("anna", b"apple"), OPTIONS)
    assert (anna.identity, anna.superuser, anna.attributes) == ("anna", True, {"site": "bern"})
    for username, password in (("anna", b"x"), ("gone", b"banana"), ("locked", b""), ("nobody", b"apple")):
        assert await code(chain, username, password) == 0x86
    # A user that was just made is known before anybody was told.
    await registry.change(USERS, {"dora": UserDocument(BERT).write()})
    dora = await chain.authenticate(request("dora", b"banana"), OPTIONS)
    assert await users.still_valid(dora) and await users.still_valid(anna)
    for changed in (
        UserDocument(BERT, [CARL], superuser=True, attributes={"site": "bern"}),
        UserDocument(ANNA, [CARL], attributes={"site": "bern"}),
        UserDocument(ANNA, [CARL], superuser=True, attributes={"site": "basel"}),
        UserDocument(ANNA, [CARL], superuser=True, disabled=True, attributes={"site": "bern"}),
        None,
    ):
        await registry.change(USERS, {"anna": document.write()})
        await chain.refresh()
        assert await users.still_valid(anna)
        await registry.change(USERS, {"anna": None if changed is None else changed.write()})
        await chain.refresh()
        assert not await users.still_valid(anna)
    assert await users.still_valid(dora)


async def test_a_broken_document_lets_nobody_in_and_stops_nobody_else() -> None:
    registry, users = await stored(anna=UserDocument(ANNA))
    await registry.change(USERS, {"bad": b"{", "worse": b'{"password": "$7$1$x"}'})
    await users.refresh()
    chain = Chain(False, [users])
    assert await name_of(chain, "anna", b"apple") == "anna"
    for name in ("bad", "worse"):
        assert await code(chain, name, b"apple") == 0x86
        assert await users.verifier(request(None, None), name, SHA_256) is not None


class Directory:
    """Users in a dictionary."""

    def __init__(self, **users: Entry) -> None:
        self.users = users
        self.asked: list[str] = []
        self.broken = False

    async def find(self, request: ConnectRequest, username: str) -> Entry | None:
        self.asked.append(username)
        if self.broken:
            raise BackendError("gone")
        return self.users.get(username)


async def test_a_directory_that_is_asked_for_each_client() -> None:
    directory = Directory(anna=entry_of(ANNA, superuser="1"), scram=entry_of(DORA, username="Scram"))
    users = DirectoryAuthenticator("x", directory)
    verdict = await users.authenticate(request("anna", b"apple"))
    assert (verdict.decision, verdict.username, verdict.superuser) == (ALLOW, "anna", True)
    assert (await users.authenticate(request("anna", b"x"))).decision == DENY
    assert (await users.authenticate(request("nobody", b"x"))).decision == IGNORE
    assert (await users.authenticate(request("scram", b"date"))).username == "Scram"
    verifier, verdict = await users.verifier(request(None, None), "scram", SHA_512)
    assert (str(verifier), verdict.username, verdict.authenticator) == (DORA, "Scram", "x")
    for name, mechanism in (("scram", SHA_256), ("anna", SHA_512), ("nobody", SHA_512)):
        verifier, verdict = await users.verifier(request(None, None), name, mechanism)
        assert verifier.decoy
        assert verdict.decision != ALLOW
    # What nobody's name is looks like what was seen last.
    assert (verifier.iterations, len(verifier.salt)) == (5000, 16)
    directory.asked.clear()
    assert (await users.authenticate(request(None, b"x"))).decision == IGNORE
    assert (await users.authenticate(request("", b"x"))).decision == IGNORE
    assert directory.asked == []
    directory.broken = True
    assert await code(Chain(False, [users]), "anna", b"apple") == 0x88


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((None, False), (0, False), (1, True), (True, True), (b"1", True), (b"0", False), ("TRUE", True)),
        *(("", False), ("false", False), ("no", False), (bytearray(b"yes"), True), (memoryview(b"n"), False)),
    ],
)
def test_what_databases_call_true(value: object, expected: bool) -> None:
    assert truth(value) is expected


async def test_registry_of_methods(path: Path) -> None:
    other = DirectoryAuthenticator("other", Directory(dora=entry_of(DORA)))
    chain = Chain(False, [file_users(path), other])
    assert set(chain.methods(OPTIONS)) == {"SCRAM-SHA-256", "SCRAM-SHA-512"}
    exchange, _ = chain.begin("SCRAM-SHA-256", request("carl", None), OPTIONS)
    assert isinstance(exchange, ScramExchange)
    assert (await exchange.step(b"n,,n=carl,r=abc")).data.endswith(b",s=MDEyMzQ1Njc4OWFiY2RlZg==,i=4096")
    exchange, _ = chain.begin("SCRAM-SHA-512", request(None, None), OPTIONS)
    assert (await exchange.step(b"n,,n=dora,r=abc")).data.endswith(b",s=ZmVkY2JhOTg3NjU0MzIxMA==,i=5000")
    verdict = (await other.verifier(request(None, None), "dora", SHA_512))[1]
    assert chain.principal(request(None, None), verdict, "password_file").authenticator == "other"
    for method in ("SCRAM-SHA-1", "scram-sha-256", "", "x" * 60000):
        with pytest.raises(PeerError) as caught:
            chain.begin(method, request(None, None), OPTIONS)
        assert caught.value.reason_code == 0x8C
        assert len(caught.value.text) < 120


async def test_checks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Checks(threads=1, waiting=2)
    found = parse_hash(ANNA)
    begun, go_on = threading.Event(), threading.Event()

    def slow(self: hashes.PasswordHash, password: bytes) -> bool:
        begun.set()
        return go_on.wait(20)

    monkeypatch.setattr(hashes.PasswordHash, "verify", slow)
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(checks.check, found, b"apple")
            await trio.to_thread.run_sync(begun.wait, 20)
            with pytest.raises(Busy):
                await checks.check(found, b"apple")
            monkeypatch.setattr(checking, "check", checks.check)
            monkeypatch.setattr("broker.auth.users.check", checks.check)
            chain = Chain(False, [DirectoryAuthenticator("x", Directory())])
            assert await code(chain, "anna", b"apple") == 0x88
            go_on.set()
    finally:
        go_on.set()
    assert await checks.check(found, b"apple")


async def test_checks_that_would_come_too_late_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 2 s for each, one at a time and 5 s of patience there is one at work and one that waits."""
    times = itertools.count(step=2.0)
    checks = Checks(threads=1, waiting=64, patience_s=5.0, clock=lambda: next(times))
    found = parse_hash(ANNA)
    assert await checks.check(found, b"apple")  # it is not known before how long they take
    go_on = threading.Event()
    monkeypatch.setattr(hashes.PasswordHash, "verify", lambda self, password: go_on.wait(20))
    answers: list[bool | None] = []

    async def one() -> None:
        try:
            answers.append(await checks.check(found, b"apple"))
        except Busy:
            answers.append(None)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            assert answers == [None] * 8
            go_on.set()
    finally:
        go_on.set()
    assert answers == [None] * 8 + [True] * 2
    # A single one is always begun, or nobody would notice that they are fast again.
    checks = Checks(threads=1, patience_s=1.0, clock=lambda: next(times))
    assert await checks.check(found, b"apple") and await checks.check(found, b"apple")


class Counting(BaseAuthenticator):
    """Lets everybody in whose password is right, and counts how often it was asked."""

    def __init__(self, name: str, cached: frozenset[str] | None) -> None:
        super().__init__(name)
        self.cached = cached
        self.asked = 0
        self.expires_at_s: float | None = None
        self.decision = ALLOW
        self.answers = trio.Event()
        self.answers.set()

    async def authenticate(self, request: ConnectRequest) -> Verdict:
        self.asked += 1
        await self.answers.wait()
        if request.password != b"right":
            return Verdict(DENY)
        return Verdict(self.decision, expires_at_s=self.expires_at_s, credential=b"c")


async def test_cache(autojump_clock: trio.testing.MockClock) -> None:
    backend = Counting("db", frozenset({"clientid"}))
    chain = Chain(False, [backend], cache=Cache(2, 10.0))

    async def ask(username: str, password: bytes = b"right", client_id: str = "c") -> Principal:
        return await chain.authenticate(request(username, password, client_id), OPTIONS)

    first, second = await ask("anna"), await ask("anna")
    assert backend.asked == 1
    assert (second.identity, second.authenticator, second.credential) == ("anna", "db", b"c")
    assert first is not second
    await ask("anna", client_id="d")  # the decision depends on it
    assert backend.asked == 2
    for _ in range(2):  # refusals are not remembered, and do not forget
        with pytest.raises(PeerError):
            await ask("anna", b"wrong")
    assert backend.asked == 4
    await ask("anna")
    assert backend.asked == 4
    await ask("bert")  # the oldest goes
    await ask("anna")
    assert (backend.asked, len(chain.cache)) == (6, 2)
    await trio.sleep(11)
    await ask("anna")
    assert backend.asked == 7
    for empty in (chain.refresh, None):
        if empty is None:
            chain.reload()
        else:
            await empty()
        assert len(chain.cache) == 0
    held = repr([getattr(chain.cache, name) for name in Cache.__slots__])
    assert "right" not in held
    backend.expires_at_s = 1e12
    await ask("carl")
    assert len(chain.cache) == 0


async def test_a_verdict_under_way_when_users_change_is_not_remembered() -> None:
    backend = Counting("db", frozenset())
    backend.answers = trio.Event()
    chain = Chain(False, [backend], cache=Cache(10, 10.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chain.authenticate, request("anna", b"right"), OPTIONS)
        await trio.testing.wait_all_tasks_blocked()
        chain.reload()
        backend.answers.set()
    assert (backend.asked, len(chain.cache)) == (1, 0)


async def test_what_may_not_be_remembered_is_asked_each_time() -> None:
    first, never, last = Counting("a", frozenset()), Counting("b", None), Counting("c", frozenset())
    chain = Chain(False, [first, never, last], cache=Cache(10, 10.0))
    first.decision = IGNORE
    for _ in range(2):
        await chain.authenticate(request("anna", b"right"), OPTIONS)
    assert (first.asked, never.asked, last.asked) == (2, 2, 0)
    first.decision = ALLOW
    for _ in range(2):
        await chain.authenticate(request("anna", b"right"), OPTIONS)
    assert (first.asked, never.asked) == (3, 2)


@settings(max_examples=200, deadline=None)
@given(
    *[st.tuples(st.text(min_size=1, max_size=4), st.binary(min_size=1, max_size=4), st.text(max_size=4))] * 2,
)
def test_two_connects_have_one_key_only_if_they_are_the_same(
    one: tuple[str, bytes, str], two: tuple[str, bytes, str]
) -> None:
    cache = Cache(1, 1.0, lambda: 0.0)
    asked = [Counting("db", frozenset({"clientid"}))]
    keys = [cache.key(request(*each), asked) for each in (one, two)]
    assert (keys[0] == keys[1]) is (one == two)


async def test_a_name_that_nobody_checked_is_none() -> None:
    principal = await Chain(True).authenticate(request("root", b"whatever"), OPTIONS)
    assert (principal.identity, principal.username, principal.authenticator) == ("", None, "")
