"""What a node measures of itself beside its counters, and how all of it becomes samples."""
