"""The documents of `cluster.registry` for commands: synchronous, on a connection of their own.

As nodes do, they leave alone what has another layout than that of this version, or is on its way to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from broker.errors import ClusterError
from cluster import layout
from cluster.keys import DOCUMENTS, DOCUMENTS_VERSION, Keys
from cluster.redis.address import Deployment
from cluster.redis.direct import Direct
from cluster.redis.registry import PORTION, change_command, decoded, encoded


class Documents:
    """`document`, `documents`, `change` and `remove` of the `Registry`, and `version`; all raise ClusterError."""

    def __init__(self, address: Deployment, namespace: str) -> None:
        self._store = Direct(address)
        self._prefix = Keys(namespace, 1).members

    def version(self) -> int:
        """See `Registry`."""
        return int(cast("bytes | None", self._ask("GET", self._prefix + DOCUMENTS_VERSION)) or 0)

    def document(self, kind: str, name: str) -> bytes | None:
        """See `Registry`."""
        self._look()
        return cast("bytes | None", self._ask("HGET", self._key(kind), encoded(name)))

    def documents(self, kind: str) -> dict[str, bytes]:
        """See `Registry`."""
        self._look()
        found: dict[str, bytes] = {}
        cursor = 0
        while True:
            reply = self._ask("HSCAN", self._key(kind), cursor, "COUNT", PORTION)
            cursor, fields = cast("tuple[int, dict[bytes, bytes]]", reply)
            found.update((decoded(name), value) for name, value in fields.items())
            if not cursor:
                return found

    def change(self, kind: str, changes: Mapping[str, bytes | None]) -> int:
        """See `Registry`."""
        self._look()
        function, arguments = change_command(kind, changes)
        return cast(int, self._store.function(self._prefix, function, *arguments))

    def remove(self, kind: str, documents: Mapping[str, bytes]) -> int:
        """See `Registry`."""
        self._look()
        pairs = [part for name, value in documents.items() for part in (encoded(name), b"=" + value)]
        return cast(int, self._store.function(self._prefix, "rk1_remove_documents", kind, *pairs))

    def close(self) -> None:
        """Ends the connection. Idempotent."""
        self._store.close()

    def _look(self) -> None:
        found = cast("bytes | None", self._ask("HGET", self._prefix + b"meta", "layout"))
        if found is not None and found != b"%d" % layout.LAYOUT:
            raise ClusterError(layout.refusal(found.decode("utf-8", "replace")))

    def _key(self, kind: str) -> bytes:
        return self._prefix + DOCUMENTS + kind.encode()

    def _ask(self, *command: object) -> object:
        return self._store.ask(self._prefix, *command)
