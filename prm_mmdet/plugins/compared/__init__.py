"""The blocks that the three papers compare with."""
