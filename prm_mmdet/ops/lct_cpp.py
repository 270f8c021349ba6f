"""Linear Context Transform in the compiled CPU kernels.

The kernels read contiguous features in float32 or float64. Half-precision and
channels_last features are therefore copied first.
"""

from __future__ import annotations

from ctypes import c_double
from typing import Any

import torch
from torch import Tensor

from .common import as_gradients
from .kernels import Arguments, from_kernel, integers, pointers, to_kernel


class _Arguments(Arguments):
    _fields_ = (
        *integers('slabs groups channels positions normalized threads'),
        ('eps', c_double),
        *pointers('x gradient result weight bias mean g_weight g_bias scratch'),
    )


def forward(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    """Takes the arguments of ``lct``. Returns the output y (B, C, H, W), and the mean
    of each channel (B, C)."""
    features = to_kernel(x)
    result = torch.empty_like(features)
    mean = features.new_zeros(x.shape[:2])
    _run(features, *inputs, result=result, mean=mean)
    return from_kernel(result, x), mean


def backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    *switches: Any,
) -> tuple[Tensor, ...]:
    """Takes the gradient of the output, then x, weight and bias, the means that
    ``forward`` returned, and the other arguments of ``lct``. Returns the gradients
    of x, weight and bias. If weight and bias are None, their gradients are empty
    tensors."""
    features = to_kernel(x)
    g_x = torch.empty_like(features)
    g = x.new_zeros((2, *x.shape[:2]), dtype=torch.float64)
    _run(
        features,
        weight,
        bias,
        *switches,
        gradient=to_kernel(gradient.to(features.dtype)),
        result=g_x,
        mean=mean.contiguous(),
        g_weight=g[0],
        g_bias=g[1],
    )
    return from_kernel(g_x, x), *as_gradients(x, (weight, bias), g.sum(1))


def _run(x, weight, bias, groups, eps, normalization, **tensors):
    if x.numel() == 0:
        return
    batch, channels, height, width = x.shape
    weight, bias = (
        p if p is None else p.to(x.dtype).contiguous() for p in (weight, bias)
    )
    threads, size = torch.get_num_threads(), channels // groups
    _Arguments(
        slabs=batch * groups,
        groups=groups,
        channels=size,
        positions=height * width,
        normalized=normalization,
        threads=threads,
        eps=eps,
        x=x,
        weight=weight,
        bias=bias,
        scratch=x.new_empty((threads, 3 * size), dtype=torch.float64),
        **tensors,
    ).call('lct', x.dtype)
