"""What the site of mkdocs.yml needs beyond plain Markdown: links to files that are not pages."""

from __future__ import annotations

import posixpath
import re
from typing import Any

#: Where the files of the project are shown; links between pages stay relative.
SOURCE = "https://github.com/rookery-mqtt/rookery/blob/main/"

_LINK = re.compile(r"(\]\()(\.\./[^)\s]*)(\))")


def outside(page: str, target: str) -> str | None:
    """The path in the project of a link of a page that leads out of docs/; None if it does not."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith(("docs/", "../")) else path


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""

    def linked(found: re.Match[str]) -> str:
        path = outside(page.file.src_uri, found[2])
        return found[0] if path is None else f"{found[1]}{SOURCE}{path}{found[3]}"

    return _LINK.sub(linked, markdown)
