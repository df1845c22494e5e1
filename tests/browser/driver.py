"""Node with a script that drives Chromium: a JSON line in, a JSON line out."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FOLDER = Path(__file__).parent


class Driver:
    """The process, until the end of the `with` block."""

    def __init__(self, script: str, target: str, *arguments: str, folder: Path, deadline_s: float) -> None:
        node, chromium = shutil.which("node"), shutil.which("chromium")
        if node is None or chromium is None:
            raise RuntimeError("node or chromium is not installed: Debian packages nodejs and chromium")
        if not (FOLDER / "node_modules" / "playwright-core").is_dir():
            raise RuntimeError("playwright-core is not installed: `make packages` does it")
        self._deadline_s = deadline_s
        self._log = folder / "chromium.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [node, str(FOLDER / script), target, chromium, *arguments],
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

    def ask(self, question: object, what: str) -> Any:
        """The script's answer; AssertionError, with `what` was asked, for an error or none in time."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        try:
            answer = self._answers.get(timeout=self._deadline_s)
        except queue.Empty:
            raise AssertionError(f"no end in {self._deadline_s} s: {what}: {self._log.read_text()[-2000:]}") from None
        assert "error" not in answer, f"{what}: {answer['error']}: {self._log.read_text()[-2000:]}"
        return answer["result"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(self._deadline_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(self._deadline_s)
        self._reader.join(self._deadline_s)
