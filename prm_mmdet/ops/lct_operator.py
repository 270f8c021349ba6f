"""Linear Context Transform as one function.

Source: D. Ruan, J. Wen, N. Zheng and M. Zheng, "Linear Context Transform Block",
AAAI 2020, Eqs. 2-5.

For backward, the kernels (``lct_cpp.py``, ``lct_triton.py``) keep x and the channels'
means (B, C). Plain PyTorch keeps x and the gate (B, C).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .common import accumulation_dtype, memory_format
from .operator import operator


def lct(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float = 1e-5,
    normalization: bool = True,
) -> Tensor:
    """The input times a gate for each channel, computed from the channels' means.

    Args:
        x: Features, (B, C, H, W), any floating dtype and memory format. The gate is
            computed in float32 at least.
        weight: (C,), gain of Eq. 4. If weight and bias are None, Eq. 4 is left out.
        bias: (C,), bias of Eq. 4.
        groups: Number of groups within which channels are normalised. C must be a
            multiple of ``groups``.
        eps: Added to the variance (Eq. 3). Default: 1e-5.
        normalization: Whether to normalise within groups (Eqs. 2 and 3).

    Returns:
        The gated features, with the shape and dtype of ``x``. They are channels_last if
        ``x`` is channels_last, and contiguous otherwise.

    Raises:
        RuntimeError: If the result of kernels is differentiated twice. The message
            names the backend that has a second derivative.
    """
    return _lct(x, weight, bias, groups, eps, normalization)


def _plain(x, weight, bias, groups, eps, normalization):
    dtype = accumulation_dtype(x)
    context = x.mean((2, 3), dtype=dtype)
    if normalization:
        # The mean is subtracted first. PyTorch's group normalisation would lose digits
        # if the deviation is far smaller than the mean.
        context = context.reshape(x.shape[0], groups, x.shape[1] // groups)
        context = context - context.mean(2, keepdim=True)
        variance = context.square().mean(2, keepdim=True)
        context = (context * (variance + eps).rsqrt()).reshape(x.shape[:2])
    if weight is not None:
        context = weight.to(dtype) * context + bias.to(dtype)
    return (x * torch.sigmoid(context)[:, :, None, None]).to(x.dtype)


def _shapes(x, *_):
    return (
        torch.empty_like(x, memory_format=memory_format(x)),
        x.new_empty(x.shape[:2], dtype=accumulation_dtype(x)),
    )


_lct = operator(
    'lct',
    tensors='Tensor x, Tensor? weight, Tensor? bias',
    switches='int groups, float eps, bool normalization',
    kept='Tensor mean',
    plain=_plain,
    reference=reference.lct,
    shapes=_shapes,
)
