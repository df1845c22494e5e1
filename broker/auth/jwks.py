"""Keys that a web service publishes (a JSON web key set), kept fresh and kept while the service is away."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import trio

from broker.auth.api import BackendError
from broker.auth.http_client import WebClient, check_url
from broker.auth.jwt_keys import Key, key_set
from broker.log import get_logger

_log = get_logger("authentication")

MAX_SET_BYTES: Final = 1024 * 1024
#: A token of an unknown key makes the set be fetched early, but not more often than this.
EARLY_FLOOR_S: Final = 10.0
_RETRY_S: Final = 5.0


class KeySet:
    """The keys behind a URL: `keys` are those of the last good answer.

    `serve` fetches them every `refresh_s` (sooner after a failure). All methods are called in one trio run.
    """

    def __init__(self, name: str, url: str, refresh_s: float, timeout_s: float, ca_certs: Path | None = None) -> None:
        check_url("jwks_url", url)
        self.keys: list[Key] = []
        self._name = name
        self._url = url
        self._refresh_s = refresh_s
        self._client = WebClient(timeout_s, 1, ca_certs)
        #: Whether the last attempt failed: what is unknown now may only be unknown here.
        self._stale = True
        self._next_early_s = -1.0
        self._fetching: trio.Event | None = None

    async def early(self) -> None:
        """Fetch the set now, unless that was done a moment ago; many at a time fetch once. BackendError if it is not
        known whether the keys are the current ones."""
        if self._fetching is not None:
            await self._fetching.wait()
        elif trio.current_time() >= self._next_early_s:
            self._next_early_s = trio.current_time() + EARLY_FLOOR_S
            await self._fetch()
        if self._stale:
            raise BackendError("the key set cannot be fetched")

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Fetch the set now and then; started after the first attempt, whatever came of it."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._closing)
            await self._fetch()
            task_status.started()
            while True:
                wait_s = min(_RETRY_S, self._refresh_s) if self._stale else self._refresh_s
                # Not all nodes at the same time.
                await trio.sleep(wait_s * random.uniform(0.8, 1.0))
                await self._fetch()

    async def _closing(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self._client.serve(task_status=task_status)

    async def _fetch(self) -> None:
        if self._fetching is not None:
            await self._fetching.wait()
            return
        self._fetching = trio.Event()
        try:
            answer = await self._client.ask("GET", self._url, [("Accept", "application/json")], limit=MAX_SET_BYTES)
            if answer.status != 200:
                raise BackendError(f"status {answer.status}")
            keys, others = key_set(answer.body)
            if not keys:
                raise BackendError("no usable key in it")
        except (BackendError, ValueError) as error:
            self._stale = True
            _log.warning("authentication.keys_unavailable", authenticator=self._name, error=str(error))
        else:
            if self._stale or {key.digest for key in keys} != {key.digest for key in self.keys}:
                _log.info("authentication.keys", authenticator=self._name, keys=len(keys), ignored=others)
            self.keys = keys
            self._stale = False
        finally:
            self._fetching.set()
            self._fetching = None
