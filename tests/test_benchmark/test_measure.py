"""The measuring itself, on functions whose cost is known."""

import pytest
import torch
from torch import nn

from prm_mmdet.benchmark import measure

CPU = torch.device('cpu')


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the functions under test move."""
    now = [0.0]
    monkeypatch.setattr(measure.time, 'perf_counter', lambda: now[0])

    def work(seconds):
        now[0] += seconds

    return work


def test_calls_take_turns_and_short_ones_are_repeated(clock):
    order = []

    def function(name, seconds):
        def call():
            order.append(name)
            clock(seconds)

        return call

    functions = dict(
        a=function('a', 0.01), b=function('b', 0.02), c=function('c', 1e-3)
    )
    rounds = []
    times = measure.interleave(functions, CPU, 3, rounds.append)
    for name, seconds in (('a', 0.01), ('b', 0.02), ('c', 1e-3)):
        assert times[name] == pytest.approx([seconds] * 3)
    assert rounds == [0, 1, 2]
    # Two warming calls of each, then three rounds: a and b once, c five times.
    rounds = [order[-21:][i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(r) == ['a', 'b', *'ccccc'] for r in rounds)
    assert len({''.join(r) for r in rounds}) > 1


def test_ratios_are_taken_within_rounds():
    # The machine was ten times slower in the second round; the ratio does not see it.
    spread = measure.ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.0])
    assert (spread.low, spread.median) == (2.0, 2.0)
    assert spread.high == pytest.approx(2.1)


def test_peak_memory_counts_what_is_alive_at_once():
    megabyte = 2**18  # float32 numbers

    def function():
        first = torch.empty(3 * megabyte)
        del first
        second = torch.empty(2 * megabyte)
        third = torch.empty(2 * megabyte)
        return second, third

    assert measure.peak_memory(function, CPU) == pytest.approx(4 * 2**20, rel=0.01)


def test_multiply_adds_of_a_convolution():
    layer, x = nn.Conv2d(8, 16, 3, padding=1), torch.randn(2, 8, 5, 7)
    expected = 2 * 16 * 8 * 9 * 5 * 7
    assert measure.multiply_adds(lambda: layer(x)) == expected
