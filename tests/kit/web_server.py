"""nginx in a folder of its own, before a small service: what a broker meets when it asks web services."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.kit.certificates import Issued

STOP_S = 10.0
_BACKEND = Path(__file__).with_name("web_backend.py")

_CONFIGURATION = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_timeout 60s;
  server {{
    listen 127.0.0.1:{port}{secure};
    root {folder}/files;
    location ~ ^/(auth|acl|odd) {{
      proxy_pass http://unix:{folder}/socket:$request_uri;
      proxy_http_version 1.1;
      proxy_buffering off;
    }}
  }}
}}
"""


class WebServer:
    """nginx, with the files in `folder`/files, before the service of `web_backend`; a context manager.

    `stop` and `start` keep the port. `users` and `acl` are what the service knows, `questions` what it was asked.
    """

    def __init__(self, folder: Path, certificate: Issued | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "files").mkdir(exist_ok=True)
        self.folder = folder
        self.port = 0
        self._certificate = certificate
        self._nginx: subprocess.Popen[bytes] | None = None
        self._backend: subprocess.Popen[str] | None = None
        self.users({})
        self.acl([])

    @property
    def url(self) -> str:
        """Without a path."""
        origin = "http://127.0.0.1" if self._certificate is None else "https://localhost"
        return f"{origin}:{self.port}"

    def file(self, name: str, data: str | bytes) -> str:
        """Serve a file, or another one from now on; its URL."""
        path = self.folder / "files" / name
        temporary = path.with_suffix(".new")
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        temporary.replace(path)
        return f"{self.url}/{name}"

    def users(self, users: dict[str, Any]) -> None:
        """Set the users of `/auth`: name -> {"password": TEXT, "answer": {...}}."""
        self._write("users.json", users)

    def acl(self, rules: list[tuple[str, str, str, str]]) -> None:
        """Set the rules of `/acl`: user name, action, topic, result."""
        self._write("acl.json", rules)

    def _write(self, name: str, value: object) -> None:
        temporary = self.folder / f"{name}.new"
        temporary.write_text(json.dumps(value))
        temporary.replace(self.folder / name)

    def questions(self, path: str = "/") -> list[dict[str, Any]]:
        """What the service was asked, in order."""
        try:
            lines = (self.folder / "questions.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [asked for line in lines if (asked := json.loads(line))["path"].startswith(path)]

    def requests(self, path: str) -> int:
        """How many requests for a path nginx has answered."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return sum(f" {path} " in line for line in lines)

    def start(self) -> None:
        """Start nginx; the socket is bound here and inherited, so that it accepts at once and on a free port."""
        program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
        if program is None:
            raise RuntimeError("nginx is not installed: it is in the Debian package nginx-light")
        bound = socket.socket()
        with bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(("127.0.0.1", self.port))
            bound.listen(128)
            self.port = bound.getsockname()[1]
            secure = ""
            if self._certificate is not None:
                given = self._certificate
                secure = f" ssl; ssl_certificate {given.certfile}; ssl_certificate_key {given.keyfile}"
            configuration = self.folder / "nginx.conf"
            configuration.write_text(_CONFIGURATION.format(folder=self.folder, port=self.port, secure=secure))
            self._nginx = subprocess.Popen(
                [program, "-p", str(self.folder), "-e", str(self.folder / "error.log"), "-c", str(configuration)],
                env={**os.environ, "NGINX": f"{bound.fileno()};"},
                pass_fds=[bound.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        if self._nginx.poll() is not None:
            raise RuntimeError((self.folder / "error.log").read_text())

    def stop(self) -> None:
        """End nginx: nobody listens any more."""
        if self._nginx is not None:
            self._nginx.terminate()
            self._nginx.wait(STOP_S)
            self._nginx = None

    def __enter__(self) -> WebServer:
        (self.folder / "socket").unlink(missing_ok=True)
        self._backend = subprocess.Popen(
            [sys.executable, str(_BACKEND), str(self.folder)], stdout=subprocess.PIPE, text=True
        )
        assert self._backend.stdout is not None
        assert self._backend.stdout.readline() == "ready\n"
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert self._backend is not None
        self._backend.terminate()
        self._backend.wait(STOP_S)
        assert self._backend.stdout is not None
        self._backend.stdout.close()
