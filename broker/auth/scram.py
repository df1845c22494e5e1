"""SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802, RFC 7677), the server's side: verifiers and the exchange; no I/O.

Flow in MQTT 5: CONNECT carries client-first, AUTH 0x18 server-first, AUTH 0x18 client-final, CONNACK server-final.
A re-authentication runs the same from AUTH 0x19 to AUTH 0x00. Channel binding is not offered.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from broker.auth.api import BackendError, ConnectRequest, Step, Verdict
from broker.errors import PeerError
from broker.log import get_logger

MIN_ITERATIONS: Final = 4096  # RFC 7677 section 4
DEFAULT_ITERATIONS: Final = 10_000
MAX_ITERATIONS: Final = 10_000_000  # a typing error must not cost minutes of a core per login
MAX_MESSAGE_BYTES: Final = 4096
MAX_SECRET_BYTES: Final = 1024  # SASLprep looks at every character of names and passwords that strangers send
SALT_BYTES: Final = 16
MAX_SALT_BYTES: Final = 1024  # it goes to clients in a packet

_NONCE = re.compile(r"[\x21-\x2b\x2d-\x7e]+")
_EXTENSION = re.compile(r"[A-Za-z]=[^,\0]+")
_BAD_ESCAPE = re.compile(r"=(?!2C|3D)")
_ITERATIONS = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


_log = get_logger("authentication")


class Mechanism:
    """One of the family: the Authentication Method and its hash function."""

    __slots__ = ("key_bytes", "method", "name")

    def __init__(self, method: str, name: str) -> None:
        self.method = method
        self.name = name
        self.key_bytes = hashlib.new(name).digest_size

    def hmac(self, key: bytes, message: bytes) -> bytes:
        return hmac.digest(key, message, self.name)

    def hash(self, data: bytes) -> bytes:
        return hashlib.new(self.name, data).digest()

    def salted(self, password: bytes, salt: bytes, iterations: int) -> bytes:
        """PBKDF2: the expensive part."""
        return hashlib.pbkdf2_hmac(self.name, password, salt, iterations, self.key_bytes)

    def stored_key(self, salted: bytes) -> bytes:
        return self.hash(self.hmac(salted, b"Client Key"))


SHA_256: Final = Mechanism("SCRAM-SHA-256", "sha256")
SHA_512: Final = Mechanism("SCRAM-SHA-512", "sha512")
MECHANISMS: Final = {each.method: each for each in (SHA_512, SHA_256)}


class Verifier:
    """What the server keeps of a password. A decoy stands for a user that does not exist and verifies nothing."""

    __slots__ = ("decoy", "iterations", "mechanism", "salt", "server_key", "stored_key")

    def __init__(
        self,
        mechanism: Mechanism,
        iterations: int,
        salt: bytes,
        stored_key: bytes,
        server_key: bytes,
        *,
        decoy: bool = False,
    ) -> None:
        self.mechanism = mechanism
        self.iterations = iterations
        self.salt = salt
        self.stored_key = stored_key
        self.server_key = server_key
        self.decoy = decoy

    def __str__(self) -> str:
        keys = f"{_b64(self.stored_key)}:{_b64(self.server_key)}"
        return f"{self.mechanism.method}${self.iterations}:{_b64(self.salt)}${keys}"


class Verifiers(Protocol):
    """Where verifiers are kept."""

    async def verifier(self, request: ConnectRequest, username: str, mechanism: Mechanism) -> tuple[Verifier, Verdict]:
        """The verifier of a user (name after SASLprep), and the verdict for who knows its password.

        After the same work a decoy (with any verdict) if there is none. Raises BackendError."""
        ...


def saslprep(text: str) -> str:
    """Return the one spelling of a user name or password (RFC 4013); ValueError if it is empty or has a forbidden
    character. Code points that Unicode 3.2 did not know are forbidden, as the RFC wants for stored strings."""
    if text.isascii() and text.isprintable():
        prepared = text
    else:
        mapped = "".join(" " if stringprep.in_table_c12(c) else c for c in text if not stringprep.in_table_b1(c))
        prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
        for char in prepared:
            if _prohibited(char):
                raise ValueError(f"character U+{ord(char):04X} is not allowed")
        # RFC 3454 section 6: text with right-to-left letters has no left-to-right ones and has the former at both ends.
        if any(map(stringprep.in_table_d1, prepared)) and (
            any(map(stringprep.in_table_d2, prepared))
            or not (stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1]))
        ):
            raise ValueError("left-to-right and right-to-left text are mixed")
    if not prepared:
        raise ValueError("it is empty")
    return prepared


def _prohibited(char: str) -> bool:
    return (
        stringprep.in_table_a1(char)
        or stringprep.in_table_c12(char)
        or stringprep.in_table_c21_c22(char)
        or stringprep.in_table_c3(char)
        or stringprep.in_table_c4(char)
        or stringprep.in_table_c5(char)
        or stringprep.in_table_c6(char)
        or stringprep.in_table_c7(char)
        or stringprep.in_table_c8(char)
        or stringprep.in_table_c9(char)
    )


def make_verifier(
    password: str, iterations: int = DEFAULT_ITERATIONS, salt: bytes | None = None, mechanism: Mechanism = SHA_256
) -> str:
    """Return `METHOD$<iterations>:<salt>$<stored key>:<server key>` for a user file (salt: 16 random bytes).

    ValueError for a password that SASLprep refuses or that is too long, and for iterations out of bounds.
    """
    if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
        raise ValueError(f"iterations must be {MIN_ITERATIONS} to {MAX_ITERATIONS}, not {iterations}")
    if salt is None:
        salt = secrets.token_bytes(SALT_BYTES)
    if not salt:
        raise ValueError("the salt is empty")
    if len(password.encode()) > MAX_SECRET_BYTES:
        raise ValueError(f"the password has more than {MAX_SECRET_BYTES} bytes")
    salted = mechanism.salted(saslprep(password).encode(), salt, iterations)
    server_key = mechanism.hmac(salted, b"Server Key")
    return str(Verifier(mechanism, iterations, salt, mechanism.stored_key(salted), server_key))


def parse_verifier(text: str) -> Verifier:
    """Read what `make_verifier` wrote; ValueError says what is wrong without repeating any of it."""
    parts = text.split("$")
    mechanism = MECHANISMS.get(parts[0])
    if len(parts) != 3 or mechanism is None:
        raise ValueError(f"no verifier of {' or '.join(MECHANISMS)}")
    count, colon, salt_text = parts[1].partition(":")
    stored_text, second_colon, server_text = parts[2].partition(":")
    if not colon or not second_colon:
        raise ValueError(f"the {mechanism.method} verifier is not <iterations>:<salt>$<stored key>:<server key>")
    iterations = int(count) if _ITERATIONS.fullmatch(count) else 0
    if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
        raise ValueError(f"iterations must be {MIN_ITERATIONS} to {MAX_ITERATIONS}")
    salt = _unb64(salt_text)
    stored_key = _unb64(stored_text)
    server_key = _unb64(server_text)
    if not salt or len(salt) > MAX_SALT_BYTES:
        raise ValueError(f"the salt is not base64, empty, or longer than {MAX_SALT_BYTES} bytes")
    size = mechanism.key_bytes
    if stored_key is None or server_key is None or len(stored_key) != size or len(server_key) != size:
        raise ValueError(f"a key is not the base64 of {size} bytes")
    return Verifier(mechanism, iterations, salt, stored_key, server_key)


def prepared_password(password: bytes) -> bytes | None:
    """The password as it is hashed; None if it can be nobody's."""
    if len(password) > MAX_SECRET_BYTES:
        return None
    try:
        return saslprep(password.decode()).encode()
    except ValueError:  # a UnicodeDecodeError is one
        return None


