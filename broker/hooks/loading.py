"""From the setting to the hook: other people's code is imported and made here."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final

from broker.errors import ConfigError
from broker.options.hooks import Hook

GROUP: Final = "rookery.hooks"
METHODS: Final = ("connect", "authenticate", "authorize", "publish", "deliver", "disconnect")


def load(options: Hook) -> object:
    """The hook that is configured; ConfigError for one that cannot be had or does nothing."""
    target = options.target
    try:
        found = _attribute(target) if ":" in target else _entry_point(target)
        hook = found(options.options) if callable(found) and _makes_hooks(found) else found
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"hooks: {target!r:.80}: {type(error).__name__}: {error!s:.200}") from error
    methods = [name for name in METHODS if getattr(hook, name, None) is not None]
    if not methods:
        raise ConfigError(f"hooks: {target!r:.80}: has none of the methods {', '.join(METHODS)}")
    for name in methods:
        if not inspect.iscoroutinefunction(getattr(hook, name)):
            raise ConfigError(f"hooks: {target!r:.80}: {name} must be async def")
    return hook


def _makes_hooks(found: object) -> bool:
    """A class or function makes the hook; anything else is it."""
    return inspect.isclass(found) or inspect.isroutine(found)


def _attribute(target: str) -> object:
    module, _, path = target.partition(":")
    found: object = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _entry_point(target: str) -> object:
    known = entry_points(group=GROUP)
    for point in known:
        if point.name == target:
            return point.load()
    names = ", ".join(sorted(point.name for point in known)) or "none"
    raise ConfigError(f"hooks: no entry point {target!r:.80} in the group {GROUP}; there are: {names}")
