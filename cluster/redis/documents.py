"""The documents of `cluster.registry` for commands: synchronous, on a connection of their own."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

import redis
import trio
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker.errors import ClusterError, StoreFull, StoreUnavailable
from cluster.keys import DOCUMENTS, DOCUMENTS_VERSION, Keys
from cluster.redis.address import ClusterAddress, Deployment, SentinelAddress, StoreAddress
from cluster.redis.library import is_missing, source
from cluster.redis.registry import PORTION, change_command, decoded, encoded
from cluster.redis.replies import NOT_HERE, NOT_THIS_SHARD
from cluster.redis.sentinel import find_primary
from cluster.redis.slots import SlotOwner, slot_of

#: How long the store may take to answer.
ANSWER_S: Final = 5.0


class Documents:
    """`document`, `documents`, `change` and `remove` of the `Registry`, and `version`; all raise ClusterError."""

    def __init__(self, address: Deployment, namespace: str) -> None:
        self._address = address
        self._prefix = Keys(namespace, 1).members
        self._client: redis.Redis | None = None

    def version(self) -> int:
        """See `Registry`."""
        return int(cast("bytes | None", self._ask("GET", self._prefix + DOCUMENTS_VERSION)) or 0)

    def document(self, kind: str, name: str) -> bytes | None:
        """See `Registry`."""
        return cast("bytes | None", self._ask("HGET", self._key(kind), encoded(name)))

    def documents(self, kind: str) -> dict[str, bytes]:
        """See `Registry`."""
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
        function, arguments = change_command(kind, changes)
        return self._function(function, *arguments)

    def remove(self, kind: str, documents: Mapping[str, bytes]) -> int:
        """See `Registry`."""
        pairs = [part for name, value in documents.items() for part in (encoded(name), b"=" + value)]
        return self._function("rk1_remove_documents", kind, *pairs)

    def close(self) -> None:
        """Ends the connection. Idempotent."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _key(self, kind: str) -> bytes:
        return self._prefix + DOCUMENTS + kind.encode()

    def _function(self, name: str, *arguments: object) -> int:
        command = ("FCALL", name, 1, self._prefix, *arguments)
        try:
            return cast(int, self._ask(*command))
        except ClusterError as error:
            if not is_missing(error):
                raise
        # No node of this version has been there yet.
        self._ask("FUNCTION", "LOAD", "REPLACE", source())
        return cast(int, self._ask(*command))

    def _ask(self, *command: object) -> object:
        """One command; again where the store says that its primary is another server by now."""
        try:
            return self._send(*command)
        except redis.exceptions.ResponseError as error:
            if not str(error).startswith((*NOT_HERE, *NOT_THIS_SHARD)) and not isinstance(
                error, (redis.exceptions.ReadOnlyError, redis.exceptions.MovedError, redis.exceptions.AskError)
            ):
                raise _error(error) from error
            self.close()
        except redis.RedisError as error:
            self.close()
            raise StoreUnavailable(f"store {self._address}: {str(error)[:200]}") from error
        try:
            return self._send(*command)
        except redis.RedisError as error:
            raise _error(error) from error

    def _send(self, *command: object) -> object:
        if self._client is None:
            self._client = _connect(_place(self._address, self._prefix))
        return self._client.execute_command(*command)  # type: ignore[no-untyped-call]


def _error(error: redis.RedisError) -> ClusterError:
    text = str(error)[:200]
    return StoreFull(text) if isinstance(error, redis.exceptions.OutOfMemoryError) else ClusterError(text)


def _connect(address: StoreAddress) -> redis.Redis:
    common: dict[str, Any] = {
        "username": address.username or None,
        "password": address.password or None,
        "db": address.db,
        "socket_timeout": ANSWER_S,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if address.path:
        return redis.Redis(unix_socket_path=address.path, **common)
    common["socket_connect_timeout"] = ANSWER_S
    if address.tls:
        common |= {
            "ssl": True,
            "ssl_ca_certs": address.ca_file or None,
            "ssl_certfile": address.cert_file or None,
            "ssl_keyfile": address.key_file or None,
            "ssl_cert_reqs": "required" if address.verify else "none",
            "ssl_check_hostname": address.verify,
        }
    return redis.Redis(host=address.host, port=address.port, **common)


def _place(address: Deployment, key: bytes) -> StoreAddress:
    """The server that takes writes of this key."""
    if isinstance(address, SentinelAddress):
        return _await(lambda: find_primary(address))
    if isinstance(address, ClusterAddress):
        return _await(SlotOwner(address.seeds, slot_of(key)).find)
    return address


def _await(work: Callable[[], Awaitable[StoreAddress]]) -> StoreAddress:
    """In a thread of its own: whoever calls may be in a trio of its own."""
    results: list[StoreAddress] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(trio.run(work))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
