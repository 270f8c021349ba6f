"""What the blocks cost in time and memory, as ratios of functions that run in turn."""
