"""Bytes to MQTT packets and back: no I/O, no clock."""

from __future__ import annotations


def compiled() -> bool:
    """Whether the core was compiled when this package was built; else the same files are interpreted."""
    from broker.codec import packets

    return not str(packets.__file__).endswith(".py")
