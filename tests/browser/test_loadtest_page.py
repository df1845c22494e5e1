"""The page of a load test in a real browser: it needs nobody, says nothing to the console, and fits a phone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtest.report import write_html
from tests.browser.pilot import Pilot
from tests.kit.load_results import drawn, report, result

HOSTILE = (
    "</title></style></svg><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
)
_DEADLINE_S = 30.0


@contextmanager
def _serving(page: bytes) -> Iterator[tuple[str, list[str]]]:
    """The origin that serves `page`, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(_DEADLINE_S)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_alone_and_is_read_on_a_phone(tmp_path: Path, scheme: str) -> None:
    hostile = drawn("fanin", HOSTILE, 300.0, title=HOSTILE)
    hostile.settings[HOSTILE] = HOSTILE
    hostile.messages.append(HOSTILE)
    made = report(
        drawn("p2p1", "mosquitto", 50_000.0),
        drawn("p2p1", "rookery", 200_000.0, 0.5),
        hostile,
        result("p2p0", "rookery", None, None, failure=HOSTILE),
    )
    write_html(tmp_path / "page.html", made)
    with _serving((tmp_path / "page.html").read_bytes()) as (origin, asked), Pilot(origin, tmp_path) as browser:
        found = browser.run(
            "page",
            """await page.emulateMedia({ colorScheme: given.scheme });
            await page.setViewportSize({ width: 360, height: 740 });
            await page.goto("/report.html");
            for (const each of await page.locator("summary").all()) await each.click();
            return await page.evaluate(() => ({
              title: document.title,
              wide: document.documentElement.scrollWidth,
              plots: [...document.querySelectorAll("svg")].map((each) => each.getAttribute("aria-label")),
              tables: document.querySelectorAll("figure").length === document.querySelectorAll("figure table").length,
              size: Math.min(...[...document.querySelectorAll("svg text")]
                .map((each) => each.getBoundingClientRect().height)),
              paper: getComputedStyle(document.querySelector("figure")).backgroundColor,
              scripts: document.scripts.length,
              images: document.images.length,
            }));""",
            scheme=scheme,
        )
        assert browser.complaints() == []
    assert asked == ["/report.html"]
    assert found["title"] == "Load test: 3 scenarios"
    assert found["wide"] <= 360
    assert found["plots"][:2] == ["Messages delivered", "CPU"]
    assert found["tables"]
    assert found["size"] >= 10
    assert found["paper"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 27, 34)"}[scheme]
    assert (found["scripts"], found["images"]) == (0, 0)
