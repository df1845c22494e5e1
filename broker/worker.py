"""One of several nodes on one machine: `python -m broker.worker NAME FD`, started by `broker.supervisor`.

Its settings come through the inherited socket FD, its reports leave through it; when the parent is gone, it ends.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

import trio

from broker.admin.relay import RelayEnd
from broker.channel import Channel
from broker.config import Settings, from_texts
from broker.http.report import Report
from broker.log import bind, configure, get_logger
from broker.node import Node
from broker.process import FAILED, OK, run_to_the_end

#: How long a worker without a parent may take to end.
ORPHAN_S = 10.0

_log = get_logger("worker")


def main(arguments: Sequence[str]) -> int:
    """Serve until the parent says otherwise or is gone; returns the exit status."""
    name, descriptor = arguments
    bind(node=name)
    end = socket.socket(fileno=int(descriptor))
    end.set_inheritable(False)
    return run_to_the_end(Worker(end).serve)


class Worker:
    """The child's side."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._settings: Settings
        self._node: Node
        self._relay: RelayEnd
        self._channel: Channel
        self._wanted, self._to_report = trio.open_memory_channel[dict[str, Any]](math.inf)

    async def serve(self) -> int:
        """As `Node.serve`."""
        channel = self._channel = Channel(self._end)
        first = await channel.receive()
        if first is None:
            return OK
        self._take(first)
        self._node = Node(self._settings, self._latest, shared_ports=True, changed=self._tell)
        self._relay = RelayEnd(self._node, channel.send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.run)
            nursery.start_soon(self._relay.serve)
            nursery.start_soon(self._report)
            nursery.start_soon(self._listen)
            status = await self._node.serve()
            nursery.cancel_scope.cancel()
        return status

    def _latest(self) -> Settings:
        return self._settings

    def _take(self, message: dict[str, Any]) -> None:
        self._settings = from_texts(message["settings"], message["origins"])
        configure(self._settings.log_level, self._settings.log_format)

    def _tell(self) -> None:
        self._answer(0, self._node.report())

    def _answer(self, asked: int, report: Report, counted: bool = True) -> None:
        self._channel.send({"asked": asked, "report": report.packed(), "counted": counted})

    async def _report(self) -> None:
        """In the order of the questions. Counting takes its time, so it is not done where signs of life are asked."""
        async for message in self._to_report:
            asked, counted = message["asked"], message["counted"]
            [report] = await (self._node.reports() if counted else self._node.statuses())
            self._answer(asked, report, counted)

    async def _listen(self) -> None:
        while (message := await self._channel.receive()) is not None:
            if "settings" in message:
                self._take(message)
                self._node.obey(signal.SIGHUP)
            elif "admin" in message:
                self._relay.asked(message)
            elif "alive" in message:
                self._channel.send(message)
            else:
                self._wanted.send_nowait(message)
        _log.error("worker.orphaned")
        self._node.stop_at_once()
        await trio.sleep(ORPHAN_S)
        os._exit(FAILED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
