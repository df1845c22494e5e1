"""Bytes to MQTT packets and back: no I/O, no clock."""
