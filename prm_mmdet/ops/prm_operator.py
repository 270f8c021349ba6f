"""Position-Aware Recalibration Module as one function.

Source: X. Ma and S. Fu, "Position-Aware Recalibration Module: Learning From Feature
Semantics and Feature Position", IJCAI 2020, Eqs. 1-8.

For backward, the kernels (``prm_cpp.py``, ``prm_triton.py``) keep x and, for each group
of each sample, the query's index, the mean vector and three statistics. In plain
PyTorch, autograd keeps x (in float32 if it has half precision), and about ten maps with
one number for each group and position.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import reference
from .common import (
    EPS,
    MIN_DEVIATION,
    MIN_NORMS,
    MIN_SIGMA,
    accumulation_dtype,
    memory_format,
)
from .operator import operator

SIMILARITIES = ('dot', 'l1', 'cosine')


def prm(
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor,
    theta: Tensor | None = None,
    sigma: Tensor | None = None,
    similarity: str = 'dot',
    normalization: bool = True,
) -> Tensor:
    """The input times a gate for each group of channels and each position.

    Args:
        x: Features, (B, C, H, W), any floating dtype and memory format. The gate is
            computed in float32 at least.
        alpha: (g,), weight of the similarity to the query point. g divides C, and each
            group holds k = C / g channels.
        beta: (g,), weight of the similarity to the mean.
        weight: (g,), factor of the normalised score (lambda of Eq. 8).
        bias: (g,), number added to this product (xi of Eq. 8).
        theta: (2,), factors of a position's distance to the query point, one for rows
            and one for columns. Default: None, for no position encoding (D of Eq. 5
            is 1).
        sigma: Scalar tensor, standard deviation of the position encoding, in positions
            of the feature map. Its sign is ignored, and a magnitude below 1e-5 counts
            as 1e-5. Default: None.
        similarity: 'dot' (Eq. 4), 'l1' (Eq. 3) or 'cosine' (Eq. 2).
        normalization: Whether to normalise over positions (Eqs. 6 and 7).

    Returns:
        (B, C, H, W), dtype of ``x``. The result is channels_last if
        ``x`` is, and contiguous otherwise.

    Raises:
        RuntimeError: If the result of kernels is differentiated twice. The message
            names the backend that has a second derivative.
    """
    return _prm(x, alpha, beta, weight, bias, theta, sigma, similarity, normalization)


def _plain(x, alpha, beta, weight, bias, theta, sigma, similarity, normalization):
    batch, channels, height, width = x.shape
    dtype, groups = accumulation_dtype(x), alpha.shape[0]
    alpha, beta, weight, bias = (
        p.to(dtype)[:, None] for p in (alpha, beta, weight, bias)
    )
    slab = x.to(dtype).reshape(batch, groups, channels // groups, height * width)

    # Add the channels one by one, so that positions with equal values get equal sums.
    # In torch's sum, the order of addition can depend on the position.
    index = sum(slab.detach().unbind(2)).argmax(2)  # index of the query, (B, g)
    at = index[:, :, None, None].expand(-1, -1, slab.shape[2], 1)
    targets = torch.stack([slab.gather(3, at).squeeze(3), slab.mean(3)], 2)
    # Similarity of each position to the query, and to the mean vector, each (B, g, N).
    to_query, to_mean = _similarities(slab, targets, similarity).unbind(2)
    to_query = alpha * to_query
    if theta is not None:
        to_query = to_query * _encoding(
            index, theta.to(dtype), sigma.to(dtype), x.shape
        )
    score = to_query + beta * to_mean
    if normalization:
        score = _normalize(score)
    gate = torch.sigmoid(weight * score + bias)
    return (slab * gate[:, :, None]).view(x.shape).to(x.dtype)


def _similarities(slab, targets, similarity):
    """Similarity (Eqs. 2-4) of each position to the query and to the mean vector,
    (B, g, 2, N). ``slab`` holds the features by groups, (B, g, k, N). ``targets`` holds
    the query and the mean vector, (B, g, 2, k)."""
    if similarity == 'l1':
        distances = [(slab - t[..., None]).abs().sum(2) for t in targets.unbind(2)]
        return -torch.stack(distances, 2)
    products = targets @ slab
    if similarity == 'dot':
        return products
    norms = targets.norm(dim=3)[..., None] * slab.norm(dim=2)[:, :, None]
    return products / norms.clamp(min=MIN_NORMS)


def _encoding(index, theta, sigma, shape):
    """Position encoding D (Eq. 5), (B, g, N). It is the mean of two Gaussian densities,
    over rows and over columns."""
    height, width = shape[2:]
    row = index.div(width, rounding_mode='floor')
    # PyTorch's ONNX exporter does not support % for a dynamic width.
    column = index - row * width
    sigma = sigma.abs().clamp(min=MIN_SIGMA)

    def density(length, centre, scale):
        positions = torch.arange(length, device=index.device)
        ratio = scale * (positions - centre[..., None]) / sigma
        return torch.exp(-0.5 * ratio.square()) / (sigma * math.sqrt(2 * math.pi))

    rows, columns = density(height, row, theta[0]), density(width, column, theta[1])
    return (rows[..., None] + columns[:, :, None]).flatten(2) / 2


def _normalize(score):
    """The normalised score (Eqs. 6 and 7)."""
    # If all scores are equal, the last line divides by EPS, which magnifies rounding
    # errors. Subtracting the first score makes equal scores exactly zero.
    score = score - score[..., :1].detach()
    score = score - score.mean(2, keepdim=True)
    # Division by the largest magnitude keeps the squares of large scores finite.
    peak = score.detach().abs().amax(2, keepdim=True).clamp(min=MIN_DEVIATION)
    # If all scores are equal, ``clamp`` keeps the gradient of sqrt finite.
    deviation = (score / peak).square().mean(2, keepdim=True).clamp(min=1e-30).sqrt()
    return score / (deviation * peak + EPS)


def _shapes(x, alpha, *_):
    batch, groups = x.shape[0], alpha.shape[0]
    dtype = accumulation_dtype(x)
    return (
        torch.empty_like(x, memory_format=memory_format(x)),
        x.new_empty((batch, groups), dtype=torch.int64),
        x.new_empty((batch, groups, x.shape[1] // groups), dtype=dtype),
        x.new_empty((batch, groups, 3), dtype=dtype),
    )


def _flops(shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    # Two dot products at each position, with the query q and with the mean vector z. A
    # multiplication and an addition count as two operations.
    return 4 * math.prod(shape)


def _backward_flops(shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    # Backward takes seven products at each position. Two repeat the forward's products,
    # and one multiplies gradient and x. Two give the gradients of q and z, and two the
    # gradient of x.
    return 14 * math.prod(shape)


_prm = operator(
    'prm',
    tensors='Tensor x, Tensor alpha, Tensor beta, Tensor weight, Tensor bias, '
    'Tensor? theta, Tensor? sigma',
    switches='str similarity, bool normalization',
    kept='Tensor index, Tensor mean, Tensor statistics',
    plain=_plain,
    reference=reference.prm,
    shapes=_shapes,
    flops=(_flops, _backward_flops),
)
