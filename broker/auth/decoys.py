"""What strangers are shown and charged for users that do not exist."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Iterable, Sequence
from typing import Final

from broker.auth.hashes import PasswordHash, default_decoy
from broker.auth.scram import MECHANISMS, Mechanism, Verifier, make_decoy
from broker.errors import ClusterError
from broker.log import get_logger
from cluster.registry import Registry

#: Kind and name of the document.
SECRETS: Final = "secrets"
_NAME: Final = "decoys"

_log = get_logger("authentication")


class DecoySecret:
    """Decides about decoys; all nodes of a cluster have the same, else an unknown name would be the one whose salt
    differs from node to node. Random until `load` has succeeded."""

    __slots__ = ("_registry", "value")

    def __init__(self, registry: Registry | None) -> None:
        self._registry = registry
        self.value = secrets.token_bytes(32)

    async def load(self) -> None:
        """Read it, or make it for everybody. Of two nodes that make one at once the later wins; the other takes that
        over with the next `load`, which follows every change of documents."""
        if self._registry is None:
            return
        try:
            raw = await self._registry.document(SECRETS, _NAME)
            if raw is None:
                made = json.dumps({"secret": self.value.hex()}).encode()
                await self._registry.change(SECRETS, {_NAME: made})
                raw = await self._registry.document(SECRETS, _NAME) or made
            self.value = bytes.fromhex(json.loads(raw)["secret"])
        except (ClusterError, ValueError, KeyError, TypeError) as error:
            _log.warning("authentication.decoy_secret", error=type(error).__name__)


class Models:
    """What the users of a store look like: hashes and verifiers, those that look the same counted, not kept."""

    __slots__ = ("_by_kind", "_default", "_passwords", "_verifiers")

    def __init__(self, algorithm: str = "auto") -> None:
        self._default = default_decoy(algorithm)
        self._by_kind: dict[str, PasswordHash] = {}
        #: One of each user.
        self._passwords: list[PasswordHash] = []
        self._verifiers: dict[str, list[tuple[int, int]]] = {method: [] for method in MECHANISMS}

    def add(self, password: PasswordHash | None, verifiers: Iterable[Verifier]) -> None:
        """One more user."""
        if password is not None:
            self._passwords.append(self._known(password))
        for verifier in verifiers:
            self._verifiers[verifier.mechanism.method].append((verifier.iterations, len(verifier.salt)))

    def seen(self, password: PasswordHash | None, verifiers: Iterable[Verifier]) -> None:
        """A user of a store that cannot be looked through: from now on all look like this one."""
        if password is not None:
            self._passwords[:] = [self._known(password)]
        for verifier in verifiers:
            self._verifiers[verifier.mechanism.method][:] = [(verifier.iterations, len(verifier.salt))]

    def _known(self, password: PasswordHash) -> PasswordHash:
        if len(self._by_kind) > 1000:
            self._by_kind.clear()
        return self._by_kind.setdefault(password.kind, password.decoy())

    def password(self, secret: bytes, username: str) -> PasswordHash:
        """A hash that verifies nothing; always of the same kind for one name."""
        if not self._passwords:
            return self._default
        digest = hmac.digest(secret, b"password\0" + username.encode("utf-8", "replace"), "sha256")
        return self._passwords[int.from_bytes(digest[:8], "big") % len(self._passwords)]

    def verifier(self, secret: bytes, username: str, mechanism: Mechanism) -> Verifier:
        """A verifier that verifies nothing; always the same for one name."""
        models: Sequence[tuple[int, int]] = self._verifiers[mechanism.method]
        return make_decoy(secret, username, models, mechanism)
