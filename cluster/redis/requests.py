"""What waits for a reply: places in the queue of a link, and the tasks behind some of them."""

from __future__ import annotations

from collections.abc import Callable

import hiredis
import trio

from broker.errors import StoreUnavailable
from broker.log import get_logger
from cluster.redis.replies import error_from

Then = Callable[[object], None]

_log = get_logger("store")


class Request:
    """A place in the queue of replies. `data` is kept only where the request may be sent again; `kind` and
    `channels` are of a SUBSCRIBE and its like, which is answered by one push for each channel."""

    __slots__ = ("allow_s", "channels", "data", "durable", "kind", "resend", "sends", "then")

    def __init__(
        self,
        data: bytes,
        then: Then | None,
        resend: bool = False,
        allow_s: float = 0.0,
        kind: bytes = b"",
        channels: int = 0,
        durable: bool = False,
    ) -> None:
        self.data = data
        self.then = then
        self.resend = resend
        self.allow_s = allow_s
        self.kind = kind
        self.channels = channels
        self.durable = durable
        #: How many connections broke while this was the oldest request on them.
        self.sends = 0


class Caller:
    """A task that waits for one reply; without a task it was cancelled, and the reply is dropped."""

    __slots__ = ("reply", "task")

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task: trio.lowlevel.Task | None = task
        self.reply: object = None

    def answered(self, reply: object) -> None:
        """The `then` of the request."""
        self.reply = reply
        if self.task is not None:
            task, self.task = self.task, None
            trio.lowlevel.reschedule(task)

    def abort(self, _: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        """The abort function of trio's `wait_task_rescheduled`; the place in the queue stays."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


def result(reply: object) -> object:
    """The reply, or raises the error it stands for: a fresh one for each caller, since raising writes to it."""
    if isinstance(reply, hiredis.ReplyError):
        raise error_from(reply)
    if isinstance(reply, StoreUnavailable):
        raise StoreUnavailable(str(reply))
    return reply


def run(then: Then, reply: object) -> None:
    """Calls back; a defect there must not break the pairing of all others."""
    try:
        then(reply)
    except Exception:
        _log.exception("store.callback_failed")
