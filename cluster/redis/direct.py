"""The store for commands: synchronous, on connections of their own, without being a member.

A node never comes here: the driver is imported where it is used, as that takes a fifth of the time of a start.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from broker.errors import ClusterError, StoreFull, StoreUnavailable
from cluster.redis.address import ClusterAddress, Deployment, SentinelAddress, StoreAddress
from cluster.redis.library import is_missing, source
from cluster.redis.replies import NOT_HERE, NOT_THIS_SHARD
from cluster.redis.sentinel import find_primary
from cluster.redis.slots import SlotOwner, read_map, slot_of

if TYPE_CHECKING:
    import redis

#: How long the store may take to answer.
ANSWER_S: Final = 5.0

T = TypeVar("T")


class Direct:
    """Commands for whatever the store is; all methods raise ClusterError, with StoreUnavailable if nobody answers."""

    def __init__(self, address: Deployment) -> None:
        self._address = address
        #: By key; the one key of a store that is no Redis Cluster is b"".
        self._clients: dict[bytes, redis.Redis] = {}

    def ask(self, key: bytes, *command: object) -> object:
        """One command to the server that has this key (or prefix); again where the store says that its primary is
        another server by now."""
        import redis

        place = key if isinstance(self._address, ClusterAddress) else b""
        try:
            return self._send(place, command)
        except redis.exceptions.ResponseError as error:
            if not str(error).startswith((*NOT_HERE, *NOT_THIS_SHARD)) and not isinstance(
                error, (redis.exceptions.ReadOnlyError, redis.exceptions.MovedError, redis.exceptions.AskError)
            ):
                raise _error(error) from error
            self._forget(place)
        except redis.RedisError as error:
            self._forget(place)
            raise StoreUnavailable(f"store {self._address}: {str(error)[:200]}") from error
        try:
            return self._send(place, command)
        except redis.exceptions.ResponseError as error:
            raise _error(error) from error
        except redis.RedisError as error:
            # It may have been executed: whoever asked has to know.
            self._forget(place)
            raise StoreUnavailable(f"store {self._address}: {str(error)[:200]}") from error

    def function(self, prefix: bytes, name: str, *arguments: object, library: Callable[[], bytes] = source) -> object:
        """Calls a function with this prefix; where the server has not got it, `library` is loaded there first."""
        command = ("FCALL", name, 1, prefix, *arguments)
        try:
            return self.ask(prefix, *command)
        except ClusterError as error:
            if not is_missing(error):
                raise
        # No node of this version has been there yet, or one of the version before has put its own back.
        self.ask(prefix, "FUNCTION", "LOAD", "REPLACE", library())
        return self.ask(prefix, *command)

    def primaries(self) -> list[StoreAddress]:
        """All servers that take writes."""
        address = self._address
        if isinstance(address, ClusterAddress):
            seed = address.seeds[0]
            ranges = _await(lambda: read_map(address.seeds))
            places = dict.fromkeys(place for _, _, place in ranges)
            return [replace(seed, host=host, port=port) for host, port in places]
        return [_place(address, b"")]

    def each(self, *command: object, only: Collection[str] | None = None) -> dict[str, object]:
        """The answers of all servers that take writes (or only some of these), by their addresses."""
        import redis

        answers: dict[str, object] = {}
        for server in self.primaries():
            if only is not None and str(server) not in only:
                continue
            client = _connect(server)
            try:
                answers[str(server)] = client.execute_command(*command)  # type: ignore[no-untyped-call]
            except redis.exceptions.ResponseError as error:
                raise _error(error) from error
            except redis.RedisError as error:
                raise StoreUnavailable(f"store {server}: {str(error)[:200]}") from error
            finally:
                client.close()
        return answers

    def close(self) -> None:
        """Ends the connections. Idempotent."""
        for place in list(self._clients):
            self._forget(place)

    def _forget(self, place: bytes) -> None:
        client = self._clients.pop(place, None)
        if client is not None:
            client.close()

    def _send(self, place: bytes, command: tuple[object, ...]) -> object:
        client = self._clients.get(place)
        if client is None:
            client = self._clients[place] = _connect(_place(self._address, place))
        return client.execute_command(*command)  # type: ignore[no-untyped-call]


def _error(error: redis.RedisError) -> ClusterError:
    import redis

    text = str(error)[:200]
    return StoreFull(text) if isinstance(error, redis.exceptions.OutOfMemoryError) else ClusterError(text)


def _connect(address: StoreAddress) -> redis.Redis:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

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


def _await(work: Callable[[], Awaitable[T]]) -> T:
    """In a thread of its own: whoever calls may be in a trio of its own."""
    results: list[T] = []
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
