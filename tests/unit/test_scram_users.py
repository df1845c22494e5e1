"""The user file, the password check of CONNECT, and the registry of both."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from broker.auth import scram
from broker.auth.api import ANONYMOUS, Authenticators
from broker.auth.scram import METHOD, ScramExchange, ScramSha256, make_verifier
from broker.auth.users import UserFile, UserFilePasswords
from broker.errors import ConfigError, PeerError

ANNA = make_verifier("apple", 4096, b"0123456789abcdef")
BERT = make_verifier("banana", 5000, b"fedcba9876543210")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "users"
    file.write_text(f"# people\n\nanna:{ANNA}\n  bert:{BERT}  \r\n", encoding="utf-8")
    return file


def authenticators(users: UserFile, allow_anonymous: bool = False) -> Authenticators:
    return Authenticators(allow_anonymous, UserFilePasswords(users), [ScramSha256(users)])


async def code(auth: Authenticators, username: str | None, password: bytes | None) -> int:
    with pytest.raises(PeerError) as caught:
        await auth.authenticate(username, password)
    return caught.value.reason_code


def test_file_with_comments_blank_lines_and_odd_names(path: Path) -> None:
    users = UserFile(path)
    assert len(users) == 2
    assert str(users.lookup("anna")) == ANNA
    assert str(users.lookup("bert")) == BERT
    assert users.lookup("carl").decoy
    path.write_bytes(b"\xef\xbb\xbfa:b c:" + ANNA.encode() + "\n\uff24ora:".encode() + BERT.encode())
    users.reload()
    assert len(users) == 2
    assert str(users.lookup("a:b c")) == ANNA
    assert str(users.lookup("Dora")) == BERT
    path.write_bytes(b"")
    users.reload()
    assert len(users) == 0
    assert users.lookup("anna").decoy


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"carl:hunter2", "not <user>:SCRAM-SHA-256"),
        (b"carl", "not <user>:SCRAM-SHA-256"),
        (ANNA.encode(), "not <user>:SCRAM-SHA-256"),
        (b":" + ANNA.encode(), "empty"),
        (b"c\x00:" + ANNA.encode(), "U[+]0000"),
        (b"\xff:" + ANNA.encode(), "UTF-8"),
        (b"c" * 1025 + b":" + ANNA.encode(), "1024"),
        (b"anna:" + BERT.encode(), "'anna' is there twice"),
        ("\uff41nna:".encode() + BERT.encode(), "'anna' is there twice"),
        (b"carl:" + ANNA.replace("$4096", "$1000").encode(), "iterations must be 4096"),
        (b"carl:" + ANNA.encode() + b"x", "base64"),
    ],
)
def test_errors_name_file_and_line_and_keep_the_old(path: Path, line: bytes, problem: str) -> None:
    users = UserFile(path)
    good = path.read_bytes()
    path.write_bytes(b"new:" + ANNA.encode() + b"\n" + good + line + b"\n")
    with pytest.raises(ConfigError, match=problem) as caught:
        users.reload()
    assert f"{str(path)!r}, line 6: " in str(caught.value)
    # Neither the message nor a chained cause repeats a line: it may hold somebody's password.
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert len(users) == 2
    assert users.lookup("new").decoy
    assert str(users.lookup("anna")) == ANNA
    with pytest.raises(ConfigError, match=problem):
        UserFile(path)


def test_missing_file(path: Path) -> None:
    users = UserFile(path)
    path.unlink()
    with pytest.raises(ConfigError, match=r"user file .*users': No such file"):
        users.reload()
    assert not users.lookup("anna").decoy


def test_nodes_with_one_secret_show_one_salt(path: Path) -> None:
    one, two, other = UserFile(path, b"secret"), UserFile(path, b"secret"), UserFile(path)
    assert one.lookup("carl").salt == two.lookup("carl").salt
    assert one.lookup("carl").salt != other.lookup("carl").salt
    assert {one.lookup(f"nobody{number}").iterations for number in range(60)} == {4096, 5000}


async def test_passwords(path: Path) -> None:
    auth = authenticators(UserFile(path))
    assert await auth.authenticate("anna", b"apple") == "anna"
    assert await auth.authenticate("\uff42ert", b"banana") == "bert"
    for username, password in (
        ("anna", b"banana"),
        ("anna", b""),
        ("anna", None),
        ("Anna", b"apple"),
        ("carl", b"apple"),
        ("", b"apple"),
        ("\x00", b"apple"),
        ("\ud800", b"apple"),
        ("a" * 16000, b"apple"),
    ):
        assert await code(auth, username, password) == 0x86


async def test_reload_changes_who_gets_in(path: Path) -> None:
    users = UserFile(path)
    auth = authenticators(users)
    path.write_text(f"carl:{BERT}\n", encoding="utf-8")
    assert await code(auth, "carl", b"banana") == 0x86
    users.reload()
    assert await auth.authenticate("carl", b"banana") == "carl"
    assert await code(auth, "anna", b"apple") == 0x86


async def test_unknown_users_cost_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(f"anna:{ANNA}\n", encoding="utf-8")
    auth = authenticators(UserFile(path))
    costs: list[tuple[int, int]] = []
    threads: set[int] = set()
    real = scram.salted_password

    def counted(password: bytes, salt: bytes, iterations: int) -> bytes:
        costs.append((len(salt), iterations))
        threads.add(threading.get_ident())
        return real(password, salt, iterations)

    monkeypatch.setattr(scram, "salted_password", counted)
    await auth.authenticate("anna", b"apple")
    for username, password in (("anna", b"x"), ("carl", b"apple"), ("", b""), ("anna", b"\xff"), ("c" * 9999, b"")):
        assert await code(auth, username, password) == 0x86
    assert costs == [(16, 4096)] * 6
    assert threading.get_ident() not in threads


async def test_refusals_read_the_same(path: Path) -> None:
    auth = authenticators(UserFile(path))
    texts = set()
    for username in ("anna", "carl", ""):
        with pytest.raises(PeerError) as caught:
            await auth.authenticate(username, b"wrong")
        texts.add(caught.value.text)
    assert len(texts) == 1


async def test_checks_wait_for_the_limiter(path: Path) -> None:
    limiter = trio.CapacityLimiter(1)
    passwords = UserFilePasswords(UserFile(path), limiter)
    async with trio.open_nursery() as nursery:
        await limiter.acquire()
        nursery.start_soon(passwords.authenticate, "anna", b"apple")
        await trio.testing.wait_all_tasks_blocked()
        assert limiter.statistics().tasks_waiting == 1
        limiter.release()
    assert limiter.statistics().tasks_waiting == 0


@pytest.mark.parametrize("password", [None, b"", b"token"])
async def test_without_user_name(path: Path, password: bytes | None) -> None:
    users = UserFile(path)
    assert await authenticators(users, allow_anonymous=True).authenticate(None, password) == ANONYMOUS
    assert await code(authenticators(users), None, password) == 0x87


async def test_allow_anonymous_does_not_excuse_a_wrong_password(path: Path) -> None:
    auth = authenticators(UserFile(path), allow_anonymous=True)
    assert await code(auth, "anna", b"wrong") == 0x86
    assert await code(auth, "carl", b"wrong") == 0x86


async def test_nothing_configured() -> None:
    assert await Authenticators(True).authenticate("anna", b"apple") == ANONYMOUS
    assert await code(Authenticators(False), "anna", b"apple") == 0x86
    assert await code(Authenticators(False), None, None) == 0x87
    assert Authenticators(True).methods == ()


async def test_registry_of_methods(path: Path) -> None:
    auth = authenticators(UserFile(path))
    assert auth.methods == (METHOD,)
    assert isinstance(auth.begin(METHOD, "client", None), ScramExchange)
    step = await auth.begin(METHOD, "client", "anna").step(b"n,,n=anna,r=abc")
    assert step.data.endswith(b",s=MDEyMzQ1Njc4OWFiY2RlZg==,i=4096")
    with pytest.raises(PeerError) as caught:
        await auth.begin(METHOD, "client", "anna").step(b"n,,n=bert,r=abc")
    assert caught.value.reason_code == 0x87
    for method in ("SCRAM-SHA-1", "scram-sha-256", "", "x" * 60000):
        with pytest.raises(PeerError) as caught:
            auth.begin(method, "client", None)
        assert caught.value.reason_code == 0x8C
        assert len(caught.value.text) < 120