def make_decoy(
    secret: bytes, username: str, models: Sequence[tuple[int, int]], mechanism: Mechanism = SHA_256
) -> Verifier:
    """Return a verifier for a user that does not exist: always the same for one name, secret and set of users.

    `models` are the iterations and the bytes of salt of real users; the decoy has those of one of them, so that neither
    they nor the time of a check tell.
    """
    name = username.encode("utf-8", "replace")
    iterations, salt_bytes = DEFAULT_ITERATIONS, SALT_BYTES
    if models:
        iterations, salt_bytes = models[int.from_bytes(_hmac(secret, b"model\0" + name)[:8], "big") % len(models)]
    salt_of = b"" if mechanism is SHA_256 else mechanism.method.encode() + b"\0"
    blocks = [_hmac(secret, b"salt %d\0" % number + salt_of + name) for number in range(-(-salt_bytes // 32))]
    key = mechanism.hmac(secret, b"key\0" + name)
    return Verifier(mechanism, iterations, b"".join(blocks)[:salt_bytes], key, key, decoy=True)


def random_nonce() -> str:
    """The server's part of a nonce: 18 random bytes in characters that SCRAM allows."""
    return _b64(secrets.token_bytes(18))


class Scram:
    """An Authentication Method over one or several sets of verifiers: the first that knows the user counts."""

    __slots__ = ("_nonce", "mechanism", "sources")

    def __init__(
        self, mechanism: Mechanism, sources: Sequence[Verifiers], nonce: Callable[[], str] = random_nonce
    ) -> None:
        self.mechanism = mechanism
        self.sources = tuple(sources)
        self._nonce = nonce

    def begin(self, request: ConnectRequest) -> ScramExchange:
        """Start an exchange; the user it names must be that of `request` if it has one."""
        return ScramExchange(self.mechanism, self.sources, self._nonce(), request)


_FIRST, _FINAL, _CLOSED = range(3)


class ScramExchange:
    """One exchange: takes client-first, then client-final. Raises PeerError 0x87, or 0x88 if nobody can tell."""

    __slots__ = ("_final_start", "_mechanism", "_nonce", "_opening", "_request", "_sources", "_state", "_user")

    def __init__(self, mechanism: Mechanism, sources: Sequence[Verifiers], nonce: str, request: ConnectRequest) -> None:
        self._mechanism = mechanism
        self._sources = sources
        self._nonce = nonce
        self._request = request
        self._state = _FIRST
        self._user: tuple[Verifier, Verdict] | None = None
        self._opening = ""  # client-first-message-bare "," server-first-message
        self._final_start = ""  # what client-final must begin with: channel binding and the whole nonce

    async def step(self, data: bytes) -> Step:
        """Take the client's next message; one out of turn fails like a wrong one."""
        state, self._state = self._state, _CLOSED  # whatever raises below leaves the exchange closed
        if len(data) > MAX_MESSAGE_BYTES:
            raise _refusal(f"a message of {len(data)} bytes, the limit is {MAX_MESSAGE_BYTES}")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise _refusal("a message is not UTF-8") from None
        if state == _FIRST:
            answer = await self._client_first(text)
            self._state = _FINAL
            return Step(answer.encode())
        if state == _FINAL and self._user is not None:
            verifier, verdict = self._user
            return Step(self._client_final(text, verifier).encode(), verdict)
        raise _refusal("the exchange is over")

    async def _client_first(self, text: str) -> str:
        parts = text.split(",")
        if parts[0].startswith("p="):
            raise _refusal("channel binding is not offered")
        if len(parts) < 4 or parts[0] not in ("n", "y"):
            raise _refusal("client-first is not n,,n=<user>,r=<nonce>")
        authzid, name, nonce = parts[1:4]
        if name.startswith("m="):
            raise _refusal("a mandatory extension that is not known here")
        if not name.startswith("n=") or not nonce.startswith("r=") or not _NONCE.fullmatch(nonce, 2):
            raise _refusal("client-first has no user name or nonce")
        _check_extensions(parts[4:])
        username = _username(name[2:])
        if authzid and (not authzid.startswith("a=") or _username(authzid[2:]) != username):
            raise _refusal("nobody may act as somebody else")
        expected = self._request.username
        if expected is not None and not _same_user(expected, username):
            raise _refusal("the user of the exchange is not the User Name of the connection")
        self._user = verifier, _ = await self._found(username)
        combined = nonce + self._nonce
        server_first = f"{combined},s={_b64(verifier.salt)},i={verifier.iterations}"
        self._opening = f"{','.join(parts[2:])},{server_first}"
        self._final_start = f"c={_b64(f'{parts[0]},{authzid},'.encode())},{combined}"
        return server_first

    async def _found(self, username: str) -> tuple[Verifier, Verdict]:
        """Asks all, whoever knows the user: the same work, and the time does not tell where it is."""
        try:
            found = [await each.verifier(self._request, username, self._mechanism) for each in self._sources]
        except BackendError as error:
            _log.warning("authentication.unavailable", method=self._mechanism.method, error=str(error))
            raise PeerError(0x88, "authentication is not possible now") from None
        return next((each for each in found if not each[0].decoy), found[0])

    def _client_final(self, text: str, verifier: Verifier) -> str:
        without_proof, found, proof_text = text.rpartition(",p=")
        proof = _unb64(proof_text)
        if not found or proof is None or len(proof) != self._mechanism.key_bytes:
            raise _refusal("client-final has no proof")
        # Exactly these two: a changed channel binding flag or a nonce of another exchange ends here.
        attributes = without_proof.split(",")
        if ",".join(attributes[:2]) != self._final_start:
            raise _refusal("client-final does not belong to this exchange")
        _check_extensions(attributes[2:])
        auth_message = f"{self._opening},{without_proof}".encode()
        signature = verifier.mechanism.hmac(verifier.stored_key, auth_message)
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        matches = hmac.compare_digest(verifier.mechanism.hash(client_key), verifier.stored_key)
        if not matches or verifier.decoy:
            raise _refusal("bad user name or password")
        return f"v={_b64(verifier.mechanism.hmac(verifier.server_key, auth_message))}"


def _refusal(text: str) -> PeerError:
    return PeerError(0x87, f"SCRAM: {text}")


def _check_extensions(attributes: Sequence[str]) -> None:
    """Optional extensions are ignored, but they must look like some."""
    for attribute in attributes:
        if not _EXTENSION.fullmatch(attribute):
            raise _refusal("an extension is malformed")


def _username(saslname: str) -> str:
    if _BAD_ESCAPE.search(saslname):
        raise _refusal("the user name has a wrong escape")
    try:
        return saslprep(saslname.replace("=2C", ",").replace("=3D", "="))
    except ValueError:
        raise _refusal("the user name is not allowed by SASLprep") from None


def _same_user(expected: str, username: str) -> bool:
    try:
        return len(expected) <= MAX_SECRET_BYTES and saslprep(expected) == username
    except ValueError:
        return False


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: str) -> bytes | None:
    """Decode base64 in its one canonical spelling, else None."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # binascii.Error, and text that is not ASCII
        return None
    return data if _b64(data) == text else None
