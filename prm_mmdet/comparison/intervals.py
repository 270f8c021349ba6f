"""What a few seeds can show: differences paired by seed, and their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.stats import t as student

CONFIDENCE = 0.95


def summary(values: Sequence[float]) -> dict:
    """Mean, standard deviation and count of at least one value.

    Returns:
        A dict with ``mean``, ``deviation`` and ``count``. The deviation of n values has
        n - 1 in the denominator. The deviation of one value is None.
    """
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return dict(mean=statistics.fmean(values), deviation=deviation, count=len(values))


def paired_difference(
    block: Mapping[int, float], control: Mapping[int, float], comparisons: int
) -> dict | None:
    """The difference between a block and the control over the seeds that both have.

    Args:
        block: The block's metric, by seed.
        control: The control's metric, by seed.
        comparisons: Number of blocks that are compared with the control. With m blocks,
            the corrected interval has the confidence 1 - 0.05 / m (Bonferroni).

    Returns:
        The :func:`summary` of the differences (one for each seed), with two more
        entries. ``interval`` is the 95% interval of the mean by Student's t, as
        [low, high]. ``corrected`` is the wider interval that holds for all comparisons
        at once with 95%. ``interval`` and ``corrected`` are None if there is one seed.
        The result is None if no seed is in both arguments.

    Evaluators round their values. For example, CocoMetric rounds to the step 0.001. Two
    equal rounded differences would give an interval without width. Therefore the
    variance of the differences is increased by step**2 / 6. This is the variance that
    the rounding of two numbers adds to their difference.
    """
    seeds = sorted(block.keys() & control.keys())
    if not seeds:
        return None
    found = summary([block[seed] - control[seed] for seed in seeds])
    found.update(interval=None, corrected=None)
    if len(seeds) > 1:
        step = _rounding([*block.values(), *control.values()])
        deviation = math.hypot(found['deviation'], step / math.sqrt(6))
        error = 1 - CONFIDENCE
        for name, blocks in (('interval', 1), ('corrected', max(1, comparisons))):
            quantile = float(student.ppf(1 - error / blocks / 2, len(seeds) - 1))
            half = quantile * deviation / math.sqrt(len(seeds))
            found[name] = [found['mean'] - half, found['mean'] + half]
    return found


def _rounding(values: Sequence[float]) -> float:
    """The step to which all values were rounded, such as 0.001. It is 0 if a value has
    more than four decimals."""
    # Values up to 1 are fractions, which evaluators round to three or more decimals.
    # Larger values are percentages, which evaluators round to two or more decimals.
    fewest = 3 if max(map(abs, values)) <= 1 else 2
    for digits in range(fewest, 5):
        if all(math.isclose(v, round(v, digits), abs_tol=1e-9) for v in values):
            return 10.0**-digits
    return 0.0


def sign(interval: Sequence[float]) -> int:
    """1 if the whole interval is above zero, -1 if the whole interval is below zero,
    else 0."""
    low, high = interval
    return (low > 0) - (high < 0)
