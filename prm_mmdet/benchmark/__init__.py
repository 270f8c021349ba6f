"""What the blocks cost in time and memory, as ratios of runs that alternate."""
