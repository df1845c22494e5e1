"""mosquitto.conf as a list of lines, its include_dir followed."""

from __future__ import annotations

from pathlib import Path

from broker.errors import ConfigError

#: Files that include each other in a circle end here.
MAX_FILES = 1000


class Line:
    """One `key value` with the place it stands at."""

    __slots__ = ("file", "key", "number", "value")

    def __init__(self, file: Path, number: int, key: str, value: str) -> None:
        self.file = file
        self.number = number
        self.key = key
        self.value = value

    def __str__(self) -> str:
        secret = any(word in self.key for word in ("password", "auth_opt", "plugin_opt", "psk", "secret"))
        value = "***" if secret and not self.value.startswith("/") else self.value
        return f"{self.file.name}:{self.number}: {self.key} {value}".rstrip()


def read_lines(path: Path) -> list[Line]:
    """All lines that say something, in the order in which Mosquitto reads them; ConfigError for a file that cannot be
    read."""
    found: list[Line] = []
    _read(path, found, [])
    return found


def _read(path: Path, found: list[Line], seen: list[Path]) -> None:
    seen.append(path)
    if len(seen) > MAX_FILES:
        raise ConfigError(f"{path}: more than {MAX_FILES} files are included")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read it: {error}") from None
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        key, _, value = line.replace("\t", " ").partition(" ")
        if key == "include_dir":
            folder = Path(value.strip())
            if not folder.is_dir():
                raise ConfigError(f"{path}:{number}: include_dir {value.strip()!r} is no folder")
            # Mosquitto sorts without regard to case.
            for each in sorted(folder.glob("*.conf"), key=lambda item: item.name.lower()):
                _read(each, found, seen)
            continue
        found.append(Line(path, number, key, value.strip()))
