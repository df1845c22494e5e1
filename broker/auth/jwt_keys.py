"""Keys of JSON web tokens: each may be used with the algorithms of its own kind and with no others.

So a token never chooses how a key is used: `alg: none` is the algorithm of no key, and a public key is no text that
could be taken for the secret of an HMAC.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from broker.auth.claims import json_object
from broker.errors import ConfigError

try:
    import jwt
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
except ImportError:  # pragma: no cover
    raise ConfigError("authentication of type jwt needs the package PyJWT: install rookery[jwt]") from None

# The length of a secret is checked here, when it is read.
warnings.filterwarnings("ignore", category=jwt.InsecureKeyLengthWarning)

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey

HMAC: Final = ("HS256", "HS384", "HS512")
RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

_JWS: Final = jwt.PyJWS(algorithms=[*HMAC, *RSA, *_CURVES.values(), "EdDSA"])

MIN_SECRET_BYTES: Final = 32
MAX_KEY_FILE_BYTES: Final = 64 * 1024
MAX_KEYS: Final = 50
_RSA_BITS: Final = (2048, 8192)


class Key:
    """A key, what it is for, and its name in the set ("" for none).

    `digest` tells it from others; `slow`: a check takes so long that it belongs in a thread.
    """

    __slots__ = ("algorithms", "digest", "key", "key_id", "slow")

    def __init__(self, key: bytes | PublicKey, algorithms: Sequence[str], key_id: str = "") -> None:
        self.key = key
        self.algorithms = frozenset(algorithms)
        self.key_id = key_id
        if isinstance(key, bytes):
            self.digest = hmac.digest(b"rookery", key, "sha256")
            self.slow = False
        else:
            encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            self.digest = hashlib.sha256(encoded).digest()
            # Measured: 50 us for RSA 2048, 110 for 4096, 85 for P-256, 130 for Ed25519, 230 to 520 for others.
            self.slow = not (
                (isinstance(key, rsa.RSAPublicKey) and key.key_size <= 4096)
                or (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1")
                or isinstance(key, ed25519.Ed25519PublicKey)
            )


def secret_key(text: bytes) -> Key:
    """The key of a secret: the bytes of the text, or those behind `base64:`."""
    if text.startswith(b"base64:"):
        try:
            secret = base64.b64decode(text.removeprefix(b"base64:").strip(), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            try:
                secret = base64.b64decode(text.removeprefix(b"base64:").strip(), validate=True)
            except (binascii.Error, ValueError):
                raise ConfigError("secret: what follows base64: is not base64") from None
    else:
        secret = text
    if b"-----BEGIN" in secret or secret.startswith(b"ssh-"):
        raise ConfigError("secret: is a key in PEM or SSH format; use public_key, or everybody could sign tokens")
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(f"secret: has {len(secret)} bytes, at least {MIN_SECRET_BYTES} are needed [RFC 7518, 3.2]")
    return Key(secret, HMAC)


def secret_file(path: Path) -> Key:
    """The key of a file that holds a secret; a line end behind it does not count."""
    return secret_key(_read("secret_file", path).rstrip(b"\r\n"))


def public_key_file(path: Path) -> Key:
    """The key of a PEM file with a public key, or with a certificate."""
    data = _read("public_key", path)
    if b"PRIVATE KEY" in data:
        raise ConfigError(f"public_key = {str(path)!r}: holds a private key, which has no business here")
    try:
        key: object
        if b"BEGIN CERTIFICATE" in data:
            key = x509.load_pem_x509_certificate(data).public_key()
        else:
            key = load_pem_public_key(data)
    except Exception:
        raise ConfigError(f"public_key = {str(path)!r}: holds no public key in PEM format") from None
    try:
        return _public(key)
    except ValueError as error:
        raise ConfigError(f"public_key = {str(path)!r}: {error}") from None


def key_set(data: bytes) -> tuple[list[Key], int]:
    """The usable keys of a JSON web key set and how many others are in it; ValueError if it is none."""
    listed = json_object(data).get("keys")
    if not isinstance(listed, list):
        raise ValueError("no keys in it")
    if len(listed) > MAX_KEYS:
        raise ValueError(f"{len(listed)} keys in it, at most {MAX_KEYS}")
    found: list[Key] = []
    for item in listed:
        key = _of_set(item) if isinstance(item, dict) else None
        if key is not None:
            found.append(key)
    return found, len(listed) - len(found)


def _of_set(item: Mapping[str, object]) -> Key | None:
    """None for what is not for signatures, not public, or not known: sets hold keys for other purposes too.

    Symmetric keys (`oct`) are never taken from a set: who can read it could sign.
    """
    operations = item.get("key_ops", ["verify"])
    if item.get("kty") not in ("RSA", "EC", "OKP") or item.get("use", "sig") != "sig":
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    algorithm = item.get("alg")
    public = {name: value for name, value in item.items() if name in ("kty", "n", "e", "crv", "x", "y")}
    default = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}[str(item["kty"])]
    try:
        key = _public(jwt.PyJWK(public, default if item["kty"] != "EC" else None).key)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if algorithm is not None:
        if algorithm not in key.algorithms:
            return None
        key.algorithms = frozenset((str(algorithm),))
    key_id = item.get("kid", "")
    key.key_id = key_id if isinstance(key_id, str) else ""
    return key


def _public(key: object) -> Key:
    if isinstance(key, rsa.RSAPublicKey):
        if not _RSA_BITS[0] <= key.key_size <= _RSA_BITS[1]:
            raise ValueError(f"an RSA key of {key.key_size} bits; {_RSA_BITS[0]} to {_RSA_BITS[1]} are allowed")
        return Key(key, RSA)
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise ValueError(f"the curve {key.curve.name} has no algorithm")
        return Key(key, (_CURVES[key.curve.name],))
    if isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        return Key(key, ("EdDSA",))
    raise ValueError("a key of a kind that signs no tokens")


def verified(token: str, key: Key, algorithm: str) -> dict[str, object] | None:
    """The claims of a token that was signed with this key by this algorithm, None if it was not.

    Times and other claims are not looked at."""
    if algorithm not in key.algorithms:
        return None
    try:
        signed = _JWS.decode_complete(token, key.key, algorithms=[algorithm])
        return json_object(signed["payload"])
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
        return None


def _read(option: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{option} = {str(path)!r}: {error.strerror or error}") from None
    if len(data) > MAX_KEY_FILE_BYTES:
        raise ConfigError(f"{option} = {str(path)!r}: has more than {MAX_KEY_FILE_BYTES} bytes")
    return data
