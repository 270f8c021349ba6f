"""Position-Aware Recalibration Module in the compiled CPU kernels.

Half-precision features are converted to float32 and channels_last features to
contiguous ones, each by a copy.
"""

from __future__ import annotations

from ctypes import byref, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from .common import accumulation_dtype
from .kernels import LIBRARY, Arguments, from_kernel, to_kernel

_SIMILARITIES = ('dot', 'l1', 'cosine')  # csrc/gates.cpp has the same order


class _Arguments(Arguments):
    _fields_ = [
        (name, c_int64)
        for name in (
            *('slabs', 'groups', 'channels', 'height', 'width'),
            *('similarity', 'normalized', 'threads'),
        )
    ] + [
        (name, c_void_p)
        for name in (
            *('x', 'gradient', 'result', 'parameters', 'position'),
            *('index', 'mean', 'statistics', 'g_parameters', 'scratch'),
        )
    ]


def forward(
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor,
    theta: Tensor | None,
    sigma: Tensor | None,
    similarity: str,
    normalization: bool,
) -> tuple[Tensor, ...]:
    """Returns y (B, C, H, W) and, for g groups of k channels, the query's index (B, g),
    the mean vector (B, g, k) and the score's statistics (B, g, 3): shift (the first
    position's score), offset (the mean of score - shift) and deviation."""
    features = to_kernel(x)
    result = torch.empty_like(features)
    slabs = (len(x), len(alpha))
    kept = (
        x.new_zeros(slabs, dtype=torch.int64),
        features.new_zeros((*slabs, x.shape[1] // len(alpha))),
        features.new_zeros((*slabs, 3)),
    )
    parameters = (alpha, beta, weight, bias, theta, sigma)
    switches = (similarity, normalization)
    _run('prm_forward', features, None, result, parameters, kept, None, switches)
    return (from_kernel(result, x), *kept)


def backward(
    gradient: Tensor,
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor,
    theta: Tensor | None,
    sigma: Tensor | None,
    *kept_and_switches: Any,
) -> tuple[Tensor, ...]:
    """Returns the gradients of x, alpha, beta, weight, bias, theta and sigma. Without
    position encoding, the gradients of theta and sigma are empty. ``kept_and_switches``
    is what ``forward`` returned after y, then ``similarity`` and ``normalization``."""
    kept, switches = kept_and_switches[:3], kept_and_switches[3:]
    features = to_kernel(x)
    result = torch.empty_like(features)
    parameters = (alpha, beta, weight, bias, theta, sigma)
    g = x.new_zeros((len(x), len(alpha), 7), dtype=torch.float64)
    g_y = to_kernel(gradient.to(features.dtype))
    _run('prm_backward', features, g_y, result, parameters, kept, g, switches)
    g = g.sum(0)
    gradients = [*g[:, :4].unbind(1)]
    gradients += [g[:, 4:6].sum(0), g[:, 6].sum()]
    return (
        from_kernel(result, x),
        *(
            x.new_empty(0) if p is None else value.to(p.dtype, copy=True)
            for p, value in zip(parameters, gradients)
        ),
    )


def _run(name, x, gradient, result, parameters, kept, g_parameters, switches):
    if x.numel() == 0:
        return
    batch, channels, height, width = x.shape
    groups = len(parameters[0])
    position = None
    if parameters[4] is not None:
        theta, sigma = (p.to(x.dtype) for p in parameters[4:])
        position = torch.cat([theta, sigma.view(1)])
    index, mean, statistics = kept
    arguments = _Arguments(
        slabs=batch * groups,
        groups=groups,
        channels=channels // groups,
        height=height,
        width=width,
        similarity=_SIMILARITIES.index(switches[0]),
        normalized=switches[1],
        threads=torch.get_num_threads(),
        x=x,
        gradient=gradient,
        result=result,
        parameters=torch.stack([p.to(x.dtype) for p in parameters[:4]]),
        position=position,
        index=index.contiguous(),
        mean=mean.contiguous(),
        statistics=statistics.contiguous(),
        g_parameters=g_parameters,
    )
    size = LIBRARY.prm_scratch(byref(arguments))
    scratch = x.new_empty((arguments.threads, size), dtype=torch.float64)
    arguments.scratch = scratch.data_ptr()
    arguments.call(name, accumulation_dtype(x))
