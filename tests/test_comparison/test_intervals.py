"""Intervals and verdicts, against independent computations and simulated seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from prm_mmdet.comparison.comparison_report import verdict
from prm_mmdet.comparison.intervals import paired_difference, sign


def excludes_zero(control, block, comparisons=1, kind='interval'):
    values = dict(enumerate(block)), dict(enumerate(control))
    return sign(paired_difference(*values, comparisons)[kind]) != 0


@pytest.mark.parametrize('count', [2, 4, 10])
@pytest.mark.parametrize('comparisons', [1, 2, 5])
def test_paired_difference_is_scipys(comparisons, count):
    generator = np.random.default_rng(comparisons)
    control = dict(enumerate(generator.normal(30, 1, count)))
    block = {
        seed: value + generator.normal(0.5, 0.3) for seed, value in control.items()
    }
    found = paired_difference(block, control, comparisons)
    test = stats.ttest_rel(list(block.values()), list(control.values()))
    for interval, confidence in (
        (found['interval'], 0.95),
        (found['corrected'], 1 - 0.05 / comparisons),
    ):
        expected = test.confidence_interval(confidence)
        assert interval == pytest.approx([expected.low, expected.high], rel=1e-9)


@pytest.mark.parametrize('seeds', [2, 3, 5])
def test_without_a_difference_one_interval_in_twenty_excludes_zero(seeds):
    generator = np.random.default_rng(0)
    excluded = 0
    for _ in range(1000):
        shared = generator.normal(30, 1, seeds)  # what a seed does to both
        excluded += excludes_zero(*shared + generator.normal(0, 0.4, (2, seeds)))
    # 50 expected, standard deviation 6.9.
    assert 30 <= excluded <= 70


@pytest.mark.parametrize('deviation', [0.0005, 0.001, 0.002])
def test_rounded_metrics_exclude_zero_no_more_often(deviation):
    generator = np.random.default_rng(2)
    excluded = 0
    for _ in range(1000):
        values = generator.uniform(0.2, 0.6) + generator.normal(0, deviation, (2, 2))
        excluded += excludes_zero(*np.round(values, 3))
    assert excluded <= 70  # about 110 if rounding is not heeded


def test_equal_rounded_differences_have_an_interval():
    found = paired_difference({0: 0.301, 1: 0.311}, {0: 0.3, 1: 0.31}, 1)
    low, high = found['interval']
    assert low < -0.002
    assert high > 0.004
    exact = paired_difference({0: 0.30123, 1: 0.31123}, {0: 0.30023, 1: 0.31023}, 1)
    assert exact['interval'] == pytest.approx([0.001, 0.001])


def test_the_corrected_intervals_hold_for_all_blocks_at_once():
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(500):
        control = generator.normal(30, 1, 3)
        blocks = generator.normal(30, 1, (5, 3))
        wrong += any(excludes_zero(control, b, 5, 'corrected') for b in blocks)
    assert wrong <= 40  # at most 25 expected, standard deviation 4.9


def test_only_common_seeds_are_paired():
    found = paired_difference({0: 1.0, 1: 2.0, 3: 9.0}, {0: 0.5, 1: 1.0, 2: 9.0}, 1)
    assert found['mean'] == 0.75
    assert found['deviation'] == pytest.approx(math.sqrt(0.125))
    assert found['count'] == 2
    assert paired_difference({0: 1.0}, {1: 1.0}, 1) is None


def test_one_seed_gives_no_interval():
    found = paired_difference({0: 0.4}, {0: 0.3}, 1)
    assert found == dict(
        mean=pytest.approx(0.1), deviation=None, count=1, interval=None, corrected=None
    )
    text = verdict('SAC', 'mAP', {'mAP': dict(mean=0.3, difference=found)})
    assert text.startswith('SAC: +10.0 AP with one seed. One seed shows no interval')


@pytest.mark.parametrize(
    ('interval', 'corrected', 'text'),
    [
        ((0.004, 0.02), (0.001, 0.023), 'SAC gains 1.2 AP (0.4 to 2.0).'),
        ((-0.02, -0.004), (-0.03, -0.001), 'SAC loses 1.2 AP (0.4 to 2.0).'),
        (
            (0.004, 0.02),
            (-0.01, 0.03),
            'SAC gains 1.2 AP (0.4 to 2.0), but not after the correction for several '
            'blocks.',
        ),
        (
            (-0.004, 0.02),
            (-0.02, 0.04),
            'SAC: no difference that three seeds can show (+0.8 AP, -0.4 to +2.0).',
        ),
        (
            (0.0, 0.0),
            (0.0, 0.0),
            'SAC: coco/bbox_mAP is 0 in all runs, with the block and without, so that '
            'they show nothing. Train for longer.',
        ),
    ],
)
def test_the_verdict_follows_from_the_interval(interval, corrected, text):
    mean = sum(interval) / 2
    difference = dict(mean=mean, count=3, interval=interval, corrected=corrected)
    metrics = {'coco/bbox_mAP': dict(mean=mean, difference=difference)}
    assert verdict('SAC', 'coco/bbox_mAP', metrics) == text


def test_the_verdict_of_a_metric_of_which_less_is_better():
    ends = dict(interval=(-0.3, -0.1), corrected=(-0.4, -0.05))
    metrics = {'val/loss': dict(mean=1, difference=dict(mean=-0.2, count=3, **ends))}
    text = verdict('SAC', 'val/loss', metrics)
    assert text == 'SAC improves by 0.2 loss (0.1 to 0.3).'
