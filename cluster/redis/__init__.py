"""The cluster port on a Redis or Valkey server."""

from __future__ import annotations
