"""Telling the broker: a defect in one callback must not stop the answers to the others."""

from __future__ import annotations

from collections.abc import Callable

from broker.log import get_logger
from cluster.api import GroupTarget, Publication, Target

Then = Callable[[Exception | None], None]

_log = get_logger("cluster")


def call_stored(publication: Publication) -> None:
    """The publication is answered."""
    try:
        publication.stored()
    except Exception:
        _log.exception("cluster.callback_failed")


def call_reached(publication: Publication, target: Target) -> None:
    """The store answered for one session."""
    try:
        publication.reached(target)
    except Exception:
        _log.exception("cluster.callback_failed")


def call_given(publication: Publication, target: GroupTarget) -> None:
    """The store answered for one group."""
    try:
        publication.given(target)
    except Exception:
        _log.exception("cluster.callback_failed")


def call_then(then: Then, error: Exception | None) -> None:
    """A batched call is answered."""
    try:
        then(error)
    except Exception:
        _log.exception("cluster.callback_failed")
