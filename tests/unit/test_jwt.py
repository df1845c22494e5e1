"""JSON web tokens: who gets in with which, and above all who does not."""

from __future__ import annotations

import base64
import hmac
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from broker.auth.api import ALLOW, DENY, IGNORE, ConnectRequest, Principal, Verdict
from broker.auth.jwt_keys import Key, key_set
from broker.auth.jwt_tokens import MAX_TOKEN_BYTES, JwtUsers
from broker.errors import ConfigError
from broker.options import read_options
from broker.options.authentication import Jwt
from broker.peer import Peer

SECRET = "a secret that is long enough for HS256"
RSA_KEY = rsa.generate_private_key(65537, 2048)
KEYS = {
    "RS256": RSA_KEY,
    "PS384": RSA_KEY,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def users(**options: object) -> JwtUsers:
    return JwtUsers(read_options(Jwt, options))


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "ann", "exp": int(time.time()) + 60, **more}


def token(key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **more: Any) -> str:
    return jwt.encode(
        {name: value for name, value in claims(**more).items() if value is not None}, key, algorithm, headers
    )


def request(password: str | bytes | None, username: str | None = "ann", client_id: str = "c1") -> ConnectRequest:
    return ConnectRequest(
        client_id, username, password.encode() if isinstance(password, str) else password, Peer("10.0.0.1")
    )


async def ask(subject: JwtUsers, password: str | bytes | None, **more: Any) -> Verdict:
    return await subject.authenticate(request(password, **more))


def pem_of(key: Any, path: Path) -> str:
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return str(path)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_a_token_of_the_secret() -> None:
    found = await ask(users(secret=SECRET), token(exp=int(time.time()) + 600))
    assert (found.decision, found.username) == (ALLOW, "ann")
    assert found.expires_at_s is not None and 590 < found.expires_at_s - time.time() <= 600
    assert found.rules is None and not found.superuser


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_token_of_a_public_key(algorithm: str, tmp_path: Path) -> None:
    own: Any = KEYS[algorithm]
    subject = users(public_key=pem_of(own, tmp_path / "key.pem"))
    assert (await ask(subject, token(own, algorithm))).decision == ALLOW
    stranger: Any = rsa.generate_private_key(65537, 2048)
    if isinstance(own, ec.EllipticCurvePrivateKey):
        stranger = ec.generate_private_key(own.curve)
    elif isinstance(own, ed25519.Ed25519PrivateKey):
        stranger = ed25519.Ed25519PrivateKey.generate()
    assert (await ask(subject, token(stranger, algorithm))).decision == DENY


@pytest.mark.parametrize(
    "wrong", ["", "secret", "a.b.c", "ann:secret", "e30.e30.", "....", "eyJ", "\u00e4.b.c", "e30=.x.y"]
)
async def test_what_is_no_token_is_for_others(wrong: str) -> None:
    assert (await ask(users(secret=SECRET), wrong)).decision == IGNORE
    assert (await ask(users(secret=SECRET), None)).decision == IGNORE


async def test_binary_passwords_are_no_tokens() -> None:
    assert (await ask(users(secret=SECRET), b"\xff\xfe.\x00.\x01")).decision == IGNORE


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", "HS257", "RS256", None, 1, ["HS256"]])
async def test_no_algorithm_is_the_clients_choice(name: object) -> None:
    head, body = part({"alg": name, "typ": "JWT"}), part(claims())
    for signature in ("", "AA", part({})):
        assert (await ask(users(secret=SECRET), f"{head}.{body}.{signature}")).decision == DENY


