"""Checks of command lines, before anything is measured: what `type=` of argparse gets."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from loadtest import targets

Number = TypeVar("Number", int, float)
_WORDS = {"int": "an integer", "float": "a number"}


def at_least(low: Number) -> Callable[[str], Number]:
    """Return what reads a number of the kind of `low` that is not smaller."""
    kind = type(low)

    def read(text: str) -> Number:
        try:
            found = kind(text)
            if math.isfinite(found) and found >= low:
                return found
        except (ValueError, OverflowError):
            pass
        raise ArgumentTypeError(f"{text!r} is not {_WORDS[kind.__name__]} from {low} on")

    return read


def process_ids(text: str) -> tuple[int, ...]:
    """Read a list of process ids."""
    try:
        return targets.process_ids(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def output(text: str) -> Path:
    """Return the path of a file that can be written: an hour of measuring is not lost for it."""
    path = Path(text)
    try:
        if not path.is_fifo():  # opening would wait for its reader
            there = path.exists()
            with path.open("ab"):
                pass
            if not there:
                path.unlink()
    except OSError as error:
        raise ArgumentTypeError(f"{text}: {error.strerror or error}") from None
    return path


def output_folder(text: str) -> Path:
    """Return a folder that can be made, or is there."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentTypeError(f"{text}: {error.strerror or error}") from None
    return path
