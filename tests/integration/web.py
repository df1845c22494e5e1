"""A node with WebSocket listeners, and where they are."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from tests.kit.broker_process import BrokerProcess


class At(NamedTuple):
    """The address of a listener."""

    host: str
    port: int
    url: str


def at(node: BrokerProcess, number: int) -> At:
    """Where the listener of this number is."""
    url = urlsplit(node.listeners[number])
    assert url.hostname is not None and url.port is not None
    return At(url.hostname, url.port, node.listeners[number])
