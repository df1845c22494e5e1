"""API keys as the nodes of a cluster share them: documents of the kind `keys` in the registry."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Final

import msgspec

from broker.admin.api import Scope
from broker.auth.hashes import make_pbkdf2

#: The key that the settings or the first node make.
ADMIN_KEY: Final = "admin"

#: The secret follows the name and an underscore: names have none.
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9.-]{0,63}$"
_NAME: Final = re.compile(NAME_PATTERN.removesuffix("$"))

TOKEN_PREFIX: Final = "rk_"  # noqa: S105
_GENERATED_BYTES: Final = 32
_FAST: Final = "sha256:"

#: Of secrets that people choose.
SHORTEST_SECRET: Final = 8
LONGEST_SECRET: Final = 512


_GENERATED: Final = re.compile(r"[0-9a-f]{64}")


class KeyDocument(msgspec.Struct, kw_only=True):
    """One key. `hash` is `sha256:<hex>` of a secret that looks generated (256 bits: no dictionary has it), or a slow
    hash of one that somebody chose. Times are seconds since the epoch; `expires` None: it does not."""

    scope: Scope
    hash: str
    created: float = 0.0
    expires: float | None = None
    version: int = 1

    @classmethod
    def read(cls, raw: bytes) -> KeyDocument:
        """ValueError for what is none; keys of later versions are passed over."""
        try:
            return msgspec.json.decode(raw, type=cls)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(str(error)) from None

    def write(self) -> bytes:
        """The document."""
        return msgspec.json.encode(self)

    @property
    def generated(self) -> bool:
        """Whether the secret was generated: checking it takes no time."""
        return self.hash.startswith(_FAST)

    def is_over(self, now_s: float) -> bool:
        """Whether it expired."""
        return self.expires is not None and self.expires <= now_s

    def is_generated_secret(self, secret: str) -> bool:
        """Whether this is the secret, of a generated one."""
        return self.generated and hmac.compare_digest(self.hash.encode(), fast_hash(secret).encode())

    def lasts(self) -> bool:
        """Whether it can be relied on as the way in for administrators."""
        return self.scope == "admin" and self.expires is None


def valid_name(name: str) -> bool:
    """Whether a key may be called so."""
    return _NAME.fullmatch(name) is not None


def new_secret() -> str:
    """64 hexadecimal digits."""
    return secrets.token_hex(_GENERATED_BYTES)


def looks_generated(secret: str) -> bool:
    """Whether it is one of `new_secret`, or of `openssl rand -hex 32`."""
    return _GENERATED.fullmatch(secret) is not None


def stored_hash(secret: str) -> str:
    """What is stored of a secret; takes a tenth of a second for one that somebody chose. ValueError: it is unusable."""
    return fast_hash(secret) if looks_generated(secret) else make_pbkdf2(secret)


def fast_hash(secret: str) -> str:
    """Of a secret with 256 bits of chance."""
    return _FAST + hashlib.sha256(secret.encode()).hexdigest()


def token_of(name: str, secret: str) -> str:
    """As clients send it: `Authorization: Bearer rk_<name>_<secret>`."""
    return f"{TOKEN_PREFIX}{name}_{secret}"


def read_token(token: str) -> tuple[str, str] | None:
    """Name and secret of such a token."""
    name, found, secret = token.removeprefix(TOKEN_PREFIX).partition("_")
    return (name, secret) if token.startswith(TOKEN_PREFIX) and found and secret else None
