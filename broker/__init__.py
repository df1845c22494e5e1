"""Rookery: a clustered MQTT broker on trio and Redis."""

from __future__ import annotations

__version__ = "0.2.0"