async def test_key_confusion(tmp_path: Path) -> None:
    """The public key, which everybody knows, is no secret of an HMAC."""
    path = tmp_path / "key.pem"
    subject = users(public_key=pem_of(RSA_KEY, path))
    der = RSA_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    texts = [path.read_bytes(), path.read_bytes().strip(), der, base64.b64encode(der), b"", b"\0" * 32]
    for text in texts:
        for algorithm, digest in (("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")):
            signed = f"{part({'alg': algorithm})}.{part(claims())}"
            mac = base64.urlsafe_b64encode(hmac.digest(text, signed.encode(), digest)).rstrip(b"=").decode()
            assert (await ask(subject, f"{signed}.{mac}")).decision == DENY
    # Nor can an operator make one of it by mistake.
    with pytest.raises(ConfigError, match="public_key"):
        JwtUsers(Jwt(secret=path.read_text()))
    with pytest.raises(ConfigError, match="public_key"):
        users(secret_file=str(path))


async def test_a_key_of_the_tokens_own_is_not_taken() -> None:
    own = rsa.generate_private_key(65537, 2048)
    numbers = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(own.public_key()))
    for header in ({"jwk": numbers}, {"jku": "http://127.0.0.1:1/"}, {"x5u": "http://127.0.0.1:1/"}):
        assert (await ask(users(secret=SECRET), token(own, "RS256", header))).decision == DENY


async def test_a_changed_token_is_refused() -> None:
    good = token()
    head, body, signature = good.split(".")
    other = part({**claims(), "sub": "root"})
    for wrong in (
        f"{head}.{other}.{signature}",
        f"{head}.{body}.",
        f"{head}.{body}",
        good + "A",
        good + ".x",
        head + ".",
    ):
        assert (await ask(users(secret=SECRET), wrong)).decision == DENY


async def test_extensions_and_sizes_are_refused() -> None:
    subject = users(secret=SECRET)
    header: dict[str, Any]
    for header in ({"crit": ["exp"]}, {"b64": False, "crit": ["b64"]}, {"crit": []}):
        signed = f"{part({'alg': 'HS256', **header})}.{part(claims())}"
        mac = base64.urlsafe_b64encode(hmac.digest(SECRET.encode(), signed.encode(), "sha256")).rstrip(b"=").decode()
        assert (await ask(subject, f"{signed}.{mac}")).decision == DENY
    assert (await ask(subject, token(more="x" * MAX_TOKEN_BYTES))).decision == DENY
    deep = base64.urlsafe_b64encode(b'{"alg":' + b"[" * 2900).rstrip(b"=").decode()
    assert (await ask(subject, f"{deep}.e30.AA")).decision == IGNORE


@pytest.mark.parametrize(
    "given",
    [
        {"exp": None},
        {"exp": 1},
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"nbf": int(time.time()) + 3600},
        {"iat": int(time.time()) + 3600},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": ["ann"]},
        {"sub": "a\0b"},
        {"acl": "everything"},
        {"acl": {"read": ["#"]}},
        {"acl": [{"permission": "allow", "action": "publish", "topic": "a", "from": "10.0.0.0/8"}]},
        {"acl": [{"permission": "perhaps", "action": "publish", "topic": "a"}]},
        {"acl": [{"permission": "allow", "action": "publish"}]},
        {"acl": {"pub": ["a/#/b"]}},
        {"acl": {"pub": ["${nobody}"]}},
        {"client_attrs": ["a"]},
        {"client_attrs": {"a b": "c"}},
        {"client_attrs": {"a": {"b": 1}}},
    ],
)
async def test_wrong_claims(given: dict[str, Any]) -> None:
    assert (await ask(users(secret=SECRET), token(**given))).decision == DENY


async def test_expiry_leeway_and_no_expiry() -> None:
    late = int(time.time()) - 5
    assert (await ask(users(secret=SECRET), token(exp=late))).decision == DENY
    found = await ask(users(secret=SECRET, leeway="30s"), token(exp=late))
    assert found.decision == ALLOW and found.expires_at_s == late + 30
    found = await ask(users(secret=SECRET, require_expiry=False), token(exp=None))
    assert found.decision == ALLOW and found.expires_at_s is None


