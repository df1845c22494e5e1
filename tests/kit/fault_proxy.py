"""A TCP proxy that breaks connections in the ways networks do: a process of its own, told what to do by its owner.

`python -m tests.kit.fault_proxy HOST PORT` listens on a free port of the loopback interface, prints it, and then
reads orders from standard input, one per line, each answered by a line `ok`.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]

_CHUNK_BYTES = 65_536
#: Read ahead of a slow receiver.
_BUFFER_BYTES = 1 << 20


class FaultProxy:
    """The proxy process before one server. All orders take effect on open connections and on new ones."""

    def __init__(self, host: str, port: int) -> None:
        command = [sys.executable, "-m", "tests.kit.fault_proxy", host, str(port)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        #: Where it listens, on 127.0.0.1.
        self.port = int(self._answer())

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError("the fault proxy has ended")
        return line

    def _order(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        assert self._answer() == "ok"

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        self._order("cut")

    def stall(self) -> None:
        """Accept connections and pass nothing on; it is passed on after `resume`."""
        self._order("stall")

    def lose(self, upwards: bool, downwards: bool) -> None:
        """Swallow what clients (`upwards`) or the server (`downwards`) send. Connections that lost something this way
        are reset by `resume`, as a network would in the end."""
        self._order(f"lose {int(upwards)} {int(downwards)}")

    def slow(self, bytes_per_s: int, delay_ms: int = 0) -> None:
        """Pass on no more than this in each direction and connection, each piece after a delay."""
        self._order(f"slow {bytes_per_s} {delay_ms}")

    def resume(self) -> None:
        """Be a plain proxy again."""
        self._order("resume")

    def close(self) -> None:
        """End the process and with it all connections."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


# -- the process


class _Direction:
    """Bytes from one socket to another."""

    def __init__(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        self.source = source
        self.sink = sink
        self.upwards = upwards
        #: When it may be sent, and what.
        self.waiting: list[tuple[float, bytes]] = []
        self.size = 0
        self.ended = False
        self.shut = False
        self.lost = False
        #: Bytes that may be sent now, under a limit.
        self.credit = 0.0


class _Pair:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.sockets = (client, server)
        self.directions = (_Direction(client, server, True), _Direction(server, client, False))


class _Proxy:
    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._pairs: list[_Pair] = []
        self._mode = "pass"
        self._lost = (False, False)
        self._rate = 0
        self._delay_s = 0.0
        self._listener: socket.socket | None = None
        self.port = 0
        self._listen()

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listener = listener

    def order(self, words: list[str]) -> None:
        name = words[0]
        if name == "cut":
            for pair in list(self._pairs):
                self._reset(pair)
            if self._listener is not None:
                self._listener.close()
                self._listener = None
        elif self._listener is None:
            self._listen()
        if name == "resume":
            for pair in [each for each in self._pairs if any(way.lost for way in each.directions)]:
                self._reset(pair)
        self._lost = (words[1] == "1", words[2] == "1") if name == "lose" else (False, False)
        self._rate, self._delay_s = (int(words[1]), int(words[2]) / 1000) if name == "slow" else (0, 0.0)
        self._mode = "pass" if name in ("resume", "lose", "slow") else name

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError):
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(self._target, 5)
            except OSError:
                _reset_socket(client)
                return
            for each in (client, server):
                each.setblocking(False)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.append(_Pair(client, server))

    def _reset(self, pair: _Pair) -> None:
        self._pairs.remove(pair)
        for each in pair.sockets:
            _reset_socket(each)

    def run(self) -> None:
        orders = sys.stdin
        _say(str(self.port))
        last = time.monotonic()
        while True:
            wanted = self._wanted()
            selector = selectors.DefaultSelector()
            selector.register(orders, selectors.EVENT_READ)
            if self._listener is not None:
                selector.register(self._listener, selectors.EVENT_READ)
            for each, events in wanted.items():
                selector.register(each, events)
            ready: dict[object, int] = {key.fileobj: events for key, events in selector.select(self._next_s())}
            selector.close()
            now = time.monotonic()
            if orders in ready:
                line = orders.readline()
                if not line:
                    return
                self.order(line.split())
                _say("ok")
                continue  # what was ready may be gone
            if self._listener is not None and self._listener in ready:
                self._accept()
            for pair in list(self._pairs):
                self._serve(pair, ready, now, now - last)
            last = now

    def _wanted(self) -> dict[socket.socket, int]:
        wanted: dict[socket.socket, int] = {}
        if self._mode == "stall":
            return wanted
        now = time.monotonic()
        for pair in self._pairs:
            for way in pair.directions:
                if not way.ended and way.size < _BUFFER_BYTES:
                    wanted[way.source] = wanted.get(way.source, 0) | selectors.EVENT_READ
                if way.waiting and way.waiting[0][0] <= now and (not self._rate or way.credit >= 1):
                    wanted[way.sink] = wanted.get(way.sink, 0) | selectors.EVENT_WRITE
        return wanted

    def _next_s(self) -> float | None:
        """How long nothing but sockets can make something to do."""
        if self._mode == "stall" or not any(way.waiting for pair in self._pairs for way in pair.directions):
            return None
        return 0.005 if self._rate or self._delay_s else None

    def _serve(self, pair: _Pair, ready: dict[object, int], now: float, passed_s: float) -> None:
        try:
            for way in pair.directions:
                if ready.get(way.source, 0) & selectors.EVENT_READ and not way.ended and self._mode != "stall":
                    self._read(way, now)
                way.credit = min(way.credit + passed_s * self._rate, max(self._rate / 10, 1.0))
                self._write(way, now)
        except OSError:
            self._reset(pair)
            return
        if all(way.ended and not way.waiting for way in pair.directions):
            self._pairs.remove(pair)
            for each in pair.sockets:
                each.close()

    def _read(self, way: _Direction, now: float) -> None:
        try:
            data = way.source.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        if self._lost[0 if way.upwards else 1]:
            way.lost = True
            way.ended = not data
        elif data:
            way.waiting.append((now + self._delay_s, data))
            way.size += len(data)
        else:
            way.ended = True

    def _write(self, way: _Direction, now: float) -> None:
        if self._mode == "stall":
            return
        while way.waiting and way.waiting[0][0] <= now:
            at, data = way.waiting[0]
            allowed = min(len(data), int(way.credit)) if self._rate else len(data)
            if not allowed:
                return
            try:
                sent = way.sink.send(data[:allowed])
            except BlockingIOError:
                return
            way.credit -= sent
            way.size -= sent
            if sent == len(data):
                del way.waiting[0]
            else:
                way.waiting[0] = (at, data[sent:])
                return
        if way.ended and not way.waiting and not way.shut:
            way.shut = True
            way.sink.shutdown(socket.SHUT_WR)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _reset_socket(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    each.close()


if __name__ == "__main__":
    # The pipe is read by line and watched by select: nothing may wait unseen in a buffer, so one order at a time.
    _Proxy(sys.argv[1], int(sys.argv[2])).run()
