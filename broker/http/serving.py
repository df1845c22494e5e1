"""Connections of the HTTP server: hypercorn's HTTP/1.1 over trio, with bounds that it does not have.

- So many at a time as `broker.http.guests` allows; who comes then takes the place of one who is not being served.
- A request's head must come within `HEAD_S`, and so must the next request on a connection.
- An answer must be taken within `SEND_S` as a whole: hypercorn's own sending cannot be cancelled, so that one client
  that reads nothing would keep the node from stopping.
- HTTP/2 and upgrades are not offered: what they cost cannot be bounded in the same way.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Container
from contextlib import suppress
from typing import Any, Final

import h11
import hypercorn.config
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import TrioSingleTask, WorkerContext
from hypercorn.typing import ConnectionState, H11SendableEvent
from hypercorn.utils import parse_socket_addr

from broker.http.guests import GUEST, Guest, Guests
from broker.http.problems import PROBLEM_TYPE, problem
from broker.limits.places import origin_of
from broker.log import get_logger

HEAD_S: Final = 10.0
SEND_S: Final = 20.0
#: How often it is seen whether a client has gone that sent more requests than are answered.
NOTICE_S: Final = 1.0
#: Of the line of the request and its headers. A topic may have 65,535 bytes, each of which may be percent-encoded.
HEAD_BYTES: Final = 208 * 1024
_RECEIVE_BYTES: Final = 65536
_log = get_logger("http")

#: A pause before the next connection where the system has no descriptor left.
_OUT_OF_DESCRIPTORS_S: Final = 0.5


def make_config() -> hypercorn.config.Config:
    """What hypercorn is told."""
    config = hypercorn.config.Config()
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    config.h11_max_incomplete_size = HEAD_BYTES
    config.keep_alive_timeout = HEAD_S
    config.keep_alive_max_requests = 10_000
    return config


async def serve(app: Any, listening: socket.socket, guests: Guests, proxies: Container[str] = ()) -> None:
    """Serve an ASGI app on a listening socket until cancelled. From addresses among `proxies` come many clients."""
    config = make_config()
    context = WorkerContext(None)
    wrapped = ASGIWrapper(app)
    listener = trio.socket.from_stdlib_socket(listening)
    async with trio.open_nursery() as nursery:
        while True:
            try:
                accepted, address = await listener.accept()
            except OSError:  # the client left, or there is no descriptor
                await trio.sleep(_OUT_OF_DESCRIPTORS_S)
                continue
            guest = guests.admit("" if address[0] in proxies else origin_of(address[0]))
            if guest is None:
                accepted.close()
                continue
            connection = Connection(wrapped, config, context, trio.SocketStream(accepted), guests, guest)
            nursery.start_soon(_run, connection, guests, guest)


async def _run(connection: Connection, guests: Guests, guest: Guest) -> None:
    try:
        with guest.scope:
            await connection.run()
    except Exception:
        _log.exception("http.connection_failed")
    finally:
        guests.leave(guest)


def origin_form(target: bytes) -> bytes:
    """The target of a request without scheme and authority, which all clients may send (RFC 9112, 3.2.2)."""
    scheme, found, rest = target[:8].partition(b"://")
    if not found or scheme.lower() not in (b"http", b"https"):
        return target
    rest = target[len(scheme) + 3 :]
    end = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    path = rest[end:]
    return path if path.startswith(b"/") else b"/" + path


class _Http1(H11Protocol):
    """Without upgrades, and with targets of every form."""

    #: An answer cannot be brought to its end: the connection is about to close.
    _broken_off = False

    async def _check_protocol(self, event: h11.Request) -> None:
        pass

    async def _create_stream(self, request: h11.Request) -> None:
        headers = list(request.headers)
        kept = [(name, value) for name, value in headers if name != b"upgrade"]
        target = origin_form(request.target)
        if len(kept) != len(headers) or target != request.target:
            request = h11.Request(method=request.method, target=target, headers=kept, http_version=request.http_version)
        await super()._create_stream(request)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        # When a request is cancelled hypercorn answers 500, even where the head of an answer is on its way.
        if isinstance(event, h11.Response) and self.connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._broken_off = True
        if not self._broken_off:
            await super()._send_h11_event(event)

    async def _send_error_response(self, status_code: int) -> None:
        body = problem(status_code, detail="what was sent is no request that can be read").body
        headers = [
            (b"content-type", PROBLEM_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        headers += self.config.response_headers("h11")
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        await self._send_h11_event(h11.Data(data=bytes(body)))
        await self._send_h11_event(h11.EndOfMessage())


class Connection:
    """One of them; `run` it as a task. After hypercorn's `TCPServer`."""

    def __init__(
        self,
        app: ASGIWrapper,
        config: hypercorn.config.Config,
        context: WorkerContext,
        stream: trio.SocketStream,
        guests: Guests,
        guest: Guest,
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._stream = stream
        self._guests = guests
        self._guest = guest
        self._sending = trio.Lock()
        self._idle = TrioSingleTask()
        #: The client sends no more: an answer may still be on its way, no other request will come.
        self._over = False
        #: What it sent waits until it can be read.
        self._taking = False
        self._tasks: TaskGroup
        self._protocol: _Http1

    async def run(self) -> None:
        """Serves requests until either end closes."""
        taken = self._stream.socket
        try:
            async with TaskGroup() as tasks:
                self._tasks = tasks
                self._protocol = _Http1(
                    self._app,
                    self._config,
                    self._context,
                    tasks,
                    ConnectionState({GUEST: self._guest}),
                    False,
                    parse_socket_addr(taken.family, taken.getpeername()),
                    parse_socket_addr(taken.family, taken.getsockname()),
                    self._send,
                )
                await self._idle.restart(tasks, self._time_out)
                await self._read()
        except* OSError:
            pass
        finally:
            taken.close()

    async def _read(self) -> None:
        poll = select.poll()
        poll.register(self._stream.socket.fileno(), select.POLLRDHUP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notice, poll, nursery.cancel_scope)
            await self._take()
            nursery.cancel_scope.cancel()
        self._over = True
        await self._protocol.handle(Closed())
        await self._idle.stop()

    async def _take(self) -> None:
        while True:
            try:
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                break
            self._taking = True
            await self._protocol.handle(RawData(bytes(data)))
            self._taking = False

    async def _notice(self, poll: select.poll, scope: trio.CancelScope) -> None:
        """The end of what a client sends, where nothing is read because a request before it is not answered yet."""
        before = -1
        while True:
            await trio.sleep(NOTICE_S)
            requests = self._protocol.keep_alive_requests if self._taking else -1
            if requests >= 0 and requests == before and poll.poll(0):
                scope.cancel()
            before = requests

    async def _send(self, event: object) -> None:
        if isinstance(event, RawData):
            if not await self._sent(event.data):
                self._stream.socket.close()
                await self._protocol.handle(Closed())
        elif isinstance(event, Closed):
            await self._finish()
            await self._protocol.handle(Closed())
        elif isinstance(event, Updated):
            if event.idle:
                self._guest.rests()
            if event.idle and not self._over:
                await self._idle.restart(self._tasks, self._time_out)
            else:
                await self._idle.stop()

    async def _sent(self, data: bytes) -> bool:
        """Whether the client took all of it in time."""
        try:
            with trio.fail_after(SEND_S):
                async with self._sending:
                    with self._guests.sending(self._guest, len(data)):
                        await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            return False
        return True

    async def _time_out(self) -> None:
        await trio.sleep(self._config.keep_alive_timeout)
        self._stream.socket.close()

    async def _finish(self) -> None:
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            await self._stream.send_eof()
        self._stream.socket.close()
