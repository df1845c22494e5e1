"""What every process of the broker does the same way: its end, its limits, the file that says it is ready."""

from __future__ import annotations

import gc
import json
import resource
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import trio

from broker.errors import BrokerError, ConfigError

OK = 0
FAILED = 1
MISCONFIGURED = 2

#: How long a process may take to end after its drain.
STOP_S = 15.0

#: Net allocations before the youngest objects are looked at, and how many of these looks make one at the older ones.
#: A busy node holds ten thousands of messages: with Python's own 700, 10, 10 a fifth of its time went there.
_GC_THRESHOLDS = (20_000, 50, 100)


def run_to_the_end(serve: Callable[[], Awaitable[int]]) -> int:
    """Run `serve` and return the exit status: what it returns, or the one for its error, told in one line on standard
    error. What is no error of the broker or of the system is a defect, and raised."""
    gc.set_threshold(*_GC_THRESHOLDS)
    gc.freeze()  # modules and classes stay
    try:
        return trio.run(serve)
    except BaseExceptionGroup as group:
        errors = list(causes(group))
        if not all(isinstance(each, (BrokerError, OSError, KeyboardInterrupt)) for each in errors):
            raise
        error = errors[0]
        if isinstance(error, KeyboardInterrupt):
            return OK
    except (BrokerError, OSError) as single:
        error = single
    sys.stderr.write(f"rookery: {error}\n")
    return MISCONFIGURED if isinstance(error, ConfigError) else FAILED


def causes(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group of groups; the error itself if it is none."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from causes(each)
    else:
        yield error


def raise_file_limit() -> None:
    """As many descriptors as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def authority(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def write_ready(path: Path, content: dict[str, object]) -> None:
    """Whoever waits for the file finds all of it."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)
