"""Constants and small functions that the blocks' operators share."""

import contextlib
from collections.abc import Iterable
from typing import Optional

import torch
from torch import Tensor

# Smallest sigma in PRM's Eq. 5, which divides by sigma. Division by a far smaller sigma
# would overflow, and division by zero would give NaN.
MIN_SIGMA = 1e-5
# PRM's Eq. 7 divides by the score's deviation plus EPS, which avoids division by zero.
EPS = 1e-5
# Smallest deviation of PRM's score. It is far below EPS, and keeps the gradient of sqrt
# finite at 0.
MIN_DEVIATION = 1e-15
# PRM's Eq. 2 (cosine similarity) divides by the product of two vectors' norms. A
# product below MIN_NORMS is replaced by MIN_NORMS.
MIN_NORMS = 1e-8

try:
    from torch.compiler import is_compiling
except ImportError:  # torch < 2.1 has is_compiling in another module
    from torch._dynamo import is_compiling  # noqa: F401
try:
    from torch.compiler import is_exporting
except ImportError:  # torch < 2.7 has no is_exporting

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
    """The gradients of the parameters, in the dtypes of the parameters. If a parameter
    is None, its gradient is an empty tensor. The gradients are copies, because the
    outputs of a PyTorch operator must not share memory."""
    return [
        x.new_empty(0) if p is None else value.to(p.dtype, copy=True)
        for p, value in zip(parameters, values)
    ]


def exporting() -> bool:
    """Whether torch traces or exports a model. An exported model contains only
    PyTorch's own operators, so that it runs without prm_mmdet."""
    return torch.jit.is_tracing() or is_exporting()
