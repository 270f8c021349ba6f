"""Figures of a model's blocks and predictions."""
