"""Position-Aware Recalibration Module in the compiled CPU kernels.

The kernels read contiguous features in float32 or float64. Half-precision and
channels_last features are therefore copied first.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch
from torch import Tensor

from .common import as_gradients
from .kernels import LIBRARY, Arguments, from_kernel, integers, pointers, to_kernel

# In the same order as the enum Similarity in csrc/gates.cpp.
_SIMILARITIES = ('dot', 'l1', 'cosine')


class _Arguments(Arguments):
    _fields_ = (
        *integers('slabs groups channels height width similarity normalized threads'),
        *pointers('x gradient result parameters position index mean statistics'),
        *pointers('g_parameters scratch'),
    )


def forward(x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Takes the arguments of ``prm``. Returns the output y (B, C, H, W) and three
    tensors for g groups of k channels: the query's index (B, g), the mean vector
    (B, g, k) and statistics of the score (B, g, 3). The statistics are shift (the first
    position's score), offset (the mean of the scores minus shift) and the deviation."""
    *parameters, similarity, normalization = inputs
    features = to_kernel(x)
    result = torch.empty_like(features)
    slabs = (len(x), len(parameters[0]))
    kept = (
        x.new_zeros(slabs, dtype=torch.int64),
        features.new_zeros((*slabs, x.shape[1] // slabs[1])),
        features.new_zeros((*slabs, 3)),
    )
    arguments = (features, parameters, kept, similarity, normalization)
    _run('prm_forward', *arguments, result=result)
    return from_kernel(result, x), *kept


def backward(gradient: Tensor, x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Takes the gradient of the output, the tensors that ``prm`` takes, the three
    tensors that ``forward`` returned for backward, and the other arguments of ``prm``.
    Returns the gradients of x, alpha, beta, weight, bias, theta and sigma. If theta and
    sigma are None, their gradients are empty tensors."""
    *parameters, index, mean, statistics, similarity, normalization = inputs
    features = to_kernel(x)
    g_x = torch.empty_like(features)
    g_y = to_kernel(gradient.to(features.dtype))
    g = x.new_zeros((len(x), len(parameters[0]), 7), dtype=torch.float64)
    kept = (index.contiguous(), mean.contiguous(), statistics.contiguous())
    arguments = (features, parameters, kept, similarity, normalization)
    _run('prm_backward', *arguments, result=g_x, gradient=g_y, g_parameters=g)
    g = g.sum(0)
    values = [*g[:, :4].unbind(1), g[:, 4:6].sum(0), g[:, 6].sum()]
    return from_kernel(g_x, x), *as_gradients(x, parameters, values)


def _run(name, x, parameters, kept, similarity, normalization, **tensors):
    if x.numel() == 0:
        return
    batch, channels, height, width = x.shape
    *vectors, theta, sigma = parameters
    groups, position = len(vectors[0]), None
    if theta is not None:
        position = torch.cat([theta.to(x.dtype), sigma.to(x.dtype).view(1)])
    index, mean, statistics = kept
    arguments = _Arguments(
        slabs=batch * groups,
        groups=groups,
        channels=channels // groups,
        height=height,
        width=width,
        similarity=_SIMILARITIES.index(similarity),
        normalized=normalization,
        threads=torch.get_num_threads(),
        x=x,
        parameters=torch.stack([p.to(x.dtype) for p in vectors]),
        position=position,
        index=index,
        mean=mean,
        statistics=statistics,
        **tensors,
    )
    size = LIBRARY.prm_scratch(byref(arguments))
    arguments.set(scratch=x.new_empty((arguments.threads, size), dtype=torch.float64))
    arguments.call(name, x.dtype)
