"""SCRAM-SHA-256 and SCRAM-SHA-512: the published example, and everything that must not authenticate."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Coroutine
from contextlib import suppress
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.auth.api import ALLOW, BackendError, ConnectRequest, Step, Verdict
from broker.auth.hashes import of_verifier
from broker.auth.scram import (
    MAX_ITERATIONS,
    MAX_MESSAGE_BYTES,
    MIN_ITERATIONS,
    SHA_256,
    SHA_512,
    Mechanism,
    Scram,
    ScramExchange,
    Verifier,
    make_decoy,
    make_verifier,
    parse_verifier,
    random_nonce,
    saslprep,
)
from broker.errors import PeerError
from broker.peer import Peer

# RFC 7677 section 3.
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
SERVER_NONCE = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
CLIENT_FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
SERVER_FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
CLIENT_FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="

PENCIL = make_verifier("pencil", 4096, SALT)
SECRET = b"of the test"


class Users:
    """Verifiers in a dictionary."""

    def __init__(self, **passwords: str) -> None:
        self.verifiers = {
            name: parse_verifier(make_verifier(password, 4096, SALT)) for name, password in passwords.items()
        }

    async def verifier(self, request: ConnectRequest, username: str, mechanism: Mechanism) -> tuple[Verifier, Verdict]:
        models = [(each.iterations, len(each.salt)) for each in self.verifiers.values()]
        decoy = make_decoy(SECRET, username, models, mechanism)
        return self.verifiers.get(username, decoy), Verdict(ALLOW, username)


USERS = Users(user="pencil")


def run(step: Coroutine[object, object, Step]) -> Step:
    """Run a step to its end without an event loop: it may not wait for anything."""
    try:
        step.send(None)
    except StopIteration as end:
        result = end.value
        assert isinstance(result, Step)
        return result
    raise AssertionError("the step waits")


def begin(username: str | None = None, nonce: str = SERVER_NONCE) -> ScramExchange:
    return Scram(SHA_256, [USERS], lambda: nonce).begin(request(username))


def request(username: str | None = None) -> ConnectRequest:
    return ConnectRequest("client", username, None, Peer())


def check_password(verifier: Verifier, password: bytes) -> bool:
    found = of_verifier(verifier)
    return (found.decoy() if verifier.decoy else found).verify(password)


def name(step: Step) -> str | None:
    return None if step.verdict is None else step.verdict.username


def refused(exchange: ScramExchange, data: bytes) -> str:
    with pytest.raises(PeerError) as caught:
        run(exchange.step(data))
    assert caught.value.reason_code == 0x87
    # A refused exchange stays refused, even for what would have been right.
    for message in (CLIENT_FIRST, CLIENT_FINAL):
        with pytest.raises(PeerError):
            run(exchange.step(message))
    return caught.value.text


def client_final(
    password: str,
    first: bytes,
    server_first: bytes,
    header: bytes = b"n,,",
    extension: str = "",
    digest: str = "sha256",
) -> tuple[bytes, bytes]:
    """A client of its own: client-final, and the server-final it expects."""
    attributes = dict(part.split("=", 1) for part in server_first.decode().split(","))
    salted = hashlib.pbkdf2_hmac(digest, password.encode(), base64.b64decode(attributes["s"]), int(attributes["i"]))
    bare = first[len(header) :].decode()
    without_proof = f"c={base64.b64encode(header).decode()},r={attributes['r']}{extension}"
    message = f"{bare},{server_first.decode()},{without_proof}".encode()
    client_key = hmac.digest(salted, b"Client Key", digest)
    signature = hmac.digest(hashlib.new(digest, client_key).digest(), message, digest)
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    server = hmac.digest(hmac.digest(salted, b"Server Key", digest), message, digest)
    return f"{without_proof},p={base64.b64encode(proof).decode()}".encode(), b"v=" + base64.b64encode(server)


def test_published_example() -> None:
    exchange = begin()
    first = run(exchange.step(CLIENT_FIRST))
    assert (first.data, first.done, name(first)) == (SERVER_FIRST, False, None)
    final = run(exchange.step(CLIENT_FINAL))
    assert (final.data, final.done, name(final)) == (SERVER_FINAL, True, "user")
    refused(exchange, CLIENT_FINAL)


@pytest.mark.parametrize(
    ("header", "bare", "extension"),
    [
        (b"n,,", b"n=user,r=abc", ""),
        (b"y,,", b"n=user,r=abc", ""),
        (b"n,a=user,", b"n=user,r=abc", ""),
        (b"n,,", b"n=user,r=abc,x=optional,y=too", ",z=last"),
        (b"n,,", b"n=us\xc2\xader,r=abc", ""),  # SASLprep drops a soft hyphen
        (b"n,,", "n=\uff55\uff53er,r=abc".encode(), ""),  # and narrows wide letters
    ],
)
def test_good_exchanges(header: bytes, bare: bytes, extension: str) -> None:
    exchange = begin("user", random_nonce())
    first = header + bare
    challenge = run(exchange.step(first))
    message, expected = client_final("pencil", first, challenge.data, header, extension)
    final = run(exchange.step(message))
    assert (final.data, final.done, name(final)) == (expected, True, "user")


def test_escaped_user_name() -> None:
    users = Users()
    users.verifiers["a,b=2C"] = parse_verifier(PENCIL)
    exchange = Scram(SHA_256, [users]).begin(request())
    first = b"n,,n=a=2Cb=3D2C,r=abc"
    message, expected = client_final("pencil", first, run(exchange.step(first)).data)
    final = run(exchange.step(message))
    assert (final.data, name(final)) == (expected, "a,b=2C")


def test_sha_512() -> None:
    users = Users()
    text = make_verifier("pencil", 4096, SALT, SHA_512)
    assert text.startswith("SCRAM-SHA-512$4096:")
    users.verifiers["user"] = parse_verifier(text)
    assert str(users.verifiers["user"]) == text
    for password in ("pencil", "pencils"):
        exchange = Scram(SHA_512, [users]).begin(request("user"))
        first = b"n,,n=user,r=abc"
        message, expected = client_final(password, first, run(exchange.step(first)).data, digest="sha512")
        if password == "pencil":
            final = run(exchange.step(message))
            assert (final.data, final.done, name(final)) == (expected, True, "user")
        else:
            refused(exchange, message)
    assert check_password(users.verifiers["user"], b"pencil")


def test_proof_of_the_other_mechanism() -> None:
    exchange = Scram(SHA_512, [USERS]).begin(request())
    run(exchange.step(CLIENT_FIRST))
    refused(exchange, CLIENT_FINAL)


@pytest.mark.parametrize("order", [1, -1])
def test_users_of_several_stores(order: int) -> None:
    others = Users(other="ink")
    exchange = Scram(SHA_256, [USERS, others][::order]).begin(request())
    first = b"n,,n=other,r=abc"
    message, expected = client_final("ink", first, run(exchange.step(first)).data)
    final = run(exchange.step(message))
    assert (final.data, name(final)) == (expected, "other")


def test_a_store_that_cannot_be_asked() -> None:
    class Broken:
        async def verifier(
            self, request: ConnectRequest, username: str, mechanism: Mechanism
        ) -> tuple[Verifier, Verdict]:
            raise BackendError("gone: at 10.0.0.1")

    exchange = Scram(SHA_256, [USERS, Broken()]).begin(request())
    with pytest.raises(PeerError) as caught:
        run(exchange.step(CLIENT_FIRST))
    assert caught.value.reason_code == 0x88
    assert "10.0.0.1" not in caught.value.text
    refused(exchange, CLIENT_FINAL)


def test_wrong_password_and_unknown_user_are_the_same() -> None:
    texts = []
    for user, password in ((b"user", "pencils"), (b"nobody", "pencil")):
        exchange = begin()
        first = b"n,,n=" + user + b",r=abc"
        challenge = run(exchange.step(first))
        assert challenge.data.endswith(b",i=4096")
        texts.append(refused(exchange, client_final(password, first, challenge.data)[0]))
    assert texts[0] == texts[1]


def test_key_of_a_decoy_is_no_way_in() -> None:
    """Even who finds a pre-image of a decoy's key stays out."""
    verifier = parse_verifier(PENCIL)
    keys = (verifier.stored_key, verifier.server_key)
    decoy = Verifier(SHA_256, verifier.iterations, verifier.salt, *keys, decoy=True)
    assert check_password(verifier, b"pencil")
    assert not check_password(decoy, b"pencil")
    users = Users()
    users.verifiers["user"] = decoy
    exchange = Scram(SHA_256, [users], lambda: SERVER_NONCE).begin(request())
    assert run(exchange.step(CLIENT_FIRST)).data == SERVER_FIRST
    refused(exchange, CLIENT_FINAL)


