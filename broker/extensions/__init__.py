"""What the broker offers beyond the standard; each module is one feature."""
