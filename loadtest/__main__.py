"""`rookery-loadtest`, `python -m loadtest`: put a broker under load, and see what it does."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from broker import __version__

USAGE = """\
usage: rookery-loadtest COMMAND ...

Put MQTT brokers under load, count exactly what is lost, repeated or reordered, and see how fast they are.

  run SCENARIO...   run scenarios against a broker (without --target against a node of its own)
  list              the scenarios that come along
  show NAME         print one as TOML: a start for your own
  compare           run scenarios against several brokers side by side, and print ratios
  report FILE       print a recorded report again
  bench             this build against recorded figures
  growth            how cost grows with connections, subscribers, payloads, filters and nodes
  memory            bytes that connections, subscriptions, routes and messages take
  routes            what subscribing costs a cluster, and how often it may be done
  size              what a cluster takes for so many clients: computed, not measured

`rookery-loadtest COMMAND --help` tells the options. --version prints the version.
Exit status: 0 fine; 1 usage; 2 connection or protocol trouble; 3 loss, duplicates or reordering where the QoS
forbids it; 130 interrupted.
"""


def _command(name: str) -> Callable[[Sequence[str]], int] | None:
    """Return what serves a command, imported when it is asked for."""
    if name in ("run", "list", "show"):
        from loadtest import command

        return {"run": command.run, "list": command.list_, "show": command.show}[name]
    if name in ("compare", "report", "bench", "growth", "memory", "routes", "size"):
        found: Callable[[Sequence[str]], int] = import_module(f"loadtest.{name}").main
        return found
    return None


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 1
    if arguments[0] == "--version":
        print(f"rookery-loadtest {__version__}")
        return 0
    found = _command(arguments[0])
    if found is None:
        print(f"rookery-loadtest: no command {arguments[0]!r}; see rookery-loadtest --help", file=sys.stderr)
        return 1
    try:
        return found(arguments[1:])
    except KeyboardInterrupt:
        return 130
    except SystemExit as left:  # argparse leaves with 2 for usage, which means something else here
        return 1 if left.code == 2 else int(left.code or 0)


def console() -> None:
    """Be the command `rookery-loadtest`."""
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has enough; what the end of Python would flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


if __name__ == "__main__":
    console()
