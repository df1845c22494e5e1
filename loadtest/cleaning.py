"""The end of a run: neither its retained messages nor its sessions stay in the broker."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

import trio

from loadtest.client import Client
from loadtest.engine import Engine
from loadtest.retained import Storing

PATIENCE_S = 5.0  # while no further session can be removed
STEP_S = 0.02


class Remover(Client):
    """Ends a session: connects with clean start, and leaves at once, so that the next one finds a place."""

    def opened(self) -> None:
        super().opened()
        self.close()


class Cleaning:
    """What `clients` leave in the broker, and its removal."""

    def __init__(self, engine: Engine, clients: Sequence[Client], clean: bool) -> None:
        self._engine = engine
        self._clients = clients
        # What never had a connection has no session, whatever `session` says: None is "not known".
        keeps = not clean and bool(engine.counts.connects)
        self._removers = [
            Remover(engine, each.client_id, each.node) for each in clients if keeps and each.session is not False
        ]
        self._removing = False
        self._stored = 0

    def left(self) -> list[str]:
        """Say what could not be removed."""
        sessions = len(self._engine.absent.intersection(self._removers)) if self._removing else len(self._removers)
        found = [f"{sessions} sessions may be left in the broker"] if sessions else []
        return found + ([f"{self._stored} retained messages may be left in the broker"] if self._stored else [])

    async def clean(self) -> None:
        """Remove it, as far as the broker lets us."""
        engine = self._engine
        for traffic in engine.traffics:
            for subscriber in traffic.subscribers:
                subscriber.close()
            if isinstance(traffic, Storing) and traffic.publishers:
                await self._clear(traffic)
        engine.abandon()
        for client in self._clients:
            client.close()
        if not self._removers:
            return
        self._removing = True
        engine.open(self._removers)
        left, deadline = len(engine.absent), monotonic() + PATIENCE_S
        while engine.absent and monotonic() < deadline:
            await trio.sleep(STEP_S)
            if len(engine.absent) < left:
                left, deadline = len(engine.absent), monotonic() + PATIENCE_S

    async def _clear(self, traffic: Storing) -> None:
        self._stored = sum(each.sent for each in traffic.publishers)
        deadline = monotonic() + 2 * PATIENCE_S
        away = sum(each.sent for each in traffic.publishers if not each.ready)
        traffic.clear()
        while any(each.out or each.blocked for each in traffic.publishers if each.socket is not None):
            if monotonic() > deadline:
                return
            await trio.sleep(STEP_S)
        self._stored = away
