"""Position-Aware Recalibration Module as one operator, forward and backward.

Source: X. Ma and S. Fu, "Position-Aware Recalibration Module: Learning From Feature
Semantics and Feature Position", IJCAI 2020, Eqs. 1-8.

This module holds the public function and the operator that autograd, ``torch.compile``
and the counters of shapes and operations see; ``prm_torch.py`` and ``prm_triton.py``
compute it. For backward it keeps x and, of each group of each sample, the query's
index, the mean vector and three statistics; no map of positions.
"""

import math
from typing import Optional

import torch
from torch import Tensor

from . import prm_torch, reference
from .backend import backend
from .common import accumulation_dtype, exporting, memory_format, without_autocast
from .operator import operator

SIMILARITIES = ('dot', 'l1', 'cosine')


def prm(
    x,
    alpha,
    beta,
    weight,
    bias,
    theta=None,
    sigma=None,
    similarity='dot',
    normalization=True,
):
    """Multiply each group of channels by one gate per position.

    Args:
        x (Tensor): Features, (B, C, H, W), any floating dtype and memory format. The
            gate is computed in float32 at least.
        alpha (Tensor): (g,), weight of the similarity to the query point. g divides
            C, and each group holds k = C / g channels.
        beta (Tensor): (g,), weight of the similarity to the mean.
        weight (Tensor): (g,), lambda of Eq. 8.
        bias (Tensor): (g,), xi of Eq. 8.
        theta (Tensor, optional): (2,), scale of the distance in rows and in columns.
            Default: None, no position encoding (D = 1).
        sigma (Tensor, optional): (), standard deviation of the encoding, in positions
            of the feature map; its sign does not matter, and less than 1e-5 counts as
            1e-5. Default: None.
        similarity (str): 'dot' (Eq. 4), 'l1' (Eq. 3) or 'cosine' (Eq. 2).
        normalization (bool): Whether to normalise over positions (Eqs. 6 and 7).

    Returns:
        Tensor: (B, C, H, W), dtype of ``x``; channels_last if ``x`` is, contiguous
        otherwise. Inputs that are neither are copied once.

    Raises:
        RuntimeError: On a second differentiation, which only
            ``PRM_MMDET_BACKEND=reference`` offers (see :mod:`.select`).
    """
    inputs = (x, alpha, beta, weight, bias, theta, sigma, similarity, normalization)
    if exporting():  # in operators that every format knows
        return prm_torch.plain(*inputs)
    if backend(x) == 'reference':
        return _reference(*inputs)
    return _operator(*inputs)


def _reference(x, *inputs):
    dtype = accumulation_dtype(x)
    tensors = [t if t is None else t.to(dtype) for t in inputs[:6]]
    with without_autocast(x):
        return reference.prm(x.to(dtype), *tensors, *inputs[6:]).to(x.dtype)


# The operator: its two directions, their shapes, and how autograd joins them.


def _forward(
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor,
    theta: Optional[Tensor],
    sigma: Optional[Tensor],
    similarity: str,
    normalization: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns y, and what backward keeps of each slab: the query's index (B, g), the
    mean vector (B, g, k), and three statistics of the score (B, g, 3)."""
    inputs = (x, alpha, beta, weight, bias, theta, sigma, similarity, normalization)
    with without_autocast(x):
        if backend(x) == 'triton':
            from . import prm_triton

            return prm_triton.forward(*inputs)
        return prm_torch.forward(*inputs)


def _backward(
    gradient: Tensor,
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor,
    theta: Optional[Tensor],
    sigma: Optional[Tensor],
    index: Tensor,
    mean: Tensor,
    statistics: Tensor,
    similarity: str,
    normalization: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of x, alpha, beta, weight, bias, theta and sigma; without
    position encoding the last two are empty."""
    inputs = (x, alpha, beta, weight, bias, theta, sigma)
    kept = (index, mean, statistics, similarity, normalization)
    with without_autocast(x):
        if backend(x) == 'triton':
            from . import prm_triton

            return prm_triton.backward(gradient, *inputs, *kept)
        return prm_torch.backward(gradient, *inputs, *kept)


def _shapes(x, alpha, *_):
    batch, groups = x.shape[0], alpha.shape[0]
    dtype = accumulation_dtype(x)
    return (
        torch.empty_like(x, memory_format=memory_format(x)),
        x.new_empty((batch, groups), dtype=torch.int64),
        x.new_empty((batch, groups, x.shape[1] // groups), dtype=dtype),
        x.new_empty((batch, groups, 3), dtype=dtype),
    )


def _flops(shape, *_, **__):
    # Two products with the vectors q and z at each position.
    return 4 * math.prod(shape)


def _backward_flops(shape, *_, **__):
    # The two products again; those of gradient and x, of the gradients of q and z, and
    # two terms of that of x.
    return 14 * math.prod(shape)


_operator = operator(
    'prm', _forward, _backward, _shapes, tensors=7, flops=(_flops, _backward_flops)
)
