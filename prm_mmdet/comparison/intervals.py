"""What a few seeds can show: differences paired by seed, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A confidence interval, from ``low`` to ``high``."""

    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 if the whole interval is above zero, -1 if it is below, else 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True)
class Sample:
    """Values of one metric over seeds.

    Args:
        mean: Their mean.
        deviation: Their standard deviation with n - 1 in the denominator. None for
            fewer than two values.
        count: How many there are.
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """The sample of at least one value."""
        count = len(values)
        mean = math.fsum(values) / count
        if count < 2:
            return cls(mean, None, count)
        squares = math.fsum((value - mean) ** 2 for value in values)
        return cls(mean, math.sqrt(squares / (count - 1)), count)

    def interval(self, confidence: float = CONFIDENCE) -> Interval | None:
        """Student's t interval of the mean. None for fewer than two values.

        Args:
            confidence: Its coverage if the values are drawn from one normal
                distribution. Default: 0.95.
        """
        if self.deviation is None:
            return None
        quantile = student.ppf((1 + confidence) / 2, self.count - 1)
        half = float(quantile) * self.deviation / math.sqrt(self.count)
        return Interval(self.mean - half, self.mean + half)


@dataclass(frozen=True)
class Difference:
    """A block's metric minus the control's, paired by seed.

    Args:
        sample: Of the differences, one a seed that both were trained with.
        interval: Its 95% interval. None for fewer than two seeds.
        corrected: Its interval after Bonferroni's correction, which holds for all
            compared blocks at once with 95%. None for fewer than two seeds.
    """

    sample: Sample
    interval: Interval | None
    corrected: Interval | None


def paired_difference(
    block: Mapping[int, float], control: Mapping[int, float], comparisons: int
) -> Difference | None:
    """The difference between a block and the control over the seeds that both have.

    Args:
        block: Metric by seed.
        control: Metric by seed.
        comparisons: Blocks that are compared with the control. With m blocks, each
            corrected interval is one of confidence 1 - 0.05 / m (Bonferroni).

    Returns:
        The difference, or None if no seed is in both.
    """
    seeds = sorted(block.keys() & control.keys())
    if not seeds:
        return None
    sample = Sample.of([block[seed] - control[seed] for seed in seeds])
    corrected = 1 - (1 - CONFIDENCE) / max(1, comparisons)
    return Difference(sample, sample.interval(), sample.interval(corrected))
