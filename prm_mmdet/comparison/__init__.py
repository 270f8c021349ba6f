"""Which block helps a detector: trainings with and without blocks, compared fairly."""
