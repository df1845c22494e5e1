"""Listening sockets that are files."""

from __future__ import annotations

import os
import socket
import stat

from broker.errors import ConfigError


class UnixSocket(socket.socket):
    """Bound to a file, which is removed when it is closed."""

    _path: str | None = None
    _file: tuple[int, int] = (0, 0)

    def own(self, path: str) -> None:
        """`path` is this one's file."""
        self._path, self._file = path, _identity(path)

    def close(self) -> None:
        path, self._path = self._path, None
        try:
            # By now it may be somebody else's.
            if path is not None and _identity(path) == self._file:
                os.unlink(path)
        except OSError:
            pass
        finally:
            super().close()


def bind_unix(path: str, mode: int) -> UnixSocket:
    """Listens at once, unlike TCP: whoever starts meanwhile must see that the file is in use. The file of a process
    that is gone is replaced; ConfigError if one is there that is used, or if it cannot be made."""
    try:
        _remove_stale(path)
        taken = UnixSocket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o777 & ~mode)
        try:
            taken.bind(path)
            taken.own(path)
            os.chmod(path, mode)
            taken.listen(socket.SOMAXCONN)
        except OSError:
            taken.close()
            raise
        finally:
            os.umask(before)
    except OSError as error:
        raise ConfigError(f"listen = unix://{path}: {error.strerror or error}") from None
    return taken


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"listen = unix://{path}: something else has this name")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # alive, with a full backlog
    raise ConfigError(f"listen = unix://{path}: another process listens there")


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