def test_decoys_cannot_be_told_from_users() -> None:
    models = [(4096, 16), (8000, 40)]
    decoys = [make_decoy(SECRET, f"user{number}", models) for number in range(60)]
    again = [make_decoy(SECRET, f"user{number}", models) for number in range(60)]
    assert list(map(str, decoys)) == list(map(str, again))
    assert {(decoy.iterations, len(decoy.salt)) for decoy in decoys} == {(4096, 16), (8000, 40)}
    assert len({decoy.salt for decoy in decoys}) == 60
    assert make_decoy(SECRET, "user0", models, SHA_512).salt not in {decoy.salt for decoy in decoys}
    assert all(decoy.salt[32:] != decoy.salt[:8] for decoy in decoys)
    assert make_decoy(b"other", "user0", models).salt != decoys[0].salt
    assert parse_verifier(str(make_decoy(SECRET, "x", ()))).iterations == 10_000


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n",
        b"n,,",
        b"n,,n=user",
        b"n,,r=abc,n=user",
        b"n,,n=user,r=",
        b"n,,n=user,r=a c",
        b"n,,n=user,r=a\xc3\xa4",
        b"n,,n=,r=abc",
        b"n,,n=us=er,r=abc",
        b"n,,n=us=2cer,r=abc",
        b"n,,n=us\x00er,r=abc",
        b"n,,n=us\xff,r=abc",
        b"n,,m=new,n=user,r=abc",
        b"n,,n=user,r=abc,",
        b"n,,n=user,r=abc,x",
        b"n,,n=user,r=abc,x=",
        b"n,,n=user,r=abc,1=x",
        b"n,a=admin,n=user,r=abc",
        b"n,user,n=user,r=abc",
        b"p=tls-unique,,n=user,r=abc",
        b"p=tls-exporter,,n=user,r=abc",
        b"x,,n=user,r=abc",
        b"N,,n=user,r=abc",
        b"n=user,r=abc",
        CLIENT_FINAL,
        b"n,,n=user,r=" + b"a" * MAX_MESSAGE_BYTES,
    ],
)
def test_bad_client_first(message: bytes) -> None:
    refused(begin(), message)


