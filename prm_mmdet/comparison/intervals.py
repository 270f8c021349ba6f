"""What a few seeds can show: differences paired by seed, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scipy.stats import t as student

CONFIDENCE = 0.95


def summary(values: Sequence[float]) -> dict:
    """Mean, deviation and count of at least one value.

    Returns:
        ``mean``; ``deviation``, with n - 1 in the denominator, or None for one value;
        ``count``.
    """
    count = len(values)
    mean = math.fsum(values) / count
    deviation = None
    if count > 1:
        squares = math.fsum((value - mean) ** 2 for value in values)
        deviation = math.sqrt(squares / (count - 1))
    return dict(mean=mean, deviation=deviation, count=count)


def paired_difference(
    block: Mapping[int, float], control: Mapping[int, float], comparisons: int
) -> dict | None:
    """The difference between a block and the control over the seeds that both have.

    Args:
        block: Metric by seed.
        control: Metric by seed.
        comparisons: Blocks that are compared with the control. With m blocks, each
            corrected interval is one of confidence 1 - 0.05 / m (Bonferroni).

    Returns:
        What :func:`summary` returns for the differences, one a seed, with ``interval``
        and ``corrected``: the 95% interval of the mean by Student's t, as [low, high],
        and the interval that holds for all comparisons at once with 95%. Both are None
        for one seed. None if no seed is in both.
    """
    seeds = sorted(block.keys() & control.keys())
    if not seeds:
        return None
    found = summary([block[seed] - control[seed] for seed in seeds])
    error = 1 - CONFIDENCE
    found['interval'] = _interval(found, error)
    found['corrected'] = _interval(found, error / max(1, comparisons))
    return found


def _interval(found: dict, error: float) -> list[float] | None:
    if found['deviation'] is None:
        return None
    quantile = float(student.ppf(1 - error / 2, found['count'] - 1))
    half = quantile * found['deviation'] / math.sqrt(found['count'])
    return [found['mean'] - half, found['mean'] + half]


def sign(interval: Sequence[float]) -> int:
    """1 if a whole interval is above zero, -1 if it is below, else 0."""
    low, high = interval
    return (low > 0) - (high < 0)
