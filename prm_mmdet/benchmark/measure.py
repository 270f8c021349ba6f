"""Time, memory and multiply-adds of functions, measured so that ratios can be trusted.

The speed of a shared machine drifts. Here the functions take turns within each round,
and ratios are taken within rounds, so that a drift changes both sides of a ratio.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

Function = Callable[[], Any]
Key = TypeVar('Key', bound=Hashable)

# If a call takes less than this number of seconds, the call is repeated within a round.
# Otherwise the time to read the clock and to synchronise the device would distort the
# result.
_SHORTEST = 5e-3


@dataclass(frozen=True)
class Setting:
    """The conditions of a measurement."""

    device: torch.device
    # Data type of a block's features. If it is not float32, networks run under autocast
    # to this data type.
    dtype: torch.dtype
    batch: int  # number of images
    size: tuple[int, int]  # height and width of the images, in pixels

    def autocast(self) -> torch.autocast:
        """Context manager that applies autocast to ``dtype``. If ``dtype`` is float32,
        the context manager does nothing."""
        enabled = self.dtype != torch.float32
        dtype = self.dtype if enabled else None
        return torch.autocast(self.device.type, dtype, enabled=enabled)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles of at least two values."""
        low, median, high = statistics.quantiles(values, n=4, method='inclusive')
        return cls(median, low, high)


def interleave(
    functions: Mapping[Key, Function],
    device: torch.device,
    rounds: int,
    progress: Callable[[int], Any] | None = None,
) -> dict[Key, list[float]]:
    """Time functions in turn.

    Args:
        functions: Functions by name. Each function is first called to warm it up.
        device: Where the functions run. On CUDA, a measured time includes all work
            that the function started on the device.
        rounds: How often each function is timed, at least 2.
        progress: Called before each round with its number, from 0. Default: None.

    Returns:
        Seconds per call by name, one number for each round.
    """
    calls = {name: _repetitions(f, device) for name, f in functions.items()}
    times: dict[Key, list[float]] = {name: [] for name in functions}
    names = list(functions)
    order = random.Random(0)
    for i in range(rounds):
        if progress:
            progress(i)
        # A function's time depends on the caches and the memory that its predecessor
        # leaves. In random orders, no function always has the same predecessor.
        order.shuffle(names)
        for name in names:
            times[name].append(_time(functions[name], calls[name], device))
    return times


def ratio(times: Sequence[float], reference: Sequence[float]) -> Spread:
    """Median and quartiles of the ratios ``times / reference``. Each ratio divides two
    times of the same round."""
    return Spread.of([a / b for a, b in zip(times, reference)])


def _repetitions(function: Function, device: torch.device) -> int:
    """How often to call a function within a round, found by one or two calls of it."""
    # The first call also warms the function up. If this call takes more than a second,
    # each round has one call.
    if _time(function, 1, device) > 1:
        return 1
    seconds = _time(function, 1, device)
    return max(1, round(_SHORTEST / max(seconds, 1e-9)))


def _time(function: Function, calls: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all work that was given to it."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def peak_memory(function: Function, device: torch.device) -> int:
    """The peak of the memory that a call allocates, in bytes. Memory that was allocated
    before the call does not count.

    On CUDA, PyTorch's allocator counts the memory. On the CPU, PyTorch's profiler
    counts it. Call the function once before you measure it. Otherwise memory that the
    first call allocates and keeps would count, too.
    """
    if device.type == 'cuda':
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Level 99 silences the profiler's library. At log level 5 or below, the library
    # prints each start and stop.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*Profiler clears events')
        with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True
        ) as profiler:
            function()
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]']
    peak = now = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return peak


def multiply_adds(function: Function) -> int:
    """Multiply-adds of a call's convolutions, linear layers and matrix products."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2


def environment(device: torch.device) -> dict[str, str]:
    """The device of a measurement, and the versions of PyTorch and Python, as texts."""
    if device.type == 'cuda':
        name = f'{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}'
    else:
        name = f'{_processor()}, {torch.get_num_threads()} threads'
    return dict(
        device=f'{device.type}, {name}',
        torch=torch.__version__,
        python=platform.python_version(),
    )


def _processor() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            names = [line for line in file if line.startswith('model name')]
        return names[0].partition(':')[2].strip()
    except (OSError, IndexError):
        # Systems other than Linux lack this file. On some processors, the file has no
        # model name.
        return platform.processor() or platform.machine()
