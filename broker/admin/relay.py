"""Operations handed from the parent of workers to one of them, as JSON over the channel between the two."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, Final

import msgspec
import trio

from broker.admin.api import FAILED, TIMED_OUT, UNAVAILABLE, AdminError, Caller, Desk
from broker.log import get_logger

#: Longest operation: a request that waits a minute for its answer, and some more.
PATIENCE_S: Final = 75.0

#: A worker that has not even taken a call in this time is stopped, or hangs: another one is asked.
TAKEN_S: Final = 1.0

#: Things that were told and not read yet: then the stream ends.
WAITING_MAX: Final = 1000

#: One of these is in the last thing that a worker says about what was asked.
_LAST: Final = frozenset({"result", "refused", "ended"})

Send = Callable[[dict[str, Any]], None]

_log = get_logger("admin")


class Silent(AdminError):
    """The worker took nothing: it was not carried out, and may be carried out by another."""

    def __init__(self) -> None:
        super().__init__(TIMED_OUT, "the worker does not answer")


class Relay:
    """The parent's side of one channel. `gone` when the worker has ended."""

    def __init__(self, send: Send) -> None:
        #: It did not take the last call in time, and has said nothing since.
        self.silent = False
        self._send = send
        self._numbers = itertools.count(1)
        self._waiting: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}

    async def call(self, operation: str, arguments: Mapping[str, Any], caller: Caller) -> Any:
        """See `Desk`. Raises Silent too."""
        with self._asked("call", operation, arguments, caller) as answers:
            await self._taken(answers)
            with trio.move_on_after(PATIENCE_S):
                return _checked(await _next(answers)).get("result")
            raise AdminError(TIMED_OUT, "the worker does not answer")

    @asynccontextmanager
    async def stream(
        self, operation: str, arguments: Mapping[str, Any], caller: Caller
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """See `Desk`. Raises Silent too."""
        with self._asked("open", operation, arguments, caller) as answers:
            await self._taken(answers)
            _checked(await _next(answers))  # opened

            async def items() -> AsyncGenerator[Any, None]:
                async for answer in answers:
                    if "ended" in answer:
                        return
                    yield _checked(answer)["item"]
                raise AdminError(UNAVAILABLE, "cut off from the worker", "it has ended, or told more than was read")

            async with aclosing(items()) as told:
                yield told

    async def _taken(self, answers: trio.MemoryReceiveChannel[dict[str, Any]]) -> None:
        with trio.move_on_after(TAKEN_S):
            await _next(answers)
            return
        self.silent = True
        raise Silent

    @contextmanager
    def _asked(
        self, what: str, operation: str, arguments: Mapping[str, Any], caller: Caller
    ) -> Iterator[trio.MemoryReceiveChannel[dict[str, Any]]]:
        """Until it is over, or given up: then the worker leaves it, or does not even begin when it wakes up."""
        number = next(self._numbers)
        send, answers = trio.open_memory_channel[dict[str, Any]](WAITING_MAX)
        self._waiting[number] = send
        try:
            self._send(
                {
                    "admin": what,
                    "id": number,
                    "operation": operation,
                    "arguments": msgspec.to_builtins(dict(arguments)),
                    "caller": msgspec.to_builtins(caller),
                }
            )
            yield answers
        finally:
            if self._waiting.pop(number, None) is not None:
                self._send({"admin": "close", "id": number})

    def answered(self, message: dict[str, Any]) -> None:
        """The worker said something."""
        self.silent = False
        waiting = self._waiting.get(message["id"])
        if waiting is None:
            return
        try:
            waiting.send_nowait(message)
        except trio.WouldBlock:  # whoever reads is too slow
            self._send({"admin": "close", "id": message["id"]})
        else:
            if not message.keys() & _LAST:
                return
        del self._waiting[message["id"]]
        waiting.close()

    def gone(self) -> None:
        """The worker has ended: whoever waits is told."""
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            each.close()


async def _next(answers: trio.MemoryReceiveChannel[dict[str, Any]]) -> dict[str, Any]:
    try:
        return await answers.receive()
    except trio.EndOfChannel:
        raise AdminError(UNAVAILABLE, "the worker has ended") from None


def _checked(message: dict[str, Any]) -> dict[str, Any]:
    refused = message.get("refused")
    if refused is not None:
        raise AdminError(*refused)
    return message


class RelayEnd:
    """The worker's side. Run `serve` as a task."""

    def __init__(self, desk: Desk, send: Send) -> None:
        self._desk = desk
        self._send = send
        self._scopes: dict[int, trio.CancelScope] = {}
        self._asked, self._to_do = trio.open_memory_channel[dict[str, Any]](math.inf)

    def asked(self, message: dict[str, Any]) -> None:
        """The parent wants something."""
        number = message["id"]
        if message["admin"] == "close":
            scope = self._scopes.get(number)
            if scope is not None:
                scope.cancel()
            return
        self._scopes[number] = trio.CancelScope()
        self._tell(number, taken=True)
        self._asked.send_nowait(message)

    async def serve(self) -> None:
        """Carries out what is asked, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for message in self._to_do:
                nursery.start_soon(self._carry_out, message)

    async def _carry_out(self, message: dict[str, Any]) -> None:
        number = message["id"]
        caller = msgspec.convert(message["caller"], Caller)
        with self._scopes[number]:
            await trio.lowlevel.checkpoint()  # not at all, if it was taken back meanwhile
            try:
                if message["admin"] == "call":
                    result = await self._desk.call(message["operation"], message["arguments"], caller)
                    self._tell(number, result=result)
                else:
                    async with self._desk.stream(message["operation"], message["arguments"], caller) as items:
                        self._tell(number, opened=True)
                        async for item in items:
                            self._tell(number, item=item)
                    self._tell(number, ended=True)
            except AdminError as error:
                self._tell(number, refused=[error.status, error.title, error.detail])
            except Exception:
                _log.exception("admin.failed", operation=message["operation"])
                self._tell(number, refused=[FAILED, "an error of the server", ""])
        del self._scopes[number]

    def _tell(self, number: int, **what: Any) -> None:
        self._send({"admin": "answer", "id": number, **what})
