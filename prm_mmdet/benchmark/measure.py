"""Time, memory and multiply-adds of functions, measured so that ratios can be trusted.

A single timing on a shared machine means nothing. Here functions take turns, one call
each in every round, and ratios are taken within rounds.
"""

import statistics
import time
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

# A call shorter than this is repeated within a round: clocks and launches cost too.
_SHORTEST = 5e-3


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values):
        low, median, high = statistics.quantiles(values, n=4, method='inclusive')
        return cls(median, low, high)


def interleave(functions, device, rounds, progress=None, clock=None):
    """Time functions in turn.

    Args:
        functions (dict): Names to functions without arguments.
        device (torch.device): Where they run; CUDA is waited for.
        rounds (int): Calls of each, at least 2; one more warms up.
        progress (Callable, optional): Called after each round. Default: None.
        clock (Callable, optional): Tells the seconds. Default: ``time.perf_counter``.

    Returns:
        dict: Names to lists of seconds a call, one for each round.
    """
    clock = clock or time.perf_counter
    calls = {name: _calls(f, device, clock) for name, f in functions.items()}
    times = {name: [] for name in functions}
    for i in range(rounds):
        names = list(functions)
        # No function always follows the same one, whose traces it would find in caches.
        names = names[i % len(names) :] + names[: i % len(names)]
        for name in names:
            times[name].append(_time(functions[name], calls[name], device, clock))
        if progress:
            progress()
    return times


def ratio(times, reference):
    """Spread of the ratios of two lists of times, round by round."""
    return Spread.of([a / b for a, b in zip(times, reference)])


def _calls(function, device, clock):
    """How often to call within a round; warms up."""
    function()
    seconds = _time(function, 1, device, clock)
    return max(1, round(_SHORTEST / max(seconds, 1e-9)))


def _time(function, calls, device, clock):
    synchronize(device)
    start = clock()
    for _ in range(calls):
        function()
    synchronize(device)
    return (clock() - start) / calls


def synchronize(device):
    """Wait for all that was started on a device."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def peak_memory(function, device):
    """Bytes that a function has at most allocated on top of what was there before.

    On CUDA as its allocator counts them, on the CPU as torch's profiler does.
    """
    function()  # what is allocated only once, and kept
    if device.type == 'cuda':
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]']
    peak = now = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return peak


def multiply_adds(function):
    """Multiply-adds of the convolutions, linear layers and products in a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2
