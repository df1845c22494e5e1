"""Password hashes: published and foreign vectors, and everything that must not verify or cost too much."""

from __future__ import annotations

import hashlib
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.auth.hashes import PasswordHash, default_decoy, make_argon2id, make_pbkdf2, parse_hash
from broker.auth.scram import SHA_512, make_verifier
from broker.errors import ConfigError

PASSWORD = b"correct horse"

#: Made by the tools whose form it is: mosquitto_passwd 2.0.11 and 1.6 (hash), Django, passlib, argon2, htpasswd, slapd.
NAMED = {
    "argon2id (RFC 9106's tool)": (
        b"password",
        "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
    ),
    "argon2i v=16 without a version": (
        b"password",
        "$argon2i$m=256,t=2,p=1$c29tZXNhbHQ$/U3YPXYsSb3q9XxHvc0MLxur+GP960kN9j7emXX8zwY",
    ),
    "bcrypt (OpenBSD)": (b"U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
    "bcrypt of PHP": (b"rasmuslerdorf", "$2a$07$usesomesillystringfore2uDLvp1Ii2e./U9C8sBjqp8I90dH6hi"),
    "Django": (b"password", "pbkdf2_sha256$1$salt$Eg+2z/z4sxLDJiSRUDbZyzNjhrjzKWWWy9KMv5hmP7M="),
    "LDAP": (b"password", "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="),
}


@pytest.mark.parametrize("name", NAMED)
def test_hashes_of_others(name: str) -> None:
    password, text = NAMED[name]
    if name == "Django":
        text = "pbkdf2_sha256$1$salt$" + _b64(hashlib.pbkdf2_hmac("sha256", password, b"salt", 1))
        # RFC 7914 section 11 has the first 64 bytes of the one with "passwd"; RFC 6070's is the same for SHA-256.
        assert hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 1).hex().startswith("120fb6cffcf8b32c")
    found = parse_hash(text)
    assert found.verify(password)
    assert not found.verify(password + b" ")
    assert not found.verify(b"")
    assert not found.decoy().verify(password)


def _b64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def _made() -> dict[str, PasswordHash]:
    salt = b"0123456789ab"
    digest = hashlib.pbkdf2_hmac("sha512", PASSWORD, salt, 1000)
    short = hashlib.pbkdf2_hmac("sha256", PASSWORD, b"salt", 1000)
    return {
        "mosquitto 7": parse_hash(make_pbkdf2(PASSWORD.decode(), 1000)),
        "mosquitto 6": parse_hash(f"$6${_b64(salt)}${_b64(hashlib.sha512(PASSWORD + salt).digest())}"),
        "argon2id": parse_hash(make_argon2id(PASSWORD.decode())),
        "go-auth": parse_hash(f"PBKDF2$sha512$1000${_b64(salt)}${_b64(digest)}"),
        "passlib": parse_hash(
            f"$pbkdf2-sha512$1000${_b64(salt).rstrip('=')}${_b64(digest).rstrip('=').replace('+', '.')}"
        ),
        "scram": parse_hash(make_verifier(PASSWORD.decode(), 4096)),
        "scram 512": parse_hash(make_verifier(PASSWORD.decode(), 4096, mechanism=SHA_512)),
        "ssha512": parse_hash("{SSHA512}" + _b64(hashlib.sha512(PASSWORD + salt).digest() + salt)),
        "plain": parse_hash(PASSWORD.decode(), "plain"),
        "md5": parse_hash(hashlib.md5(b"salt" + PASSWORD).hexdigest(), "md5", b"salt"),
        "sha1": parse_hash(hashlib.sha1(PASSWORD + b"salt").hexdigest(), "sha1", b"salt", "suffix"),
        "sha256": parse_hash(hashlib.sha256(b"salt" + PASSWORD).hexdigest().upper(), "sha256", b"salt", "prefix"),
        "sha512": parse_hash(hashlib.sha512(PASSWORD).hexdigest(), "sha512", b"salt", "none"),
        "pbkdf2 hex": parse_hash(short.hex(), "pbkdf2_sha256", b"salt", iterations=1000),
        "pbkdf2 base64": parse_hash(_b64(short), "pbkdf2_sha256", b"salt", iterations=1000),
    }


MADE = _made()


@pytest.mark.parametrize("name", MADE)
def test_every_kind(name: str) -> None:
    found = MADE[name]
    assert found.verify(PASSWORD)
    for wrong in (b"", PASSWORD[:-1], PASSWORD + b"\0", PASSWORD + b"x", b"\0", b"\xff", b"x" * 65_535, b"x" * 65_536):
        assert not found.verify(wrong)
    decoy = found.decoy()
    assert decoy.kind == found.kind
    assert not decoy.verify(PASSWORD)


def test_an_empty_password_is_never_right() -> None:
    assert not parse_hash(hashlib.sha256(b"").hexdigest(), "sha256").verify(b"")
    assert not parse_hash("$6$" + _b64(b"salt") + "$" + _b64(hashlib.sha512(b"salt").digest())).verify(b"")
    with pytest.raises(ValueError, match="empty"):
        parse_hash("", "plain")
    for make in (make_pbkdf2, make_argon2id):
        with pytest.raises(ValueError, match="empty"):
            make("")
    # Nor does the stand-in that unusable passwords are hashed as.
    assert not parse_hash(hashlib.sha256(b"x").hexdigest(), "sha256").verify(b"")


