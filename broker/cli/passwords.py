"""`rookery passwd`: users of a file."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("user")
@click.option("-D", "--delete", is_flag=True, help="Remove the user.")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the password from standard input (its first line).")
@click.option("--iterations", type=int, help="Work per login and per guess, 4096 or more. [default: 10000]")
def passwd(file: Path, user: str, delete: bool, from_stdin: bool, iterations: int | None) -> None:
    """Set the password of USER in FILE, a file of the authenticator `password_file`; makes the file if there is none.

    A running node reads the file again on SIGHUP.
    """
    from broker.auth import scram

    try:
        name = scram.saslprep(user)
    except ValueError as error:
        raise click.UsageError(f"user name {user!r}: {error}") from None
    if name != name.strip() or name.startswith("#") or len(name.encode()) > scram.MAX_SECRET_BYTES:
        raise click.UsageError(f"user name {user!r}: too long, begins with #, or begins or ends with a space")
    lines = _user_lines(file)
    others = [line for line in lines if _user_of(line) != name]
    if delete:
        if len(others) == len(lines):
            raise click.ClickException(f"{file} has no user {user!r}")
        lines = others
    else:
        try:
            verifier = scram.make_verifier(_password(user, from_stdin), iterations or scram.DEFAULT_ITERATIONS)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        entry = f"{name}:{verifier}"
        if len(others) == len(lines):
            lines = [*lines, entry]
        else:
            lines = [entry if _user_of(line) == name else line for line in lines]
    _replace(file, "".join(f"{line}\n" for line in lines))


def _password(user: str, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    return str(click.prompt(f"Password for {user}", hide_input=True, confirmation_prompt=True, err=True))


def _user_lines(file: Path) -> list[str]:
    """The lines of a users file that is valid (ConfigError if not), comments included; none if there is no file."""
    if not file.exists():
        return []
    from broker.auth.users import UserFile

    UserFile(file)
    return file.read_text("utf-8-sig").removesuffix("\n").split("\n")


def _user_of(line: str) -> str:
    """The name in a line of a valid users file, in the spelling that is compared; empty for a comment."""
    from broker.auth import scram

    name, found, _ = line.strip().rpartition(f":{scram.METHOD}$")
    return scram.saslprep(name) if found and not name.startswith("#") else ""


def _replace(file: Path, text: str) -> None:
    """Write the file so that a reader sees the old or the new one, and nobody else may read it."""
    target = file.resolve()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
