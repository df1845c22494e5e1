"""A small authentication service as users write them: plain http.server on a Unix socket, in a process of its own.

    python web_backend.py FOLDER

It listens on FOLDER/socket, reads FOLDER/users.json and FOLDER/acl.json for every question and appends each question to
FOLDER/questions.jsonl. It knows nothing of the broker's code.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
_writing = threading.Lock()
_never = threading.Event()
_here: list[object] = []


class Server(ThreadingMixIn, UnixStreamServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 128


class Handler(BaseHTTPRequestHandler):
    """Answers `/auth`, `/acl` and, under `/odd/`, what no client should accept."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A question in the query."""
        self._question(dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True)))

    def do_POST(self) -> None:
        """A question as JSON."""
        self._question(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _question(self, asked: dict[str, Any]) -> None:
        path = urlsplit(self.path).path
        with _writing, (FOLDER / "questions.jsonl").open("a") as file:
            headers = {name.lower(): value for name, value in self.headers.items()}
            file.write(json.dumps({"path": path, "asked": asked, "headers": headers}) + "\n")
        if path.startswith("/auth"):
            self._auth(asked)
        elif path.startswith("/acl"):
            self._acl(asked)
        else:
            self._odd(path.rpartition("/")[2])

    def _auth(self, asked: dict[str, Any]) -> None:
        user = json.loads((FOLDER / "users.json").read_text()).get(asked["username"])
        if user is None:
            self._answer(200, {"result": "ignore"})
        elif user["password"] != asked["password"]:
            self._answer(user.get("refusal", 200), {"result": "deny"})
        else:
            self._answer(user.get("status", 200), {"result": "allow", **user.get("answer", {})})

    def _acl(self, asked: dict[str, Any]) -> None:
        for username, action, topic, result in json.loads((FOLDER / "acl.json").read_text()):
            if username == asked["username"] and action in (asked["action"], "all") and topic == asked["topic"]:
                self._answer(200, {"result": result})
                return
        self._answer(403, {})

    def _odd(self, what: str) -> None:
        match what:
            case "never":
                _never.wait()
            case "crowd":  # how many are here at a time, each for a moment
                with _writing:
                    _here.append(self)
                    count = len(_here)
                _never.wait(0.05)
                with _writing:
                    _here.remove(self)
                self._answer(200, {"result": "allow", "client_attrs": {"here": count}})
            case "redirect":
                self._answer(302, {"result": "allow"}, {"Location": "/auth"})
            case "error":
                self._answer(500, {"result": "allow"})
            case "html":
                self._answer(200, "<html>allow</html>")
            case "nonsense":
                self._answer(200, {"result": "yes"})
            case "deep":
                self._answer(200, "[" * 50_000)
            case "huge":
                self._answer(200, {"result": "allow", "more": "x" * 1_000_000})
            case "packed":
                self._answer(200, {"result": "allow"}, {"Content-Encoding": "gzip"})
            case "cookie":
                self._answer(200, {"result": "allow"}, {"Set-Cookie": "who=somebody; Path=/"})
            case "hangup":
                self.close_connection = True
            case _:
                self._answer(404, {})

    def _answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        data = b"" if status == 204 else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        """Unix sockets have none."""
        return "-"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Nothing: questions.jsonl is the log."""


if __name__ == "__main__":
    with Server(str(FOLDER / "socket"), Handler) as server:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        server.serve_forever()
