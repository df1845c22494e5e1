"""All operations and questions: importing this declares them."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from broker.admin import (
    alarms,
    bans,
    clients,
    delayed,
    groups,
    keys,
    logs,
    messages,
    nodes,
    presence,
    retained,
    rules,
    sessions,
    settings,
    slow,
    stats,
    subscriptions,
    topic_metrics,
    topics,
    trace,
    users,
)

#: Modules of operations, in the order of the documentation.
SUBJECTS: Final[tuple[ModuleType, ...]] = (
    nodes,
    stats,
    clients,
    sessions,
    subscriptions,
    topics,
    messages,
    retained,
    groups,
    delayed,
    bans,
    users,
    rules,
    presence,
    alarms,
    slow,
    topic_metrics,
    trace,
    settings,
    logs,
    keys,
)
