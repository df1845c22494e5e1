"""`rookery passwd`: users of a file."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

HASHES = ("sha512-pbkdf2", "argon2id", "scram-sha-256", "scram-sha-512")

F = TypeVar("F", bound=Callable[..., object])

_HASH_HELP = """How the password is hashed. sha512-pbkdf2 ($7$) is read by every Mosquitto since 2.0 and needs no
extra; argon2id costs an attacker more and is read by Mosquitto since 2.1; the scram ones are read by this broker
alone. [default: sha512-pbkdf2]"""
_SCRAM_HELP = """Add verifiers for SCRAM-SHA-256 and SCRAM-SHA-512, so that the password works for these methods of MQTT
5, too. Who has some keeps some: they are made anew with the password."""
_ITERATIONS_HELP = """Work per login and per guess, for sha512-pbkdf2 and scram (at least 4096). Passwords made by a
machine need little. [default: 210000, scram 10000]"""


def password_options(command: F) -> F:
    """Options of commands that hash a password."""
    for decorate in (
        click.option("--iterations", type=click.IntRange(1, 10_000_000), help=_ITERATIONS_HELP),
        click.option("--stdin", "from_stdin", is_flag=True, help="Read the password from standard input (one line)."),
        click.option("--scram", is_flag=True, help=_SCRAM_HELP),
        click.option("-H", "--hash", "kind", type=click.Choice(HASHES), help=_HASH_HELP),
    ):
        command = decorate(command)
    return command


@click.command()
@click.option("-c", "--create", is_flag=True, help="Make the file anew, even if there is one.")
@click.option("-b", "--batch", is_flag=True, help="Take PASSWORD from the command line, where others may see it.")
@click.option("-D", "--delete", is_flag=True, help="Remove the user.")
@click.option("-U", "--upgrade", is_flag=True, help="Hash the passwords of a file that has plain ones.")
@password_options
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("user", required=False)
@click.argument("password", required=False)
def passwd(
    file: Path,
    user: str | None,
    password: str | None,
    create: bool,
    batch: bool,
    delete: bool,
    upgrade: bool,
    kind: str | None,
    scram: bool,
    from_stdin: bool,
    iterations: int | None,
) -> None:
    """Set the password of USER in FILE, a file of the authenticator `password_file`; makes the file if there is none.

    The file is one of mosquitto_passwd, and may go to and fro between the two. A running node reads it again when it
    changes. A user name with a colon is for this broker alone.
    """
    if upgrade:
        if user is not None or create or delete or batch or from_stdin:
            raise click.UsageError("-U takes only FILE, and how to hash")
        _replace(file, _upgraded(file, kind, scram, iterations))
        return
    if user is None or (create and delete) or (password is not None) != batch or (batch and (delete or from_stdin)):
        raise click.UsageError("give FILE USER, or -b FILE USER PASSWORD, or -D FILE USER, or -U FILE")
    name = checked_name(user)
    lines = [] if create else _user_lines(file)
    mine = [line for line in lines if _user_of(line) == name]
    if delete:
        if not mine:
            raise click.ClickException(f"{file} has no user {user!r}")
        made: list[str] = []
    else:
        if password is None:
            password = asked_password(user, from_stdin)
        had = [line.rpartition(":SCRAM-")[2].partition("$")[0] for line in mine if ":SCRAM-" in line]
        made = [
            f"{name}:{text}" for text in hashed(password, kind, scram, iterations, [f"SCRAM-{each}" for each in had])
        ]
    place = lines.index(mine[0]) if mine else len(lines)
    rest = [line for line in lines if _user_of(line) != name]
    _replace(file, [*rest[:place], *made, *rest[place:]])


def checked_name(user: str) -> str:
    """The spelling of a user's name that is kept; UsageError for one that cannot be."""
    from broker.auth.accounts import usable_name

    try:
        return usable_name(user)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def hashed(
    password: str, kind: str | None, with_scram: bool, iterations: int | None, had: Sequence[str] = ()
) -> list[str]:
    """See `broker.auth.accounts`. UsageError, ConfigError."""
    from broker.auth import accounts

    try:
        return accounts.hashed(password, kind, with_scram, iterations, had)
    except ValueError as error:
        raise click.UsageError(f"the password cannot be used: {error}") from None


def asked_password(user: str, from_stdin: bool) -> str:
    """From standard input, or by asking twice."""
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    return str(click.prompt(f"Password for {user}", hide_input=True, confirmation_prompt=True, err=True))


def _user_lines(file: Path) -> list[str]:
    """The lines of a users file that is valid (ConfigError if not), comments included; none if there is no file."""
    if not file.exists():
        return []
    from broker.auth.password_file import UserFile

    UserFile(file)
    return _lines(file)


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise click.ClickException(f"{file} is not UTF-8") from None
    return text.removesuffix("\n").split("\n") if text else []


def _user_of(line: str) -> str:
    """The name in a line of a valid users file, in the spelling that is compared; empty for a comment."""
    from broker.auth.password_file import split_line

    line = line.strip()
    return split_line(line.encode())[0] if line and not line.startswith("#") else ""


def _upgraded(file: Path, kind: str | None, with_scram: bool, iterations: int | None) -> list[str]:
    """The lines of a file with `user:password` lines, hashed; what is a hash already stays."""
    from broker.auth.hashes import parse_hash
    from broker.auth.password_file import split_line
    from broker.errors import ConfigError

    made: list[str] = []
    for number, line in enumerate(_lines(file), start=1):
        stripped = line.strip("\r")
        if not stripped.strip() or stripped.startswith("#"):
            made.append(stripped)
            continue
        try:
            parse_hash(split_line(stripped.strip().encode())[1])
            made.append(stripped)
            continue
        except ConfigError:
            raise
        except ValueError:
            pass
        user, found, password = stripped.partition(":")
        if not found or not password:
            raise click.ClickException(f"{file}, line {number}: not <user>:<password>")
        name = checked_name(user)
        made += [f"{name}:{text}" for text in hashed(password, kind, with_scram, iterations)]
    return made


def _replace(file: Path, lines: Sequence[str]) -> None:
    """Write the file so that a reader sees the old or the new one; a new one is for its owner alone."""
    target = file.resolve()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            with contextlib.suppress(FileNotFoundError):
                before = target.stat()
                os.fchmod(descriptor, before.st_mode & 0o777)
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
            stream.write("".join(f"{line}\n" for line in lines))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
