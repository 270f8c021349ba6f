"""Measure time and memory of the blocks. The compared functions run in turn."""