def test_longest_client_first() -> None:
    prefix = b"n,,n=user,r="
    assert not run(begin().step(prefix + b"a" * (MAX_MESSAGE_BYTES - len(prefix)))).done


@pytest.mark.parametrize("expected", ["other", "", "User", "user\x00", "user" * 1000])
def test_user_must_be_the_one_of_the_connection(expected: str) -> None:
    refused(begin(expected), CLIENT_FIRST)


def test_replayed_client_final() -> None:
    exchange = begin(nonce=SERVER_NONCE[::-1])
    run(exchange.step(CLIENT_FIRST))
    refused(exchange, CLIENT_FINAL)
    # With the nonce put right the old proof is still the wrong one.
    exchange = begin(nonce=SERVER_NONCE[::-1])
    run(exchange.step(CLIENT_FIRST))
    refused(exchange, CLIENT_FINAL.replace(SERVER_NONCE.encode(), SERVER_NONCE[::-1].encode()))


def test_client_first_twice() -> None:
    exchange = begin()
    run(exchange.step(CLIENT_FIRST))
    refused(exchange, CLIENT_FIRST)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        CLIENT_FINAL[:-1],
        CLIENT_FINAL.rpartition(b",")[0],
        CLIENT_FINAL + b",x=y",
        CLIENT_FINAL.replace(b"c=biws", b"c=eSws"),  # y,, in place of n,,
        CLIENT_FINAL.replace(b"c=biws,", b""),
        CLIENT_FINAL.replace(b",p=", b",x=y,p="),  # a good extension that the proof does not cover
        CLIENT_FINAL.replace(b",p=", b",x,p="),
        CLIENT_FINAL.replace(b"dVQ=", b"dVR="),  # base64 that decodes to the same bytes
        CLIENT_FINAL.replace(b"dVQ=", b"dVQ=\n"),
        CLIENT_FINAL.rpartition(b",p=")[0] + b",p=" + base64.b64encode(bytes(32)),
        CLIENT_FINAL.rpartition(b",p=")[0] + b",p=" + base64.b64encode(bytes(31)),
        CLIENT_FINAL.rpartition(b",p=")[0] + b",p=\xc3\xa4",
    ],
)
def test_bad_client_final(message: bytes) -> None:
    exchange = begin()
    run(exchange.step(CLIENT_FIRST))
    refused(exchange, message)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("c=biws", "c=eSws"),  # a client that said n,, and now says y,,
        ("c=biws", "c=cD10bHMtdW5pcXVlLCw="),
        ("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", ""),
        ("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0x"),
        ("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,x"),
        ("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"),
    ],
)
def test_right_proof_of_a_wrong_client_final(old: str, new: str) -> None:
    """Who knows the password still has to answer this exchange and no other."""
    exchange = begin()
    run(exchange.step(CLIENT_FIRST))
    without_proof = CLIENT_FINAL.decode().rpartition(",p=")[0].replace(old, new)
    message = b",".join((CLIENT_FIRST[3:], SERVER_FIRST, without_proof.encode()))
    client_key = hmac.digest(hashlib.pbkdf2_hmac("sha256", b"pencil", SALT, 4096), b"Client Key", "sha256")
    signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    text = refused(exchange, f"{without_proof},p={base64.b64encode(proof).decode()}".encode())
    assert "password" not in text


