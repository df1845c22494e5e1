"""Connections that only stay open, held by processes of their own: `python -m loadtest.idle HOST:PORT VERSION COUNT`.

A process holds as many as its limit of open files allows. It writes a line when all are connected and leaves when its
standard input ends.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from loadtest.client import Client, LoadError
from loadtest.engine import LONGEST_NAP_S, Engine
from loadtest.targets import host_port

PER_PROCESS = 10_000


@contextmanager
def held(address: tuple[str, int], version: int, count: int) -> Iterator[list[int]]:
    """Hold `count` connections for the duration of the block, which gets the processes that do it."""
    with ExitStack() as stack:
        pids = []
        while count > 0:
            part = min(count, PER_PROCESS)
            command = [sys.executable, "-m", "loadtest.idle", f"{address[0]}:{address[1]}", str(version), str(part)]
            child = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert child.stdin is not None and child.stdout is not None
            stack.callback(child.stdin.close)
            if not child.stdout.readline():
                raise LoadError(f"{part} idle connections could not be made")
            pids.append(child.pid)
            count -= part
        yield pids


def main(arguments: list[str]) -> int:
    """Hold connections until standard input ends."""
    engine = Engine(host_port(arguments[0]), int(arguments[1]))
    try:
        engine.open([Client(engine, f"idle{os.getpid()}-{i}") for i in range(int(arguments[2]))])
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            engine.turn(LONGEST_NAP_S)
    except (LoadError, OSError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 2
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
