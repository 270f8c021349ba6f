"""Linear Context Transform in the compiled CPU kernels.

Half-precision features are converted to float32 and channels_last features to
contiguous ones, each by a copy.
"""

from __future__ import annotations

from ctypes import c_double, c_int64, c_void_p

import torch
from torch import Tensor

from .kernels import Arguments, from_kernel, to_kernel


class _Arguments(Arguments):
    _fields_ = (
        *((name, c_int64) for name in ('slabs', 'groups', 'channels', 'positions')),
        *((name, c_int64) for name in ('normalized', 'threads')),
        ('eps', c_double),
        *((name, c_void_p) for name in ('x', 'gradient', 'result', 'weight', 'bias')),
        *((name, c_void_p) for name in ('mean', 'g_weight', 'g_bias', 'scratch')),
    )


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    normalization: bool,
) -> tuple[Tensor, Tensor]:
    """Returns y (B, C, H, W) and the channels' means (B, C)."""
    features = to_kernel(x)
    result = torch.empty_like(features)
    mean = features.new_zeros(x.shape[:2])
    transform = (weight, bias)
    _run(features, None, result, transform, mean, None, groups, eps, normalization)
    return from_kernel(result, x), mean


def backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    groups: int,
    eps: float,
    normalization: bool,
) -> tuple[Tensor, ...]:
    """Returns the gradients of x, weight and bias. Without the transform (Eq. 4), the
    gradients of weight and bias are empty."""
    features = to_kernel(x)
    result = torch.empty_like(features)
    transform = (weight, bias)
    g = x.new_zeros((2, *x.shape[:2]), dtype=torch.float64)
    g_y = to_kernel(gradient.to(features.dtype))
    _run(features, g_y, result, transform, mean, g, groups, eps, normalization)
    return (
        from_kernel(result, x),
        *(
            x.new_empty(0) if p is None else value.to(p.dtype, copy=True)
            for p, value in zip(transform, g.sum(1))
        ),
    )


def _run(x, gradient, result, transform, mean, g_transform, groups, eps, normalization):
    if x.numel() == 0:
        return
    batch, channels, height, width = x.shape
    weight, bias = (p if p is None else p.to(x.dtype).contiguous() for p in transform)
    g_weight, g_bias = (None, None) if g_transform is None else g_transform
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
        gradient=gradient,
        result=result,
        weight=weight,
        bias=bias,
        mean=mean.contiguous(),
        g_weight=g_weight,
        g_bias=g_bias,
        scratch=x.new_empty((threads, 3 * size), dtype=torch.float64),
    ).call('lct', x.dtype)
