"""Measure time and memory of the blocks, alone and in networks."""