def test_every_changed_byte_of_client_final_is_refused() -> None:
    for position in range(len(CLIENT_FINAL)):
        for bit in (1, 0x20, 0x80):
            changed = bytearray(CLIENT_FINAL)
            changed[position] ^= bit
            exchange = begin()
            run(exchange.step(CLIENT_FIRST))
            refused(exchange, bytes(changed))


def test_every_changed_bit_of_client_first_breaks_the_proof() -> None:
    for position in range(len(CLIENT_FIRST)):
        for bit in (1, 2, 0x20, 0x80):
            changed = bytearray(CLIENT_FIRST)
            changed[position] ^= bit
            exchange = begin()
            try:
                run(exchange.step(bytes(changed)))
            except PeerError:
                continue
            refused(exchange, CLIENT_FINAL)


# Bytes that look like messages reach further than plain noise.
PIECES = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from([b"n,,", b"y,,", b"n=", b"r=", b"c=biws", b"p=", b"a=", b",", b"=", b"=2C", b"user", b"m=x"]),
        st.text(max_size=4).map(lambda text: text.encode("utf-8", "surrogatepass")),
    ),
    max_size=12,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(PIECES, PIECES)
def test_noise_raises_peer_errors_only(first: bytes, second: bytes) -> None:
    exchange = begin()
    with suppress(PeerError):
        assert not run(exchange.step(first)).done
    exchange = begin()
    run(exchange.step(CLIENT_FIRST))
    refused(exchange, second)


@settings(max_examples=100, deadline=None)
@given(PIECES)
def test_a_client_final_with_a_noisy_extension(piece: bytes) -> None:
    exchange = begin()
    run(exchange.step(CLIENT_FIRST))
    refused(exchange, CLIENT_FINAL.replace(b",p=", b",x=" + piece + b",p="))


def test_verifier_round_trip() -> None:
    verifier = parse_verifier(PENCIL)
    assert str(verifier) == PENCIL
    assert PENCIL.startswith("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$")
    assert (verifier.iterations, verifier.salt, verifier.decoy) == (4096, SALT, False)
    assert make_verifier("pencil") != make_verifier("pencil")
    assert parse_verifier(make_verifier("pencil")).iterations == 10_000


@pytest.mark.parametrize(
    ("password", "right"),
    [
        (b"pencil", True),
        (b"pen\xc2\xadcil", True),
        ("\uff50encil".encode(), True),
        (b"Pencil", False),
        (b"pencil ", False),
        (b"", False),
        (b"pencil\x00", False),
        (b"\xff", False),
        (b"p" * 2000, False),
    ],
)
def test_check_password(password: bytes, right: bool) -> None:
    assert check_password(parse_verifier(PENCIL), password) is right


