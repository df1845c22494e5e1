"""The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), written for the tests alone."""

from __future__ import annotations

import base64
import hashlib
import hmac

METHOD = "SCRAM-SHA-256"
USER = "ada"
PASSWORD = "correct horse"
_SALT = b"0123456789abcdef"
_ITERATIONS = 4096


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def users_file() -> str:
    """Return a users file with `USER`."""
    salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), _SALT, _ITERATIONS)
    stored = hashlib.sha256(_hmac(salted, b"Client Key")).digest()
    server = _hmac(salted, b"Server Key")
    return f"{USER}:{METHOD}${_ITERATIONS}:{_b64(_SALT)}${_b64(stored)}:{_b64(server)}\n"


class Scram:
    """One exchange: `first` is the client's first message, `final` answers the server's, `verify` checks the end."""

    def __init__(self, password: str = PASSWORD, nonce: str = "rOprNGfwEbeRWgbNEkqO") -> None:
        self._password = password
        self._bare = f"n={USER},r={nonce}"
        self._nonce = nonce
        self._server_signature = b""

    @property
    def first(self) -> bytes:
        """The client's first message."""
        return f"n,,{self._bare}".encode()

    def final(self, server_first: bytes) -> bytes:
        """Return the client's final message."""
        fields = dict(part.split("=", 1) for part in server_first.decode().split(","))
        assert fields["r"].startswith(self._nonce)
        assert len(fields["r"]) > len(self._nonce)
        salted = hashlib.pbkdf2_hmac("sha256", self._password.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
        without_proof = f"c=biws,r={fields['r']}"
        message = f"{self._bare},{server_first.decode()},{without_proof}".encode()
        client_key = _hmac(salted, b"Client Key")
        signature = _hmac(hashlib.sha256(client_key).digest(), message)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._server_signature = _hmac(_hmac(salted, b"Server Key"), message)
        return f"{without_proof},p={_b64(proof)}".encode()

    def verify(self, server_final: bytes | None) -> None:
        """The server proves that it knows the user too."""
        assert server_final == f"v={_b64(self._server_signature)}".encode()
