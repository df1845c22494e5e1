"""The cluster port on a Redis or Valkey server."""
