"""The command line clients of Mosquitto: what a user tries first. Every wait has a deadline."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from tests.kit.broker_process import BrokerProcess

DEADLINE_S = 20.0

VERSIONS = {3: "31", 4: "311", 5: "5"}


def find(program: str) -> str:
    """The path of one of the clients; the tests cannot do without them."""
    found = shutil.which(program)
    if found is None:
        raise RuntimeError(f"{program} is not installed: it is in the Debian package mosquitto-clients")
    return found


class Received(NamedTuple):
    """One message as mosquitto_sub printed it."""

    topic: str
    payload: str
    qos: int
    retain: bool
    properties: dict[str, Any]

    @property
    def user_properties(self) -> list[tuple[str, str]]:
        """Names and values in order, with duplicates."""
        return list(self.properties.get("user-properties", []))


def _parse(line: str) -> Received:
    # Pairs, because user properties are an object with repeated names.
    fields: dict[str, Any] = dict(json.loads(line, object_pairs_hook=list))
    properties = dict(fields.get("properties", []))
    payload = fields.get("payload")
    text = "" if payload is None else payload if isinstance(payload, str) else str(payload)
    return Received(fields["topic"], text, fields["qos"], bool(fields["retain"]), properties)


class Subscriber:
    """A running mosquitto_sub, which has subscribed when the constructor returns.

    `filters` are subscribed at `qos`; `arguments` are passed on as they are.
    """

    def __init__(
        self,
        node: BrokerProcess,
        filters: Sequence[str],
        *arguments: str,
        qos: int = 2,
        version: int = 5,
        subscribed: bool = True,
    ) -> None:
        command = ["stdbuf", "-oL", find("mosquitto_sub"), "-h", node.host, "-p", str(node.port)]
        command += ["-V", VERSIONS[version], "-q", str(qos), "-d", "-F", "%j"]
        for name in filters:
            command += ["-t", name]
        self._messages: queue.Queue[Received | None] = queue.Queue()
        self._news = threading.Condition()
        self._ended = False
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            command + list(arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if subscribed:
            self.wait_for("Subscribed (mid")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            if line.startswith("{"):
                self._messages.put(_parse(line))
                continue
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        self._process.stdout.close()
        self._messages.put(None)
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, text: str) -> None:
        """Return once it has printed a line with this text."""
        with self._news:
            self._news.wait_for(lambda: self._ended or self._said(text), DEADLINE_S)
            if not self._said(text):
                raise AssertionError(f"mosquitto_sub did not say {text!r}: {self.lines}")

    def _said(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def take(self) -> Received:
        """The next message."""
        try:
            message = self._messages.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"mosquitto_sub got nothing in {DEADLINE_S} s: {self.lines}") from None
        if message is None:
            raise AssertionError(f"mosquitto_sub ended: {self.lines}")
        return message

    def payloads(self, count: int) -> list[str]:
        """The payloads of the next `count` messages."""
        return [self.take().payload for _ in range(count)]

    def end(self) -> tuple[int, list[Received]]:
        """Wait until it ends by itself; its exit status and the messages nobody took."""
        status = self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        rest: list[Received] = []
        while (message := self._messages.get(timeout=DEADLINE_S)) is not None:
            rest.append(message)
        return status, rest

    def kill(self) -> None:
        """Kill it at once: the connection ends without DISCONNECT."""
        self._process.kill()
        self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)

    def leave(self) -> None:
        """SIGTERM: it sends DISCONNECT (in version 5, with a will: 0x04)."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(2.0)
            except subprocess.TimeoutExpired:
                self.lines.append("killed: its signal handler hangs now and then")
        self.kill()

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


class Request:
    """A running mosquitto_rr, which asked `text` at `topic` and waits for the answer at `response_topic`."""

    def __init__(self, node: BrokerProcess, topic: str, response_topic: str, text: str, *arguments: str) -> None:
        command = [find("mosquitto_rr"), "-h", node.host, "-p", str(node.port), "-V", "5"]
        command += ["-t", topic, "-e", response_topic, "-m", text, "-W", str(int(DEADLINE_S)), *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def answer(self) -> str:
        """Wait for its end and return what it printed."""
        printed, _ = self._process.communicate(timeout=2 * DEADLINE_S)
        return printed.rstrip("\n")


def run(
    program: str, node: BrokerProcess, *arguments: str, version: int = 5, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a client to its end and return what it printed; `text` is its standard input."""
    command = [find(program), "-h", node.host, "-p", str(node.port), "-V", VERSIONS[version], *arguments]
    return subprocess.run(command, input=text or "", capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def publish(
    node: BrokerProcess,
    topic: str,
    payload: str,
    *arguments: str,
    qos: int = 0,
    retain: bool = False,
    version: int = 5,
) -> None:
    """Run mosquitto_pub, which has to succeed; with QoS > 0 the node has acknowledged the message then."""
    retained = ["-r"] if retain else []
    done = run(
        "mosquitto_pub", node, "-t", topic, "-m", payload, "-q", str(qos), *retained, *arguments, version=version
    )
    assert done.returncode == 0, done.stdout + done.stderr
