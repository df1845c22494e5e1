"""MQTT.js in a node process, driven line by line. Every wait has a deadline."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.kit.broker_process import BrokerProcess

DEADLINE_S = 20.0
FOLDER = Path(__file__).parent / "js"

Event = dict[str, Any]


class JavaScript:
    """Any number of MQTT.js clients in one process."""

    def __init__(self, broker: BrokerProcess, url: str = "") -> None:
        program = shutil.which("node")
        if program is None:
            raise RuntimeError("node is not installed: it is in the Debian package nodejs")
        if not (FOLDER / "node_modules" / "mqtt").is_dir():
            raise RuntimeError("MQTT.js is not installed: `make packages` does it")
        self._url = url or f"mqtt://{broker.host}:{broker.port}"
        self._events: queue.Queue[Event] = queue.Queue()
        self._done: queue.Queue[Event] = queue.Queue()
        self._process = subprocess.Popen(
            [program, str(FOLDER / "driver.mjs")], cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event: Event = json.loads(line)
            (self._done if event["event"] == "done" else self._events).put(event)
        self._process.stdout.close()
        self._done.put({"event": "done", "error": "node ended"})
        self._events.put({"event": "node ended"})

    def ask(self, do: str, client: str, **fields: object) -> Event:
        """Send a command and wait until it is done; the event has `result` or `error`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, "client": client, **fields}) + "\n")
        self._process.stdin.flush()
        try:
            return self._done.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"MQTT.js did not finish {do} {fields} in {DEADLINE_S} s") from None

    def do(self, do: str, client: str, **fields: object) -> Any:
        """As `ask`, for what has to succeed; returns the result."""
        event = self.ask(do, client, **fields)
        assert "error" not in event, event
        return event["result"]

    def connect(self, client: str, version: int = 5, **options: object) -> Event:
        """Connect; returns the CONNACK packet."""
        made: dict[str, object] = {"protocolVersion": version, "clientId": client, **options}
        if version == 3:
            made["protocolId"] = "MQIsdp"
        result: Event = self.do("connect", client, url=self._url, options=made)
        assert "error" not in result, result
        return result

    def event_of_any(self) -> Event:
        """The next event of any kind."""
        try:
            return self._events.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"nothing from MQTT.js in {DEADLINE_S} s") from None

    def event(self, kind: str) -> Event:
        """The next event, which has to be of this kind."""
        event = self.event_of_any()
        assert event["event"] == kind, event
        return event

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)

    def __enter__(self) -> JavaScript:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
