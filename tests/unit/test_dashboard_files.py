"""The files of the dashboard: vendored ones are what they were, own ones are small, and make no HTML of text."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "broker" / "http" / "dashboard"
VENDOR = FOLDER / "vendor"
OWN = sorted(path for path in FOLDER.rglob("*") if path.is_file() and VENDOR not in path.parents)

SUMS = {
    "mqtt.LICENSE.txt": "81b51ef8ac2a8ac8f111ed34ab1a32d63e7f4f7de586bd65f5510fb1ba3a89eb",
    "mqtt.min.js": "f3cbeae580d3010048938ee370f2db0c15d16e6f7fc147cb32ae5510e571b387",
    "uPlot.LICENSE.txt": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}

#: All of the own JavaScript, in bytes.
SCRIPTS_MAX = 100_000

#: Ways to make HTML or code of text; what clients choose must never get there.
UNSAFE = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|\beval\(|new Function|setHTML"
)


def test_vendored_files_are_what_they_were() -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()}
    found.pop("README.md")
    assert found == SUMS


def test_own_scripts_are_small() -> None:
    assert sum(path.stat().st_size for path in OWN if path.suffix == ".js") < SCRIPTS_MAX


@pytest.mark.parametrize("path", OWN, ids=lambda path: str(path.relative_to(FOLDER)))
def test_text_is_no_html_and_nothing_is_inline(path: Path) -> None:
    text = path.read_text("utf-8")
    if path.suffix == ".js":
        assert not UNSAFE.search(text)
    if path.suffix == ".html":
        assert not re.search(r"<style|style=|\son\w+=|<script>|javascript:", text)
    assert not re.search(r"""(src|href|url\(|import|from)\s*[=(]?\s*["'](https?:)?//""", text), (
        "nothing comes from elsewhere"
    )
