"""All measurements of one life of a node, and the samples that they come to."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from broker import __version__
from broker.measuring.census import Census
from broker.measuring.history import History
from broker.measuring.overload import Overload
from broker.measuring.process import process_samples
from broker.measuring.store import StoreWatch
from broker.measuring.turns import Turns
from broker.metrics_catalogue import Samples, Value

if TYPE_CHECKING:
    from broker.options.listener import Listener
    from broker.server import Server
    from broker.transport.certificates import Certificates


class Measuring:
    """Made with the server of a life. `serve` works in the background; `refresh` before `samples` makes these exact."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._process: Samples = {}
        self.census = Census(server)
        self.overload = Overload(lambda: server.reactor.unsent_bytes)
        self.store = StoreWatch(server.cluster)
        self.history = History(server, self.census)
        server.reactor.turn_done = Turns(server.reactor, server.dispatch, server.metrics).done

    async def serve(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.overload.serve)
            nursery.start_soon(self.store.serve)
            nursery.start_soon(self.history.serve)

    async def refresh(self) -> None:
        """Count what is too much to be counted without others getting their turn."""
        await self.census.take()
        self._process = await trio.to_thread.run_sync(process_samples)

    def samples(self) -> Samples:
        """Without I/O: what is counted in passing is that of the last `refresh`."""
        server, census = self._server, self.census
        dispatch = server.dispatch
        connections: dict[str, Value] = dict(census.connections)
        return {
            **server.metrics.samples(
                sum(connection.sent_qos0 for connection in server.connections),
                server.reactor.received_bytes,
                server.reactor.sent_bytes,
            ),
            **self._process,
            **self.store.samples(),
            **self._telemetry(),
            **server.topic_counts.samples(),
            "mqtt_drain_remaining_connections": {"": len(server.connections) if server.draining else 0},
            "mqtt_event_loop_lag_seconds": {"": self.overload.lag_s},
            "mqtt_output_pending_bytes": {"": server.reactor.unsent_bytes},
            "mqtt_connections": connections or {",none": 0},
            "mqtt_connections_limit": {"": server.max_connections},
            "mqtt_sessions": {kind: census.sessions[kind] for kind in ("ephemeral", "persistent")},
            "mqtt_inflight_messages": {"": census.in_flight},
            "mqtt_queued_messages": {"": census.queued},
            "mqtt_subscriptions": {"": dispatch.counts[False] - server.inside.subscription_count()},
            "mqtt_cluster_subscriptions": {"": dispatch.counts[True]},
            "mqtt_remote_routes": {"": sum(len(node.filters) for node in dispatch.nodes.values())},
            "mqtt_routes_cached": {"": len(dispatch.routes.entries)},
        }

    def _telemetry(self) -> Samples:
        health = self._server.cluster.health()
        told = self._server.cluster.telemetry()
        errors: dict[str, Value] = dict(told.errors)
        return {
            "mqtt_store_durability_info": {health.durability: 1},
            "mqtt_store_lease_age_seconds": {"": told.lease_age_s},
            "mqtt_store_unanswered_commands": {"": told.unanswered},
            "mqtt_store_pending_bytes": {"": told.pending_bytes},
            "mqtt_store_commands_total": {"": told.commands},
            "mqtt_store_errors_total": errors,
            "mqtt_store_reconnects_total": {"": told.reconnects},
            "mqtt_store_failovers_total": {"": told.failovers},
            "mqtt_store_round_trip_seconds": {"": told.round_trip.packed()},
            "mqtt_store_batch_commands": {"": told.batch.packed()},
        }


def build_samples(node: str, started_at_s: float) -> Samples:
    """Of the node itself, whatever its state."""
    return {
        "mqtt_build_info": {f"{__version__},{platform.python_version()},{node}": 1},
        "mqtt_start_time_seconds": {"": started_at_s},
    }


def certificate_samples(listeners: Sequence[Listener], certificates: Sequence[Certificates | None]) -> Samples:
    """When the certificates of TLS listeners end."""
    told: dict[str, Value] = {
        f"{listener.url},{name}": ends_at_s
        for listener, shown in zip(listeners, certificates, strict=False)
        if shown is not None
        for name, ends_at_s in shown.expiries.items()
    }
    return {"mqtt_tls_certificate_expiry_timestamp_seconds": told}
