"""Headless Chromium that a test steers in Playwright's own words. Every wait has a deadline."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

FOLDER = Path(__file__).parent
#: Of one wait in the browser; a whole step may take a few of them.
WAIT_S = 20.0
STEP_S = 90.0


class Pilot:
    """One browser with pages by name, each with cookies of its own, of the dashboard at `origin`."""

    def __init__(self, origin: str, folder: Path) -> None:
        node, chromium = shutil.which("node"), shutil.which("chromium")
        if node is None or chromium is None:
            raise RuntimeError("node or chromium is not installed: Debian packages nodejs and chromium")
        if not (FOLDER / "node_modules" / "playwright-core").is_dir():
            raise RuntimeError("playwright-core is not installed: `make packages` does it")
        self._log = folder / "chromium.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [node, str(FOLDER / "pilot.mjs"), origin, chromium, str(WAIT_S * 1000)],
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

    def run(self, page: str | None, code: str, **given: object) -> Any:
        """The result of the body of an async JavaScript function of (page, given)."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"page": page, "code": code, "given": given}) + "\n")
        self._process.stdin.flush()
        try:
            answer = self._answers.get(timeout=STEP_S)
        except queue.Empty:
            raise AssertionError(f"no end in {STEP_S} s: {code}: {self._log.read_text()[-2000:]}") from None
        assert "error" not in answer, f"{code}: {answer['error']}: {self._log.read_text()[-2000:]}"
        return answer["result"]

    def complaints(self) -> list[str]:
        """What pages did since the last call that they should not: errors, broken policy, requests to other origins."""
        found: list[str] = self.run(None, "")
        return found

    def __enter__(self) -> Pilot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STEP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STEP_S)
        self._reader.join(STEP_S)