def test_bcrypt_looks_at_72_bytes_and_at_no_nul() -> None:
    text = "$2b$04$" + "." * 22
    import bcrypt

    made = bcrypt.hashpw(b"a" * 72, text.encode()).decode()
    found = parse_hash(made)
    assert found.verify(b"a" * 72) and found.verify(b"a" * 80)
    assert not found.verify(b"a" * 71)
    nul = parse_hash(bcrypt.hashpw(b"abc", text.encode()).decode())
    assert nul.verify(b"abc")
    assert not nul.verify(b"abc\0def")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no known kind"),
        ("secret", "no known kind"),
        ("5f4dcc3b5aa765d61d8327deb882cf99", "no known kind"),  # what it is has to be told
        ("$7$0$c2FsdA==$" + "A" * 86 + "==", "iterations"),
        ("$7$99999999$c2FsdA==$" + "A" * 86 + "==", "iterations must be 1 to 10000000"),
        ("$7$1e3$c2FsdA==$" + "A" * 86 + "==", "iterations"),
        ("$7$-1$c2FsdA==$" + "A" * 86 + "==", "iterations"),
        ("$7$\u0661\u0662$c2FsdA==$" + "A" * 86 + "==", "iterations"),
        ("$7$101$$" + "A" * 86 + "==", "salt is empty"),
        ("$7$101$c2FsdA==$QUJD", "64 bytes"),
        ("$7$101$c2FsdA==$!!!!", "base64"),
        ("$7$101$c2FsdA==", "no known kind"),
        ("$6$c2FsdA==$QUJD", "64 bytes"),
        ("$8$c2FsdA==$QUJD", "no known kind"),
        ("$2b$31$" + "." * 53, "cost 04 to 15"),
        ("$2b$10$short", "bcrypt"),
        ("$argon2id$v=19$m=4194304,t=1,p=1$c29tZXNhbHQ$" + "A" * 43, "parameters"),
        ("$argon2id$v=19$m=65536,t=4000,p=1$c29tZXNhbHQ$" + "A" * 43, "parameters"),
        ("$argon2id$v=19$m=65536,t=1,p=255$c29tZXNhbHQ$" + "A" * 43, "parameters"),
        ("$argon2id$v=18$m=65536,t=1,p=1$c29tZXNhbHQ$" + "A" * 43, "parameters"),
        ("$argon2id$v=19$m=65536,t=1,p=1$c29t$" + "A" * 43, "parameters"),
        ("$argon2x$v=19$m=65536,t=1,p=1$c29tZXNhbHQ$AAAA", "argon2"),
        ("{CRYPT}abc", "no known kind"),
        ("SCRAM-SHA-1$4096:c2FsdA==$AAAA:AAAA", "no verifier"),
        ("$7$" + "1" * 2000, "1024 characters"),
    ],
)
def test_what_is_no_hash(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_hash(text)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("library", ["argon2", "bcrypt"])
def test_a_library_that_is_missing_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = make_argon2id("x") if library == "argon2" else NAMED["bcrypt (OpenBSD)"][1]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"rookery\[{library}\]"):
        parse_hash(foreign)
    with pytest.raises(ConfigError, match=rf"rookery\[{library}\]"):
        default_decoy(library)
    assert parse_hash(NAMED["LDAP"][1]).verify(b"password")  # the others do without


def test_algorithm_has_to_fit() -> None:
    assert parse_hash(make_argon2id("x"), "argon2").verify(b"x")
    with pytest.raises(ValueError, match="not of the kind bcrypt"):
        parse_hash(make_argon2id("x"), "bcrypt")
    with pytest.raises(ValueError, match="hex"):
        parse_hash("zz", "sha256")
    with pytest.raises(ValueError, match="16 bytes"):
        parse_hash("aa", "md5")
    with pytest.raises(ValueError, match="iterations"):
        parse_hash("aa" * 32, "pbkdf2_sha256", b"salt")


@pytest.mark.parametrize("algorithm", ["auto", "plain", "md5", "sha512", "bcrypt", "argon2", "pbkdf2_sha256"])
def test_default_decoys_verify_nothing(algorithm: str) -> None:
    decoy = default_decoy(algorithm)
    assert not decoy.verify(b"password")
    assert not decoy.verify(b"")


def test_work_is_the_same_for_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    real = hashlib.pbkdf2_hmac

    def counted(name: str, password: bytes, salt: bytes, iterations: int, size: int | None = None) -> bytes:
        calls.append((name, iterations, size))
        return real(name, password, salt, iterations, size)

    found = parse_hash(make_pbkdf2("right", 500))
    monkeypatch.setattr(hashlib, "pbkdf2_hmac", counted)
    for candidate in (found, found.decoy()):
        for password in (b"right", b"wrong", b"", b"\0" * 70_000):
            candidate.verify(password)
    assert calls == [("sha512", 500, 64)] * 8


def test_credentials_tell_hashes_apart() -> None:
    one, other = make_pbkdf2("x", 1), make_pbkdf2("x", 1)
    assert parse_hash(one).credential == parse_hash(one).credential
    assert parse_hash(one).credential != parse_hash(other).credential
    text = hashlib.md5(b"x").hexdigest()
    assert parse_hash(text, "md5", b"a").credential != parse_hash(text, "md5", b"b").credential


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                ["$", "7", "6", "argon2id", "2b", "04", "v=19", "m=64", "t=1", "p=1", ",", "AAAA", "{SHA}"]
            ),
            max_size=14,
        ).map("".join),
    ),
    st.sampled_from(["auto", "md5", "sha256", "bcrypt", "pbkdf2_sha256", "argon2"]),
    st.binary(max_size=8),
)
def test_any_text_is_read_or_refused(text: str, algorithm: str, salt: bytes) -> None:
    try:
        found = parse_hash(text, algorithm, salt, iterations=1)
    except ValueError:
        return
    assert not found.decoy().verify(b"x")
