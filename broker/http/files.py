"""Pages and what they need: the files of a folder of this package, and nothing else."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Final

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from broker.http.credentials import Credentials
from broker.http.front import Methods

HERE: Final = Path(__file__).parent

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
#: What is not compressed already.
_COMPRESSED: Final = frozenset({".html", ".js", ".css", ".svg", ".json", ".webmanifest", ".txt", ".md"})


class File:
    """One file, read when it is first asked for and when it changes."""

    def __init__(self, path: Path, credentials: Credentials) -> None:
        self._path = path
        self._credentials = credentials
        self._read_at: tuple[int, int] = (0, 0)
        self._content = self._zipped = b""
        self._etag = ""

    async def answer(self, request: Request) -> Response:
        """GET."""
        self._credentials.admit_stranger(request)
        told = self._path.stat()
        if self._read_at != (told.st_mtime_ns, told.st_size):
            await trio.to_thread.run_sync(self._read)
            self._read_at = (told.st_mtime_ns, told.st_size)
        headers = {"ETag": self._etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
        if self._etag in known:
            return Response(status_code=304, headers=headers)
        content = self._content
        if self._zipped and "gzip" in request.headers.get("accept-encoding", ""):
            content = self._zipped
            headers["Content-Encoding"] = "gzip"
        return Response(content, headers=headers, media_type=_TYPES[self._path.suffix])

    def _read(self) -> None:
        content = self._path.read_bytes()
        zipped = gzip.compress(content, 6, mtime=0) if self._path.suffix in _COMPRESSED else b""
        self._etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        self._content, self._zipped = content, zipped if len(zipped) < len(content) else b""


def routes(folder: str, prefix: str, credentials: Credentials) -> list[BaseRoute]:
    """Of the files of a folder beside this module that pages may have; `index.html` stands for the folder itself."""
    found: list[BaseRoute] = []
    root = HERE / folder
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.suffix not in _TYPES:
            continue
        name = path.relative_to(root).as_posix()
        answers = Methods(GET=File(path, credentials).answer)
        found.append(Route(f"{prefix}/{name}", answers))
        if name == "index.html":
            found.append(Route(prefix or "/", answers))
    return found
