"""A page in headless Chromium, whose functions a test calls. Every wait has a deadline."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.integration.javascript import FOLDER as JAVASCRIPT

DEADLINE_S = 30.0
FOLDER = Path(__file__).parent
_FILES = {
    "/": (FOLDER / "page.html", "text/html"),
    "/mqtt.min.js": (JAVASCRIPT / "node_modules" / "mqtt" / "dist" / "mqtt.min.js", "text/javascript"),
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, kind = _FILES.get(self.path, (None, ""))
        if path is None:
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def website() -> Iterator[str]:
    """Serves the page; gives its origin."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(DEADLINE_S)


class Page:
    """The page of `url` in a browser of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        node, chromium = shutil.which("node"), shutil.which("chromium")
        if node is None or chromium is None:
            raise RuntimeError("node or chromium is not installed: Debian packages nodejs and chromium")
        if not (FOLDER / "node_modules" / "playwright-core").is_dir() or not _FILES["/mqtt.min.js"][0].is_file():
            raise RuntimeError("playwright-core or MQTT.js is not installed: `make packages` does it")
        self._log = folder / "chromium.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [node, str(FOLDER / "driver.mjs"), url, chromium],
                cwd=FOLDER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(json.loads(line))
        self._process.stdout.close()
        self._answers.put({"error": "the browser ended"})

    def call(self, name: str, *arguments: object) -> Any:
        """The result of a function of the page."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        try:
            answer = self._answers.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"{name} did not end in {DEADLINE_S} s: {self._log.read_text()[-2000:]}") from None
        assert "error" not in answer, f"{name}: {answer['error']}: {self._log.read_text()[-2000:]}"
        return answer["result"]

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
