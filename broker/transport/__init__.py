"""Sockets: the reactor and its listeners."""
