"""HTTP surface of a node."""