def test_unusable_password_does_not_pass_for_the_empty_one() -> None:
    """An empty password is the stand-in that unusable ones are hashed as."""
    salted = hashlib.pbkdf2_hmac("sha256", b"", SALT, 4096, 32)
    key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    empty = Verifier(SHA_256, 4096, SALT, key, key)
    for password in (b"", b"\xff", b"p" * 2000):
        assert not check_password(empty, password)


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=40))
def test_check_password_takes_any_bytes(password: bytes) -> None:
    assert check_password(parse_verifier(PENCIL), password) is (password == b"pencil")


@pytest.mark.parametrize(
    ("password", "iterations", "salt"),
    [
        ("", 4096, SALT),
        ("a\x00b", 4096, SALT),
        ("\ud800", 4096, SALT),
        ("p" * 1025, 4096, SALT),
        ("pencil", MIN_ITERATIONS - 1, SALT),
        ("pencil", MAX_ITERATIONS + 1, SALT),
        ("pencil", 4096, b""),
    ],
)
def test_no_verifier_for(password: str, iterations: int, salt: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        make_verifier(password, iterations, salt)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCRAM-SHA-256$", "SCRAM-SHA-1$"),
        ("SCRAM-SHA-256$", "scram-sha-256$"),
        ("$4096:", "$4095:"),
        ("$4096:", "$10000001:"),
        ("$4096:", "$" + "9" * 5000 + ":"),
        ("$4096:", "$+4096:"),
        ("$4096:", "$04096:"),
        ("$4096:", "$\u0664\u0660\u0669\u0666:"),
        ("$4096:", "$4096"),
        ("$4096:", "4096:"),
        ("W22ZaJ0SNY7soEsUEjb6gQ==", ""),
        ("W22ZaJ0SNY7soEsUEjb6gQ==", "W22ZaJ0SNY7soEsUEjb6gQ"),
        ("W22ZaJ0SNY7soEsUEjb6gQ==", "W22ZaJ0SNY7soEsUEjb6gR=="),
        ("W22ZaJ0SNY7soEsUEjb6gQ==", "W22ZaJ0S\nNY7soEsUEjb6gQ=="),
        ("=:", "="),
        ("=:", "=:AAAA"),
        ("=:", "==:"),
    ],
)
def test_parse_verifier_refuses(old: str, new: str) -> None:
    assert old in PENCIL
    with pytest.raises(ValueError, match=r"SCRAM|iterations|salt|key"):
        parse_verifier(PENCIL.replace(old, new))


def test_every_cut_verifier_is_refused() -> None:
    for start, end in combinations(range(0, len(PENCIL) + 1, 3), 2):
        if (start, end) != (0, len(PENCIL)):
            with pytest.raises(ValueError, match=r"."):
                parse_verifier(PENCIL[start:end])


@pytest.mark.parametrize(
    ("text", "prepared"),
    [  # RFC 4013 section 3, and one of each kind
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("\u0627\u0628", "\u0627\u0628"),
        ("\u06271\u0628", "\u06271\u0628"),
        ("\u00e4", "\u00e4"),
        ("a\u0308", "\u00e4"),
    ],
)
def test_saslprep(text: str, prepared: str) -> None:
    assert saslprep(text) == prepared


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\u00ad",
        "\u0007",
        "a\x7f",
        "\u06271",
        "1\u0627",
        "\u0627a\u0628",
        chr(0xD800),
        "\ue000",
        "\ufffd",
        "\u2ff0",
        "a\u200e",
        "\U000e0001",
        "\u0221",
        "\ufdd0",
    ],
)
def test_saslprep_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        saslprep(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12))
def test_saslprep_is_stable(text: str) -> None:
    try:
        prepared = saslprep(text)
    except ValueError:
        return
    assert saslprep(prepared) == prepared


def test_nonces_differ() -> None:
    nonces = {random_nonce() for _ in range(50)}
    assert len(nonces) == 50
    assert all(nonce.isascii() and nonce.isprintable() and "," not in nonce and len(nonce) == 24 for nonce in nonces)
