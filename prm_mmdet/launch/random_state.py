"""Save and restore random states, so that a resumed training draws the same numbers as
an uninterrupted training."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the states of this process's random generators (Python, NumPy and
    PyTorch). The states are plain values and tensors, so weights-only loading can read
    them."""
    legacy: Any = np.random.get_state(legacy=True)
    name, keys, *rest = legacy
    state = dict(
        python=random.getstate(),
        numpy=[name, keys.tolist(), *rest],
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set the states of this process's random generators (Python, NumPy and PyTorch).

    Args:
        state: What :func:`random_state` returned, here or in another process.
    """
    version, keys, gauss = state['python']
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = state['numpy']
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])


def worker_seed(seed: int, rank: int, epoch: int) -> int:
    """Return the seed for the random generator of a data loader, which draws the seeds
    of the loader's workers. Each rank and each epoch has its own seed."""
    return (seed * 1_000_003 + epoch * 1_009 + rank) % 2**32


def calling(items: Iterator, count: int, function: Callable[[], Any]) -> Iterator:
    """Yield all items, and call a function after the first ``count`` items.

    When a training that counts iterations resumes, it first skips the batches of the
    finished iterations. Skipping draws random numbers. So the training passes a
    function that restores the saved random state after the last skipped batch.
    """
    yield from itertools.islice(items, count)
    function()
    yield from items
