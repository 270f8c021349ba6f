"""Linear Context Transform as one operator, forward and backward.

Source: D. Ruan, J. Wen, N. Zheng and M. Zheng, "Linear Context Transform Block",
AAAI 2020, Eqs. 2-5.

Forward reads x twice and writes once; backward reads x once, the incoming gradient
twice, and writes once. For backward it keeps x and the channels' means (B, C).
"""

from typing import Optional

import torch
from torch import Tensor

from . import lct_torch, reference
from .backend import backend
from .common import accumulation_dtype, exporting, memory_format, without_autocast
from .operator import operator


def lct(x, weight, bias, groups, eps=1e-5, normalization=True):
    """Multiply each channel by a gate computed from the channels' means.

    Args:
        x (Tensor): Features, (B, C, H, W), any floating dtype and memory format. The
            gate is computed in float32 at least.
        weight (Tensor | None): (C,), gain of Eq. 4; None, together with ``bias``,
            leaves the transform out.
        bias (Tensor | None): (C,), bias of Eq. 4.
        groups (int): Groups of channels that are normalised together; divides C.
        eps (float): Added to the variance (Eq. 3). Default: 1e-5.
        normalization (bool): Whether to normalise within groups (Eqs. 2 and 3).

    Returns:
        Tensor: (B, C, H, W), dtype of ``x``; channels_last if ``x`` is, contiguous
        otherwise. Inputs that are neither, and gradients in another layout than
        ``x``, are copied once.

    Raises:
        RuntimeError: On a second differentiation, which only
            ``PRM_MMDET_BACKEND=reference`` offers (see :mod:`.select`).
    """
    inputs = (x, weight, bias, groups, eps, normalization)
    if exporting():  # in operators that every format knows
        return lct_torch.plain(*inputs)
    if backend(x) == 'reference':
        return _reference(*inputs)
    return _operator(*inputs)


def _reference(x, weight, bias, *switches):
    dtype = accumulation_dtype(x)
    weight, bias = (t if t is None else t.to(dtype) for t in (weight, bias))
    with without_autocast(x):
        return reference.lct(x.to(dtype), weight, bias, *switches).to(x.dtype)


def _implementation(x):
    if backend(x) == 'triton':
        from . import lct_triton

        return lct_triton
    return lct_torch


def _forward(
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    groups: int,
    eps: float,
    normalization: bool,
) -> tuple[Tensor, Tensor]:
    """Returns y and the channels' means (B, C)."""
    with without_autocast(x):
        return _implementation(x).forward(x, weight, bias, groups, eps, normalization)


def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    mean: Tensor,
    groups: int,
    eps: float,
    normalization: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, weight and bias; without them the last two are
    empty."""
    inputs = (gradient, x, weight, bias, mean, groups, eps, normalization)
    with without_autocast(x):
        return _implementation(x).backward(*inputs)


def _shapes(x, *_):
    return (
        torch.empty_like(x, memory_format=memory_format(x)),
        x.new_empty(x.shape[:2], dtype=accumulation_dtype(x)),
    )


_operator = operator('lct', _forward, _backward, _shapes, tensors=3)
