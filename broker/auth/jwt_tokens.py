"""JSON web tokens as credentials."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from broker.auth.api import ALLOW, DENIED, IGNORED, NO_ATTRIBUTES, ConnectRequest, Principal, Rule, Verdict
from broker.auth.base import BaseAuthenticator
from broker.auth.claims import attributes_of, expiry_of, json_object, name_of, rules_of, text_of, truth_of
from broker.auth.jwt_keys import Key, public_key_file, secret_file, secret_key, verified
from broker.auth.template import Template, Unresolved, lookup_of
from broker.errors import ConfigError
from broker.log import get_logger
from broker.options.authentication import Jwt

if TYPE_CHECKING:
    from broker.auth.jwks import KeySet

_log = get_logger("authentication")

MAX_TOKEN_BYTES: Final = 32 * 1024
_MAX_HEADER_BYTES: Final = 4096
#: Keys of a set that are tried for a token that does not name its own.
_TRIED: Final = 4
_THREADS: Final = 1

_NO_TOKEN: Final[Mapping[str, object]] = {}


class Unfit(Exception):
    """A token that was signed by the right key and is no good all the same."""


class JwtUsers(BaseAuthenticator):
    """Implements `Authenticator`: who has a token that one of the keys signed is who it says.

    What is no token at all is for others to decide. A token that is one and is wrong in any way is refused, however
    it is wrong. ConfigError for keys and claims that cannot be used.
    """

    def __init__(self, options: Jwt) -> None:
        super().__init__(options.label)
        self._options = options
        self._fixed = _fixed_keys(options)
        self._set: KeySet | None = None
        if options.jwks_url:
            from broker.auth.jwks import KeySet

            self._set = KeySet(self.name, options.jwks_url, options.refresh_s, options.timeout_s, options.ca_certs)
        if not self._fixed and self._set is None:
            raise ConfigError("jwt: one of secret, secret_file, public_key and jwks_url is needed")
        known = {algorithm for key in self._fixed for algorithm in key.algorithms}
        if options.algorithms and self._set is None and not known & set(options.algorithms):
            raise ConfigError(f"jwt: algorithms: the key is for {', '.join(sorted(known))}")
        self._claims = [_claim(text) for text in options.claims]
        self._limiter = trio.CapacityLimiter(_THREADS)

    async def authenticate(self, request: ConnectRequest) -> Verdict:
        """See `Authenticator`."""
        token = _given(request, self._options.source)
        header = header_of(token)
        if not header:
            return IGNORED
        try:
            if len(token) > MAX_TOKEN_BYTES:
                raise Unfit(f"more than {MAX_TOKEN_BYTES} bytes")
            return self._verdict(request, *await self._verified(token, header))
        except (Unfit, Unresolved, ValueError) as error:
            _log.info("authentication.token_refused", authenticator=self.name, reason=f"{error!s:.200}")
            return DENIED

    async def still_valid(self, principal: Principal) -> bool:
        """See `Authenticator`: the key is still one of those that count, and the token is not over."""
        if principal.expires_at_s is not None and principal.expires_at_s <= time.time():
            return False
        return any(key.digest == principal.credential for key in self._keys())

    def files(self) -> Sequence[Path]:
        """See `Authenticator`."""
        return [path for path in (self._options.secret_file, self._options.public_key) if path is not None]

    def reload(self) -> None:
        """See `Authenticator`."""
        self._fixed = _fixed_keys(self._options)

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `Authenticator`."""
        if self._set is None:
            await super().serve(task_status=task_status)
        else:
            await self._set.serve(task_status=task_status)

    def _keys(self) -> list[Key]:
        return self._fixed if self._set is None else [*self._fixed, *self._set.keys]

    async def _verified(self, token: str, header: Mapping[str, object]) -> tuple[Mapping[str, object], Key]:
        """The claims of a token and the key that signed it."""
        algorithm = header["alg"]
        if "crit" in header or "b64" in header:
            raise Unfit("its header asks for an extension")
        allowed = self._options.algorithms
        if not isinstance(algorithm, str) or (allowed and algorithm not in allowed):
            raise Unfit(f"algorithm {algorithm!r:.20}")
        key_id = header.get("kid", "")
        found = await self._try(token, algorithm, key_id)
        if found is None and self._set is not None and not algorithm.startswith("HS"):
            if key_id and any(key.key_id == key_id for key in self._set.keys):
                raise Unfit("signature")
            await self._set.early()
            found = await self._try(token, algorithm, key_id)
        if found is None:
            raise Unfit(f"signature, or no key {key_id!r:.60} for {algorithm:.20}")
        return found

    async def _try(self, token: str, algorithm: str, key_id: object) -> tuple[Mapping[str, object], Key] | None:
        # A key from a file has no name, whatever the token calls it.
        fitting = [
            key
            for key in self._keys()
            if algorithm in key.algorithms and (not key_id or not key.key_id or key.key_id == key_id)
        ]
        for key in fitting[:_TRIED]:
            if key.slow:
                claims = await trio.to_thread.run_sync(verified, token, key, algorithm, limiter=self._limiter)
            else:
                claims = verified(token, key, algorithm)
            if claims is not None:
                return claims, key
        return None

    def _verdict(self, request: ConnectRequest, claims: Mapping[str, object], key: Key) -> Verdict:
        options = self._options
        ends_s = self._check_times(claims)
        if options.issuer and claims.get("iss") != options.issuer:
            raise Unfit("iss")
        if options.audience:
            audience = claims.get("aud")
            if options.audience not in (audience if isinstance(audience, list) else [audience]):
                raise Unfit("aud")
        lookup = lookup_of(request)
        for path, template in self._claims:
            if not _has(claims, path, template.render(lookup)):
                raise Unfit(f"claim {'.'.join(path)}")
        if options.username_claim:
            username = name_of(_claim_of(claims, options.username_claim))
        elif request.username:
            username = request.username
        else:
            raise Unfit("no user name in CONNECT")
        rules: list[Rule] | None = None
        if options.acl_claim and (acl := _claim_of(claims, options.acl_claim)) is not None:
            rules = rules_of(acl)
        attributes = NO_ATTRIBUTES
        if options.attributes_claim:
            attributes = attributes_of(_claim_of(claims, options.attributes_claim))
        return Verdict(
            ALLOW,
            username,
            superuser=bool(options.superuser_claim) and truth_of(_claim_of(claims, options.superuser_claim)),
            attributes=attributes,
            rules=rules,
            expires_at_s=ends_s,
            credential=key.digest,
        )

    def _check_times(self, claims: Mapping[str, object]) -> float | None:
        """When the token ends, leeway included."""
        now = time.time()
        leeway = self._options.leeway_s
        times: dict[str, float] = {}
        for name in ("exp", "nbf", "iat"):
            value = claims.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
                raise Unfit(f"{name} is no time")
            times[name] = float(value)
        if self._options.require_expiry and "exp" not in times:
            raise Unfit("no exp")
        if "exp" in times and times["exp"] + leeway <= now:
            raise Unfit("it is over")
        if times.get("nbf", now) > now + leeway or times.get("iat", now) > now + leeway:
            raise Unfit("its time has not come")
        return expiry_of(times["exp"] + leeway, now) if "exp" in times else None


