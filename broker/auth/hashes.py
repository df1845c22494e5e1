"""Password hashes of every kind that password files and databases have: reading, checking and making them; no I/O.

`verify` takes the time that the kind demands (milliseconds): call it by `broker.auth.checking.check`. Hashes come from
files and databases, so the work that one may demand is bounded: a typing error must not cost minutes of a core.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from typing import Final

from broker.auth import scram
from broker.errors import ConfigError

MAX_PASSWORD_BYTES: Final = 65_535  # what CONNECT can carry
MAX_HASH_CHARACTERS: Final = 1024
MAX_ITERATIONS: Final = 10_000_000
MAX_BCRYPT_COST: Final = 15
#: Argon2: KiB, and KiB times passes.
MAX_ARGON2_MEMORY: Final = 262_144
MAX_ARGON2_WORK: Final = 4 * MAX_ARGON2_MEMORY

#: OWASP's figure for PBKDF2-HMAC-SHA512.
DEFAULT_ITERATIONS: Final = 210_000
_MOSQUITTO_SALT_BYTES: Final = 12
_ARGON2_KIB, _ARGON2_PASSES, _ARGON2_LANES = 19_456, 2, 1

_KEY = secrets.token_bytes(32)

_NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_ARGON2 = re.compile(
    r"\$argon2(id|i|d)\$(?:v=(\d{1,3})\$)?m=(\d{1,9}),t=(\d{1,6}),p=(\d{1,3})\$([^$]+)\$([^$]+)", re.ASCII
)
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}", re.ASCII)
_LDAP = re.compile(r"\{(S?SHA(?:256|384|512)?|S?MD5)\}(.+)", re.ASCII)

_DIGESTS = ("md5", "sha1", "sha256", "sha512")

#: What is computed of a password (bytes that `prepare` let pass) and compared.
_Derive = Callable[[bytes], bytes]
#: The password as it is hashed, None if it can be no password of this kind.
_Prepare = Callable[[bytes], "bytes | None"]


class PasswordHash:
    """One hash. `kind` is the same for hashes that take the same work; `credential` tells hashes of one user apart."""

    __slots__ = ("_derive", "_expected", "_is_decoy", "_prepare", "credential", "kind")

    def __init__(
        self,
        kind: str,
        credential: bytes,
        expected: bytes,
        derive: _Derive,
        prepare: _Prepare | None = None,
        is_decoy: bool = False,
    ) -> None:
        self.kind = kind
        self.credential = credential
        self._expected = expected
        self._derive = derive
        self._prepare = prepare
        self._is_decoy = is_decoy

    def verify(self, password: bytes) -> bool:
        """Whether this is the password; the same work whatever the answer. An empty one never is."""
        usable = password if 0 < len(password) <= MAX_PASSWORD_BYTES else None
        if usable is not None and self._prepare is not None:
            usable = self._prepare(usable)
        derived = self._derive(b"x" if usable is None else usable)
        return hmac.compare_digest(derived, self._expected) and usable is not None and not self._is_decoy

    def decoy(self) -> PasswordHash:
        """For a user that does not exist: takes the same work and verifies nothing."""
        return PasswordHash(self.kind, b"", self._expected, self._derive, self._prepare, is_decoy=True)


def credential_of(*parts: bytes) -> bytes:
    """A digest of what was checked against, comparable within this process only."""
    digest = hashlib.blake2b(key=_KEY, digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


def parse_hash(
    text: str, algorithm: str = "auto", salt: bytes = b"", place: str = "prefix", iterations: int = 0
) -> PasswordHash:
    """Read a hash; ValueError says what is wrong without repeating any of it.

    `algorithm` auto reads kinds that say what they are; others are those of databases whose configuration tells it:
    plain, md5, sha1, sha256 and sha512 (hex), bcrypt, pbkdf2_sha256 and pbkdf2_sha512 (hex or base64, with `salt` and
    `iterations`; or a form that says both), argon2. `place` is where the salt of a plain digest stands: prefix, suffix,
    none. ConfigError if a library is missing that the kind needs.
    """
    if len(text) > MAX_HASH_CHARACTERS or len(salt) > MAX_HASH_CHARACTERS:
        raise ValueError(f"the password hash has more than {MAX_HASH_CHARACTERS} characters")
    credential = credential_of(text.encode("utf-8", "surrogateescape"), salt)
    if algorithm == "plain":
        if not text:
            raise ValueError("the password is empty")
        return _plain(text.encode(), credential)
    if algorithm in _DIGESTS:
        return _hex_digest(algorithm, text, salt, place, credential)
    if algorithm.startswith("pbkdf2_") and not text.startswith(("$", "pbkdf2_", "PBKDF2$")):
        return _pbkdf2(algorithm.removeprefix("pbkdf2_"), iterations, salt, _hex_or_base64(text), credential)
    found = _parse_named(text, credential)
    if algorithm not in ("auto", found.kind.partition(":")[0]):
        raise ValueError(f"the password hash is not of the kind {algorithm}")
    return found


def _parse_named(text: str, credential: bytes) -> PasswordHash:
    """A hash that says itself what it is."""
    if text.startswith("$argon2"):
        return _argon2(text, credential)
    if text.startswith(("$2a$", "$2b$", "$2y$")):
        return _bcrypt(text, credential)
    if text.startswith("SCRAM-"):
        return of_verifier(scram.parse_verifier(text))
    if text.startswith("{"):
        return _ldap(text, credential)
    parts = text.split("$")
    match parts:
        case ["", "7", count, salt, key]:  # mosquitto_passwd
            return _pbkdf2("sha512", _number(count), _base64(salt), _exactly(64, _base64(key)), credential)
        case ["", "6", salt, key]:  # mosquitto_passwd before 2.0
            return _digest("sha512", _base64(salt), "suffix", _base64(key), credential)
        case ["pbkdf2_sha256" | "pbkdf2_sha512" as name, count, salt, key]:  # Django
            return _pbkdf2(name.removeprefix("pbkdf2_"), _number(count), salt.encode(), _base64(key), credential)
        case ["", "pbkdf2-sha256" | "pbkdf2-sha512" as name, count, salt, key]:  # passlib
            dotless = (_base64(part.replace(".", "+")) for part in (salt, key))
            return _pbkdf2(name.removeprefix("pbkdf2-"), _number(count), next(dotless), next(dotless), credential)
        case ["PBKDF2", "sha256" | "sha512" as name, count, salt, key]:  # mosquitto-go-auth
            return _pbkdf2(name, _number(count), _base64(salt), _base64(key), credential)
    raise ValueError("the password hash is of no known kind")


def of_verifier(verifier: scram.Verifier) -> PasswordHash:
    """A SCRAM verifier as a password hash."""
    mechanism = verifier.mechanism

    def derive(password: bytes) -> bytes:
        return mechanism.stored_key(mechanism.salted(password, verifier.salt, verifier.iterations))

    kind = f"{mechanism.method}:{verifier.iterations}:{len(verifier.salt)}"
    return PasswordHash(
        kind, credential_of(str(verifier).encode()), verifier.stored_key, derive, scram.prepared_password
    )


def default_decoy(algorithm: str = "auto") -> PasswordHash:
    """For a store of which no user was seen yet."""
    if algorithm == "plain":
        return _plain(_KEY, b"").decoy()
    if algorithm in _DIGESTS:
        return _digest(algorithm, b"salt", "prefix", bytes(hashlib.new(algorithm).digest_size), b"").decoy()
    if algorithm == "bcrypt":
        return _bcrypt("$2b$10$" + "." * 53, b"").decoy()
    if algorithm == "argon2":
        return _argon2_of("id", 19, _ARGON2_KIB, _ARGON2_PASSES, _ARGON2_LANES, bytes(16), bytes(32), b"").decoy()
    digest = "sha256" if algorithm == "pbkdf2_sha256" else "sha512"
    return _pbkdf2(digest, DEFAULT_ITERATIONS, bytes(16), bytes(64), b"").decoy()


def make_pbkdf2(password: str, iterations: int = DEFAULT_ITERATIONS) -> str:
    """`$7$iterations$salt$hash`, which every Mosquitto since 2.0 reads; ValueError for an unusable password."""
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise ValueError(f"iterations must be 1 to {MAX_ITERATIONS}, not {iterations}")
    salt = secrets.token_bytes(_MOSQUITTO_SALT_BYTES)
    key = hashlib.pbkdf2_hmac("sha512", _usable(password), salt, iterations)
    return f"$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


def make_argon2id(password: str) -> str:
    """`$argon2id$...`, which Mosquitto reads since 2.1; ValueError, or ConfigError without the library."""
    salt = secrets.token_bytes(16)
    made = _argon2_of("id", 19, _ARGON2_KIB, _ARGON2_PASSES, _ARGON2_LANES, salt, bytes(32), b"")
    key = made._derive(_usable(password))
    texts = (base64.b64encode(part).decode().rstrip("=") for part in (salt, key))
    return f"$argon2id$v=19$m={_ARGON2_KIB},t={_ARGON2_PASSES},p={_ARGON2_LANES}${next(texts)}${next(texts)}"


def _usable(password: str) -> bytes:
    encoded = password.encode()
    if not encoded or len(encoded) > MAX_PASSWORD_BYTES:
        raise ValueError("the password is empty" if not encoded else f"it has more than {MAX_PASSWORD_BYTES} bytes")
    return encoded


def _plain(password: bytes, credential: bytes) -> PasswordHash:
    def derive(given: bytes) -> bytes:  # digests, so that not even the length can be measured
        return hmac.digest(_KEY, given, "sha256")

    return PasswordHash("plain", credential, derive(password), derive)


def _hex_digest(name: str, text: str, salt: bytes, place: str, credential: bytes) -> PasswordHash:
    try:
        expected = bytes.fromhex(text)
    except ValueError:
        raise ValueError(f"the password hash is not the hex of a {name} digest") from None
    return _digest(name, salt, place, expected, credential)


def _digest(name: str, salt: bytes, place: str, expected: bytes, credential: bytes) -> PasswordHash:
    size = hashlib.new(name, usedforsecurity=False).digest_size
    before, after = {"prefix": (salt, b""), "suffix": (b"", salt), "none": (b"", b"")}[place]

    def derive(password: bytes) -> bytes:
        return hashlib.new(name, before + password + after, usedforsecurity=False).digest()

    return PasswordHash(name, credential, _exactly(size, expected), derive)


def _ldap(text: str, credential: bytes) -> PasswordHash:
    found = _LDAP.fullmatch(text)
    if found is None:
        raise ValueError("the password hash is of no known kind")
    salted = found[1].startswith("S") and found[1] not in ("SHA", "SHA256", "SHA384", "SHA512")
    name = found[1].removeprefix("S" if salted else "").lower()
    name = "sha1" if name == "sha" else name
    data = _base64(found[2])
    size = hashlib.new(name, usedforsecurity=False).digest_size
    if not salted and len(data) != size:
        raise ValueError(f"the password hash is not of {size} bytes")
    return _digest(name, data[size:], "suffix", data[:size], credential)


def _pbkdf2(name: str, iterations: int, salt: bytes, expected: bytes, credential: bytes) -> PasswordHash:
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise ValueError(f"iterations must be 1 to {MAX_ITERATIONS}")
    size = len(expected)
    if not salt or not 16 <= size <= 128:
        raise ValueError("the salt is empty" if not salt else "the password hash is not of 16 to 128 bytes")

    def derive(password: bytes) -> bytes:
        return hashlib.pbkdf2_hmac(name, password, salt, iterations, size)

    def prepare(password: bytes) -> bytes | None:
        return None if password.endswith(b"\0") else password  # HMAC fills keys up with NUL: it would be the same

    return PasswordHash(f"pbkdf2_{name}:{iterations}:{size}", credential, expected, derive, prepare)


def _bcrypt(text: str, credential: bytes) -> PasswordHash:
    found = _BCRYPT.fullmatch(text)
    if found is None or not 4 <= int(found[1]) <= MAX_BCRYPT_COST:
        raise ValueError(f"the password hash is no bcrypt hash of cost 04 to {MAX_BCRYPT_COST}")
    try:
        import bcrypt  # here: an extra
    except ImportError:
        raise ConfigError("bcrypt hashes need the extra: pip install 'rookery[bcrypt]'") from None
    expected = b"$2b" + text[3:].encode()

    def derive(password: bytes) -> bytes:
        return bcrypt.hashpw(password[:72], expected)  # bcrypt looks at no more

    def prepare(password: bytes) -> bytes | None:
        return None if b"\0" in password else password  # elsewhere it would end there

    return PasswordHash(f"bcrypt:{found[1]}", credential, expected, derive, prepare)


def _argon2(text: str, credential: bytes) -> PasswordHash:
    found = _ARGON2.fullmatch(text)
    if found is None:
        raise ValueError("the password hash is no argon2 hash")
    variant, version, memory, passes, lanes, salt, key = found.groups()
    numbers = (int(version or "16"), int(memory), int(passes), int(lanes))
    return _argon2_of(variant, *numbers, _base64(salt), _base64(key), credential)


def _argon2_of(
    variant: str, version: int, memory: int, passes: int, lanes: int, salt: bytes, expected: bytes, credential: bytes
) -> PasswordHash:
    if version not in (16, 19) or not 1 <= lanes <= 16 or not 8 * lanes <= memory <= MAX_ARGON2_MEMORY:
        raise ValueError(f"argon2 with parameters that are not accepted (m up to {MAX_ARGON2_MEMORY}, p up to 16)")
    if passes < 1 or passes * memory > MAX_ARGON2_WORK or len(salt) < 8 or not 4 <= len(expected) <= 128:
        raise ValueError(f"argon2 with parameters that are not accepted (m times t up to {MAX_ARGON2_WORK})")
    try:
        from argon2 import low_level  # here: an extra
    except ImportError:
        raise ConfigError("argon2 hashes need the extra: pip install 'rookery[argon2]'") from None
    kind = {"id": low_level.Type.ID, "i": low_level.Type.I, "d": low_level.Type.D}[variant]
    size = len(expected)

    def derive(password: bytes) -> bytes:
        return low_level.hash_secret_raw(password, salt, passes, memory, lanes, size, kind, version)

    return PasswordHash(f"argon2:{variant}:{memory}:{passes}:{lanes}", credential, expected, derive)


def _number(text: str) -> int:
    return int(text) if _NUMBER.fullmatch(text) else 0


def _exactly(size: int, data: bytes) -> bytes:
    if len(data) != size:
        raise ValueError(f"the password hash is not of {size} bytes")
    return data


def _base64(text: str) -> bytes:
    """Base64 with or without its padding, which argon2 and passlib leave away."""
    try:
        return binascii.a2b_base64(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), strict_mode=True)
    except ValueError:  # binascii.Error, and text that is not ASCII
        raise ValueError("a part of the password hash is not base64") from None


def _hex_or_base64(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return _base64(text)
