"""Generators of small data sets, which need no download."""
