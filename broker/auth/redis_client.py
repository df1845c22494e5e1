"""The way from authenticators and rule sources to a Redis of somebody else's making."""

from __future__ import annotations

from broker.auth.api import BackendError
from broker.errors import ClusterError
from broker.values import hide_password


class RedisClient:
    """At most `pool` commands at a time, each answered within `timeout_s`. Connects when first asked."""

    def __init__(self, url: str, username: str, password: str, timeout_s: float, pool: int) -> None:
        # Here: a node without such a Redis starts without the driver.
        from cluster.redis.foreign import connect_foreign

        self._redis = connect_foreign(url, username, password, timeout_s, pool)

    async def call(self, *parts: bytes) -> object:
        """One command; its second part is its key. Strings in the reply are bytes. Raises BackendError."""
        try:
            return await self._redis.call(*parts)
        except ClusterError as error:
            raise BackendError(hide_password(str(error))) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
