"""A Redis of somebody else's making, asked now and then: the plain driver in threads, with all that it knows of
Sentinels, Clusters and TLS. Nothing of the cluster's own store goes this way."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, cast

import redis
import redis.sentinel
import trio
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from broker.errors import ClusterError, StoreUnavailable
from cluster.redis.address import ClusterAddress, Deployment, SentinelAddress, StoreAddress, parse_store_url


class ForeignRedis:
    """Connects when first asked. `address` shows no secret."""

    def __init__(self, address: Deployment, timeout_s: float, pool: int) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._pool = pool
        self._limiter = trio.CapacityLimiter(pool)
        self._client: Any = None
        self._connecting = threading.Lock()

    async def call(self, *parts: bytes) -> object:
        """Send one command, whose second part is its key, and return the reply: strings as bytes.

        At most `pool` commands are under way, further ones wait, all within the time-out.
        Raises StoreUnavailable, or ClusterError with the server's text."""
        with trio.move_on_after(self._timeout_s):
            # A thread that hangs beyond the time-out keeps its place until its socket's own ends it.
            return await trio.to_thread.run_sync(self._call, parts, limiter=self._limiter, abandon_on_cancel=True)
        raise StoreUnavailable(f"{self.address}: no answer within {self._timeout_s:g} s")

    def _call(self, parts: tuple[bytes, ...]) -> object:
        try:
            with self._connecting:
                if self._client is None:
                    self._client = self._connected()
                client = self._client
            # The Cluster's client finds the key by the name of the command, and knows names as text.
            return client.execute_command(parts[0].decode(), *parts[1:])
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise StoreUnavailable(f"{self.address}: {_line(error)}") from None
        except (redis.RedisError, RedisClusterException, OSError) as error:
            raise ClusterError(f"{self.address}: {_line(error)}") from None

    def _connected(self) -> Any:
        address = self.address
        if isinstance(address, SentinelAddress):
            seed = address.seeds[0]
            login = {key: value for key, value in self._options(seed).items() if key not in ("db", "max_connections")}
            finder = cast("Any", redis.sentinel.Sentinel)(
                [(each.host, each.port) for each in address.seeds],
                sentinel_kwargs=login,
                **self._options(address.store),
            )
            return finder.master_for(address.master)
        if isinstance(address, ClusterAddress):
            nodes = [cast("Any", ClusterNode)(each.host, each.port) for each in address.seeds]
            options = self._options(address.seeds[0])
            options.pop("db")
            options.pop("retry")
            return RedisCluster(startup_nodes=nodes, **options)
        if address.path:
            return redis.Redis(
                connection_pool=redis.ConnectionPool(
                    redis.UnixDomainSocketConnection, path=address.path, **self._options(address)
                )
            )
        return redis.Redis(host=address.host, port=address.port, **self._options(address))

    def _options(self, address: StoreAddress) -> dict[str, Any]:
        options: dict[str, Any] = {
            "username": address.username or None,
            "password": address.password or None,
            "db": address.db,
            "socket_timeout": self._timeout_s,
            "socket_connect_timeout": self._timeout_s,
            "max_connections": self._pool + 4,
            # Once more, at once: a connection that the server closed while it was idle.
            "retry": Retry(NoBackoff(), 1),
        }
        if address.tls:
            options |= {
                "ssl": True,
                "ssl_ca_certs": address.ca_file or None,
                "ssl_certfile": address.cert_file or None,
                "ssl_keyfile": address.key_file or None,
                "ssl_cert_reqs": "required" if address.verify else "none",
                "ssl_check_hostname": address.verify,
            }
        return options

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            with trio.move_on_after(self._timeout_s, shield=True):
                await trio.to_thread.run_sync(partial(client.close), abandon_on_cancel=True)


def connect_foreign(url: str, username: str, password: str, timeout_s: float, pool: int) -> ForeignRedis:
    """Make a client for a URL of any form that the setting `store` takes; ConfigError for a wrong one."""
    address = parse_store_url(url, username=username or None, password=password or None)
    return ForeignRedis(address, timeout_s, pool)


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
