"""JSON objects, one a line, between a parent and one of its workers. That the other end is gone ends the reading."""

from __future__ import annotations

import json
import math
import socket
from typing import Any

import trio

#: A line is a report or the settings: tens of KiB at most.
_LINE_LIMIT = 16 * 1024 * 1024


class Channel:
    """`run` it as a task; it returns when the other end is gone. `send` never waits."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
        self._outgoing, self._to_send = trio.open_memory_channel[bytes](math.inf)
        self._received = b""

    def send(self, content: dict[str, Any]) -> None:
        """Queue an object; it is lost if nobody is there any more."""
        self._outgoing.send_nowait(json.dumps(content).encode() + b"\n")

    async def run(self) -> None:
        """Sends what is queued, until cancelled or the other end is gone."""
        try:
            async for line in self._to_send:
                await self._stream.send_all(line)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def receive(self) -> dict[str, Any] | None:
        """The other end's next object; None once it is gone."""
        while b"\n" not in self._received:
            try:
                data = await self._stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not data or len(self._received) > _LINE_LIMIT:
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        content = json.loads(line)
        assert isinstance(content, dict)
        return content

    def close(self) -> None:
        """The other end sees the end."""
        self._stream.socket.close()