async def test_issuer_audience_and_required_claims() -> None:
    subject = users(secret=SECRET, issuer="https://id", audience="mqtt")
    wrong: dict[str, Any]
    good: dict[str, Any] = {"iss": "https://id", "aud": ["web", "mqtt"]}
    assert (await ask(subject, token(**good))).decision == ALLOW
    for wrong in ({"iss": "https://other"}, {"iss": None}, {"aud": "web"}, {"aud": None}):
        assert (await ask(subject, token(**{**good, **wrong}))).decision == DENY
    subject = users(secret=SECRET, claims=["client=${clientid}", "realm.roles=device", "active=true"])
    good = {"client": "c1", "realm": {"roles": ["user", "device"]}, "active": True}
    assert (await ask(subject, token(**good))).decision == ALLOW
    for wrong in (
        {"client": "c2"},
        {"client": None},
        {"realm": {"roles": ["user"]}},
        {"realm": "device"},
        {"active": 1},
    ):
        assert (await ask(subject, token(**{**good, **wrong}))).decision == DENY
    assert (await ask(subject, token(**good), client_id="c2")).decision == DENY


async def test_the_user_name_of_connect_can_be_bound() -> None:
    subject = users(secret=SECRET, username_claim="", claims=["user=${username}"])
    found = await ask(subject, token(user="ann"))
    assert (found.decision, found.username) == (ALLOW, "ann")
    assert (await ask(subject, token(user="ann"), username="root")).decision == DENY
    assert (await ask(subject, token(user="ann"), username=None)).decision == DENY
    subject = users(secret=SECRET, source="username")
    assert (await subject.authenticate(request(b"whatever", username=token(sub="bob")))).username == "bob"
    with pytest.raises(ValueError, match="username_claim"):
        read_options(Jwt, {"secret": SECRET, "source": "username", "username_claim": ""})


async def test_superuser_and_attributes() -> None:
    subject = users(secret=SECRET, superuser_claim="admin")
    assert (await ask(subject, token(admin=True))).superuser
    assert not (await ask(subject, token(admin=False))).superuser
    assert not (await ask(subject, token())).superuser
    assert (await ask(subject, token(admin="maybe"))).decision == DENY
    assert not (await ask(users(secret=SECRET), token(admin=True))).superuser
    found = await ask(subject, token(client_attrs={"site": "north", "floor": 3, "lab": True}))
    assert found.attributes == {"site": "north", "floor": "3", "lab": "true"}


async def test_algorithms_can_be_restricted(tmp_path: Path) -> None:
    path = pem_of(RSA_KEY, tmp_path / "key.pem")
    subject = users(public_key=path, algorithms="PS256")
    assert (await ask(subject, token(RSA_KEY, "PS256"))).decision == ALLOW
    assert (await ask(subject, token(RSA_KEY, "RS256"))).decision == DENY
    with pytest.raises(ConfigError, match="algorithms"):
        users(public_key=path, algorithms="HS256")


def test_keys_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of"):
        users()
    with pytest.raises(ConfigError, match="32"):
        users(secret="short")
    with pytest.raises(ConfigError, match="base64"):
        users(secret="base64:!!")
    users(secret="base64:" + base64.b64encode(bytes(range(200, 240))).decode())
    users(secret="base64:" + base64.urlsafe_b64encode(bytes(range(200, 240))).decode())
    with pytest.raises(ConfigError, match="1024"):
        users(public_key=pem_of(rsa.generate_private_key(65537, 1024), tmp_path / "small.pem"))
    with pytest.raises(ConfigError, match="curve"):
        users(public_key=pem_of(ec.generate_private_key(ec.SECP256K1()), tmp_path / "curve.pem"))
    private = tmp_path / "private.pem"
    private.write_bytes(RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="private"):
        users(public_key=str(private))
    (tmp_path / "nothing.pem").write_text("nothing")
    for name in ("nothing.pem", "absent.pem"):
        with pytest.raises(ConfigError, match=name):
            users(public_key=str(tmp_path / name))


