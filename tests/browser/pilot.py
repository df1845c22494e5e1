"""Headless Chromium that a test steers in Playwright's own words. Every wait has a deadline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.browser.driver import Driver

#: Of one wait in the browser; a whole step may take a few of them.
WAIT_S = 20.0
STEP_S = 90.0


class Pilot(Driver):
    """One browser with pages by name, each with cookies of its own, of the dashboard at `origin`."""

    def __init__(self, origin: str, folder: Path) -> None:
        super().__init__("pilot.mjs", origin, str(WAIT_S * 1000), folder=folder, deadline_s=STEP_S)

    def run(self, page: str | None, code: str, **given: object) -> Any:
        """The result of the body of an async JavaScript function of (page, given)."""
        return self.ask({"page": page, "code": code, "given": given}, code)

    def complaints(self) -> list[str]:
        """What pages did since the last call that they should not: errors, broken policy, requests to other origins."""
        found: list[str] = self.run(None, "")
        return found
