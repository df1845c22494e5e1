"""Rookery: a clustered MQTT broker on trio and Redis."""

__version__ = "0.1.0"
