"""I/O for model calls."""
