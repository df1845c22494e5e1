"""The pages of the project as text: their code blocks, links and headings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)(?P=fence)$", re.M | re.S
)
_SHELL = re.compile(r"<!-- shell: ([^>]*?) -->\n\Z")
_LINK = re.compile(r"(!?)\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.M)


class Block(NamedTuple):
    """A code block. `notes` is what a comment right before it says: `<!-- shell: NAME VALUE; NAME VALUE -->`."""

    line: int
    language: str
    text: str
    notes: dict[str, str]


class Link(NamedTuple):
    """A link; `image` if it is one."""

    image: bool
    target: str


def blocks(text: str) -> Iterator[Block]:
    """All fenced blocks in order."""
    for found in _FENCE.finditer(text):
        said = _SHELL.search(text, 0, found.start())
        notes = dict(_note(part) for part in said[1].split("; ")) if said else {}
        yield Block(text.count("\n", 0, found.start()) + 1, found["language"], found["text"], notes)


def _note(part: str) -> tuple[str, str]:
    name, _, value = part.strip().partition(" ")
    return name, value


def prose(text: str) -> str:
    """The page without code, in blocks and in lines."""
    return re.sub(r"`[^`\n]*`", "code", _FENCE.sub("", text))


def links(text: str) -> list[Link]:
    """All links and images outside of code."""
    plain = prose(text)
    pictures = [Link(True, target) for target in re.findall(r'<img src="([^"]+)"', plain)]
    return [Link(bool(found[1]), found[2]) for found in _LINK.finditer(plain)] + pictures


def anchors(text: str) -> set[str]:
    """The names of headings as forges and mkdocs make them."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        plain = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found
