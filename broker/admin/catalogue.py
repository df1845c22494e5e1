"""All operations and questions: importing this declares them."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from broker.admin import (
    alarms,
    clients,
    delayed,
    groups,
    keys,
    messages,
    nodes,
    presence,
    retained,
    sessions,
    slow,
    subscriptions,
    topics,
    trace,
)

#: Modules of operations, in the order of the documentation.
SUBJECTS: Final[tuple[ModuleType, ...]] = (
    nodes,
    clients,
    sessions,
    subscriptions,
    topics,
    messages,
    retained,
    groups,
    delayed,
    presence,
    alarms,
    slow,
    trace,
    keys,
)
