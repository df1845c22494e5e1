"""The pages hang together: links, anchors, pictures, navigation; and they build as a site that asks nobody else."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import DOCS, ROOT, anchors, links

GENERATED = re.compile(r"^<!-- Generated from ", re.MULTILINE)
MAX_LINES = 300

PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
]

#: Lines of README.md: it stays one page.
README_LINES = 110

#: What a built page loads by itself.
LOADED = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?((?:https?:)?//[^"'\s>]+)""")
LINKED = re.compile(r"""<link[^>]*\shref=["']?((?:https?:)?//[^"'\s>]+)""")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_and_pictures_are_there(page: Path) -> None:
    wrong = []
    for link in links(page.read_text("utf-8")):
        if re.match(r"https?:|mailto:", link.target):
            assert not link.image, f"a picture from elsewhere: {link.target}"
            continue
        path, _, anchor = link.target.partition("#")
        target = (page.parent / path).resolve() if path else page
        there = target.exists() and target.is_relative_to(ROOT)
        if there and anchor:
            there = target.suffix == ".md" and anchor in anchors(target.read_text("utf-8"))
        if not there:
            wrong.append(link.target)
    assert not wrong


def test_a_wrong_anchor_is_found() -> None:
    assert anchors("# What `it` means, and why\n\n```\n# not one\n```\n## A [b](c.md)\n") == {
        "what-it-means-and-why",
        "a-b",
    }
    assert [link.target for link in links("`[a](b)` [`c`](d.md#e) ![f](g.png)")] == ["d.md#e", "g.png"]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_pages_are_short(page: Path) -> None:
    text = page.read_text("utf-8")
    lines = text.count("\n")
    if page.name == "README.md" and page.parent == ROOT:
        assert lines <= README_LINES
    elif page.name != "CHANGELOG.md" and not GENERATED.search(text):
        assert lines <= MAX_LINES


def _navigation(entries: object) -> Iterator[str]:
    if isinstance(entries, str):
        yield entries
    elif isinstance(entries, list):
        for entry in entries:
            yield from _navigation(entry)
    elif isinstance(entries, dict):
        for value in entries.values():
            yield from _navigation(value)


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    listed = list(_navigation(config["nav"]))
    assert len(listed) == len(set(listed))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    decisions = {page for page in pages if page.startswith("adr/0")}
    assert set(listed) == pages - decisions
    index = (DOCS / "adr" / "README.md").read_text("utf-8")
    for page in decisions:
        assert page.removeprefix("adr/") in index, page


def test_every_picture_is_used() -> None:
    used = {
        (page.parent / link.target).resolve() for page in PAGES for link in links(page.read_text("utf-8")) if link.image
    }
    pictures = {path for path in (DOCS / "images").iterdir() if path.suffix in (".png", ".svg")}
    assert pictures - used == set()


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text("utf-8")
        assert not LOADED.search(text), page
        assert not [url for url in LINKED.findall(text) if "canonical" not in url], page
