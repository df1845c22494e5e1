"""Dataclasses read again from JSON that anybody may have changed: every value is of its type, or ValueError says."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

MOST = 1e18  # of numbers: nothing that is measured is larger
_NAMES = {str: "text", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}


def content(path: Path, schema: int, what: str) -> dict[str, Any]:
    """Return the object in a JSON file that says it has this schema; ValueError if it is something else."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except RecursionError:
        found = None
    if not isinstance(found, dict) or found.pop("schema", None) != schema:
        raise ValueError(f"not a {what} of schema {schema}")
    return found


def value(given: Any, kind: Any, where: str) -> Any:
    """Return what was given as the type asks for it: keys that a dataclass does not know are left out."""
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _fields(given, kind, where)
    if kind is Any:
        return given
    if origin in (Union, types.UnionType):
        return _one_of(given, inner, where)
    if origin is tuple and isinstance(given, list) and len(given) == len(inner):
        return tuple(value(each, one, f"{where}[{i}]") for i, (each, one) in enumerate(zip(given, inner, strict=True)))
    if origin not in (None, dict, Mapping, tuple) and isinstance(given, list):
        return [value(each, inner[0], f"{where}[{i}]") for i, each in enumerate(given)]
    if origin is not None and issubclass(origin, Mapping) and isinstance(given, dict):
        return {key: value(each, inner[1], f"{where}.{key}") for key, each in given.items()}
    return _plain(given, kind, where)


def _one_of(given: Any, kinds: tuple[Any, ...], where: str) -> Any:
    """Return what is of one of these types; of one type or null the trouble is told as that of the type."""
    able = [kind for kind in kinds if (kind is type(None)) == (given is None)]
    if len(able) == 1:
        return value(given, able[0], where)
    for kind in able:
        with contextlib.suppress(ValueError):
            return value(given, kind, where)
    raise ValueError(f"{where}: {given!r:.40} is not {' or '.join(_NAMES.get(each, str(each)) for each in kinds)}")


def _plain(given: Any, kind: Any, where: str) -> Any:
    kinds = (int, float) if kind is float else kind
    if not isinstance(kind, type) or not isinstance(given, kinds) or isinstance(given, bool) != (kind is bool):
        raise ValueError(f"{where}: {given!r:.40} is not {_NAMES.get(kind, 'a list or an object')}")
    if kind in (int, float):
        _finite(given, where)
    return given


def _finite(given: float, where: str) -> None:
    """Refuse what nothing can be computed with or drawn."""
    if not abs(given) <= MOST:
        raise ValueError(f"{where}: not a number up to {MOST:g}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fields(given: Any, kind: Any, where: str) -> Any:
    if not isinstance(given, dict):
        raise ValueError(f"{where}: {given!r:.40} is no object")
    hints, found = _hints(kind), {}
    for each in dataclasses.fields(kind):
        if each.name in given:
            found[each.name] = value(given[each.name], hints[each.name], f"{where}.{each.name}")
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: no {each.name}")
    make: Callable[..., Any] = kind
    return make(**found)