async def test_who_changes_the_key_ends_what_it_let_in(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    subject = users(secret_file=str(path))
    found = await ask(subject, token())
    principal = Principal("ann", "c1", Peer(), credential=found.credential, expires_at_s=found.expires_at_s)
    assert await subject.still_valid(principal)
    assert subject.files() == [path]
    path.write_text("short")
    with pytest.raises(ConfigError):
        subject.reload()
    assert await subject.still_valid(principal)
    path.write_text(SECRET[::-1])
    subject.reload()
    assert not await subject.still_valid(principal)
    assert (await ask(subject, token())).decision == DENY
    assert (await ask(subject, token(SECRET[::-1]))).decision == ALLOW
    principal = Principal(
        "ann", "c1", Peer(), credential=(await ask(subject, token(SECRET[::-1]))).credential, expires_at_s=1.0
    )
    assert not await subject.still_valid(principal)


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    algorithms = {
        rsa.RSAPublicKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePublicKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PublicKey: jwt.algorithms.OKPAlgorithm,
        ed448.Ed448PublicKey: jwt.algorithms.OKPAlgorithm,
    }
    public = key.public_key()
    [algorithm] = [found for kind, found in algorithms.items() if isinstance(public, kind)]
    return {**json.loads(algorithm.to_jwk(public)), **more}  # type: ignore[attr-defined]


def read_set(*keys: dict[str, Any]) -> tuple[list[Key], int]:
    return key_set(json.dumps({"keys": keys}).encode())


def test_a_key_set_gives_keys_for_signatures_only() -> None:
    [key], others = read_set(jwk(RSA_KEY, kid="a"))
    assert key.key_id == "a" and key.algorithms == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"} and not others
    [key], _ = read_set(jwk(RSA_KEY, alg="RS256", use="sig", key_ops=["verify"]))
    assert key.algorithms == {"RS256"}
    [key], _ = read_set(jwk(KEYS["ES384"]))
    assert key.algorithms == {"ES384"} and key.slow
    [key], _ = read_set(jwk(ed448.Ed448PrivateKey.generate()))
    assert key.algorithms == {"EdDSA"}
    symmetric = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode(), "alg": "HS256"}
    wrong: list[dict[str, Any]] = [
        symmetric,
        jwk(RSA_KEY, use="enc"),
        jwk(RSA_KEY, key_ops=["encrypt"]),
        jwk(RSA_KEY, alg="HS256"),
        jwk(RSA_KEY, alg="none"),
        jwk(RSA_KEY, n="AQAB"),
        jwk(rsa.generate_private_key(65537, 1024)),
        jwk(ec.generate_private_key(ec.SECP256K1())),
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "RSA"},
        {},
    ]
    assert read_set(*wrong) == ([], len(wrong))
    for text in (b"", b"[]", b"{}", b'{"keys": {}}', b"[" * 100_000, b'{"keys": [' + b"{}," * 60 + b"{}]}"):
        with pytest.raises(ValueError, match=r"JSON|keys|value"):
            key_set(text)


async def test_the_private_half_in_a_set_is_ignored() -> None:
    private = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY))
    assert read_set(private) == ([], 1)  # it says itself that it is for signing
    [key], _ = read_set({**private, "key_ops": ["verify"]})
    assert isinstance(key.key, rsa.RSAPublicKey)


async def test_many_tokens_at_a_time_in_threads(tmp_path: Path) -> None:
    subject = users(public_key=pem_of(KEYS["ES512"], tmp_path / "key.pem"))
    given = token(KEYS["ES512"], "ES512")
    found: list[int] = []

    async def once() -> None:
        found.append((await ask(subject, given)).decision)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(once)
    assert found == [ALLOW] * 20


@pytest.mark.parametrize(
    ("library", "module", "extra"),
    [
        ("jwt", "broker.auth.jwt_keys", "jwt"),
        ("cryptography", "broker.auth.jwt_keys", "jwt"),
        ("httpx", "broker.auth.http_client", "http"),
    ],
)
def test_a_missing_library_is_named(library: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ConfigError, match=rf"rookery\[{extra}\]"):
        importlib.import_module(module)
