"""A worker process as its parent sees it: started, asked, told, and seen to end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import trio

from broker.admin.relay import Relay
from broker.channel import Channel
from broker.config import Settings, as_texts
from broker.http.report import READY, SILENT, STARTING, Report
from broker.log import get_logger
from broker.metrics_catalogue import growing

#: How long /metrics and the like wait for a worker, and for one that did not answer the last time.
ANSWER_S = 1.0
SILENT_S = 0.1

#: A worker is asked for a sign of life so often in the time after which one without any is killed; one that starts has
#: so many times as long for its first.
SIGNS = 6
FIRST_SIGN = 10

_log = get_logger("supervisor")


class WorkerProcess:
    """One place among the workers; processes come and go in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        #: The last thing that the present process said; None before it has said anything.
        self.last: Report | None = None
        #: Signs of life that the present process owes.
        self.missed = 0
        self._heard = 0
        self._process: trio.Process | None = None
        self._channel: Channel | None = None
        #: How the present process is asked for what operators want; None without one.
        self.relay: Relay | None = None
        self._stopped = False
        self._asked = 0
        self._answered = 0
        self._news = trio.Event()

    @property
    def pid(self) -> int:
        """Of the present process, or 0."""
        return self._process.pid if self._process is not None else 0

    @property
    def ready(self) -> bool:
        """Whether it serves clients, as far as one knows."""
        return self.last is not None and self.last.status == READY and self.pid > 0 and not self.missed

    async def live(self, settings: Settings, silence_s: float) -> int:
        """Start the process and wait for its end; returns its status (negative: the signal that killed it). One that
        says nothing for `silence_s` is killed."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "broker.worker", self.name, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                process_group=0,  # Ctrl-C is for the parent, which passes it on
            )
        self.last = None
        self._process = process
        if self._stopped:  # while it was being started
            process.send_signal(signal.SIGTERM)
        self._channel = channel = Channel(ours)
        self.relay = relay = Relay(channel.send)
        self._asked = self._answered = self._heard = 0
        channel.send({"settings": as_texts(settings), "origins": dict(settings.origins)})
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.run)
                nursery.start_soon(self._listen, channel, relay)
                nursery.start_soon(self.watch, channel, silence_s)
                status = await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
            channel.close()
            self._process = self._channel = self.relay = None
            relay.gone()
            self._tell()
        return status

    async def _listen(self, channel: Channel, relay: Relay) -> None:
        while (message := await channel.receive()) is not None:
            self._heard += 1
            if "alive" in message:
                continue
            if "admin" in message:
                relay.answered(message)
                continue
            relay.silent = False
            report = Report(**message["report"])
            if not message["counted"] and self.last is not None:
                report.samples = self.last.samples
            self.last = report
            self._answered = max(self._answered, message["asked"])
            self._tell()

    async def watch(self, channel: Channel, silence_s: float) -> None:
        """Kill the process once it stands still. What counts are signs that it owes, not time: this process may have
        stood still itself, together with all of the machine."""
        self.missed = 0
        while self.missed < (SIGNS if self._heard else SIGNS * FIRST_SIGN):
            heard = self._heard
            channel.send({"alive": True})
            await trio.sleep(silence_s / SIGNS)
            self.missed = self.missed + 1 if self._heard == heard else 0
        _log.error("worker.killed", worker=self.name, pid=self.pid, silent_s=round(silence_s / SIGNS * self.missed, 3))
        self.kill()

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    async def changed(self) -> None:
        """Returns when there is a new report, or the process has ended."""
        await self._news.wait()

    def stop(self) -> None:
        """Have it drain; called again, have it hurry."""
        self._stopped = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def configure(self, settings: Settings) -> None:
        """Give new settings to the present process."""
        if self._channel is not None:
            self._channel.send({"settings": as_texts(settings), "origins": dict(settings.origins)})

    async def report(self, counted: bool = True) -> Report:
        """How it is now, and all that it `counted`. Of one that does not answer in time there is only what must not
        fall, as it was; of a process that has not said anything yet, or is not there, nothing."""
        channel, relay = self._channel, self.relay
        if channel is None or relay is None:
            return Report(self.name, STARTING)
        patience_s = SILENT_S if relay.silent else ANSWER_S
        if not relay.silent or self._answered == self._asked:  # nothing piles up for one that reads nothing
            self._asked += 1
            channel.send({"asked": self._asked, "counted": counted})
        asked = self._asked
        with trio.move_on_after(patience_s):
            while self._answered < asked and self._channel is channel:
                await self.changed()
        if self._channel is not channel or self.last is None:
            return Report(self.name, STARTING, pid=self.pid)
        if self._answered < asked:
            relay.silent = True
            return Report(self.name, SILENT, pid=self.pid, samples=growing(self.last.samples))
        return self.last