def header_of(token: str) -> Mapping[str, object]:
    """The header of something that is a token or means to be one; empty for anything else."""
    first, dot, _ = token.partition(".")
    if not dot or not 0 < len(first) <= _MAX_HEADER_BYTES:
        return _NO_TOKEN
    try:
        header = json_object(base64.b64decode(first + "=" * (-len(first) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        return _NO_TOKEN
    return header if "alg" in header else _NO_TOKEN


def _given(request: ConnectRequest, source: str) -> str:
    if source == "username":
        return request.username or ""
    try:
        return (request.password or b"").decode("ascii")
    except UnicodeDecodeError:
        return ""


def _fixed_keys(options: Jwt) -> list[Key]:
    keys: list[Key] = []
    if options.secret:
        keys.append(secret_key(options.secret.encode()))
    if options.secret_file is not None:
        keys.append(secret_file(options.secret_file))
    if options.public_key is not None:
        keys.append(public_key_file(options.public_key))
    return keys


def _claim(text: str) -> tuple[list[str], Template]:
    name, _, value = text.partition("=")
    try:
        return name.split("."), Template(value)
    except ValueError as error:
        raise ConfigError(f"jwt: claims: {name}: {error}") from None


def _claim_of(claims: Mapping[str, object], name: str) -> object:
    """A claim by its name, or by a path with dots: a name with dots in it comes first."""
    if name in claims:
        return claims[name]
    value: object = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _has(claims: Mapping[str, object], path: Sequence[str], wanted: str) -> bool:
    value = _claim_of(claims, ".".join(path))
    values = value if isinstance(value, list) else [value]
    return any(isinstance(item, (str, int, float)) and text_of(item) == wanted for item in values)
