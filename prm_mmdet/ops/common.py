"""Constants and small functions that the blocks' operators share."""

import contextlib
from collections.abc import Iterable
from typing import Optional

import torch
from torch import Tensor

# PRM's Eq. 5 divides by sigma. A smaller sigma would overflow, and zero would give NaN.
MIN_SIGMA = 1e-5
# PRM's Eq. 7 adds EPS to the deviation.
EPS = 1e-5
# Smallest deviation, far below EPS. It only keeps the gradient of sqrt finite at 0.
MIN_DEVIATION = 1e-15
# PRM's Eq. 2 divides by at least this product of norms.
MIN_NORMS = 1e-8

try:
    from torch.compiler import is_compiling
except ImportError:  # torch < 2.1 has the function in another module
    from torch._dynamo import is_compiling  # noqa: F401
try:
    from torch.compiler import is_exporting
except ImportError:  # torch < 2.7 does not distinguish torch.export from torch.compile

    def is_exporting() -> bool:
        return False


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums: float32 for half-precision inputs, else the input's dtype."""
    return torch.promote_types(x.dtype, torch.float32)


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Context in which autocast does not lower the precision chosen by an operator."""
    try:
        return torch.autocast(x.device.type, enabled=False)
    except RuntimeError:  # a device that has no autocast, such as meta
        return contextlib.nullcontext()


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format of a result: channels_last if the input is, else contiguous."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def as_gradients(
    x: Tensor, parameters: Iterable[Optional[Tensor]], values: Iterable[Tensor]
) -> list[Tensor]:
    """The parameters' gradients in the parameters' dtypes, and an empty tensor for each
    parameter that is None. All are copies on the device of ``x``, because the outputs
    of a PyTorch operator must not share memory."""
    return [
        x.new_empty(0) if p is None else value.to(p.dtype, copy=True)
        for p, value in zip(parameters, values)
    ]


def exporting() -> bool:
    """Whether torch traces or exports a model, which then runs without prm_mmdet."""
    return torch.jit.is_tracing() or is_exporting()
