"""A page in headless Chromium, whose functions a test calls. Every wait has a deadline."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.browser.driver import Driver
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


class Page(Driver):
    """The page of `url` in a browser of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        if not _FILES["/mqtt.min.js"][0].is_file():
            raise RuntimeError("MQTT.js is not installed: `make packages` does it")
        super().__init__("driver.mjs", url, folder=folder, deadline_s=DEADLINE_S)

    def call(self, name: str, *arguments: object) -> Any:
        """The result of a function of the page."""
        return self.ask([name, *arguments], name)
