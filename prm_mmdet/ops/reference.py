"""The three blocks, equation by equation, in the dtype of their input.

The code here is easy to read, and the fast implementations are tested against it. The
equations keep their order, and no step is left out. ``x`` is (B, C, H, W), with N =
H * W positions. PRM has g groups of k = C / g channels. Each block has two functions:
one for the intermediate quantities that :mod:`prm_mmdet.inspection` shows, and one for
the output.
"""

import math
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

MIN_SIGMA = 1e-5


def prm(x: Tensor, alpha: Tensor, *inputs: Any, **switches: Any) -> Tensor:
    """Position-Aware Recalibration Module (Ma and Fu, IJCAI 2020, Eqs. 1-8).

    The arguments are those of :func:`prm_steps`.
    """
    b, c, h, w = x.shape
    gate = prm_steps(x, alpha, *inputs, **switches).gate
    groups = alpha.numel()
    slab = x.reshape(b, groups, c // groups, h * w)
    return (slab * gate[:, :, None]).reshape(b, c, h, w)


class PRMSteps(NamedTuple):
    """Intermediate results of PRM, and its gate."""

    query: Tensor  # (B, g), index of the query point among the N positions
    encoding: Optional[Tensor]  # position encoding D (Eq. 5), (B, g, N), or None
    gate: Tensor  # gate of each group and position, (B, g, N)


def prm_steps(
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor,
    theta: Optional[Tensor] = None,
    sigma: Optional[Tensor] = None,
    similarity: str = 'dot',
    normalization: bool = True,
) -> PRMSteps:
    """The gate of PRM, and the quantities that lead to it.

    The shape of ``alpha``, ``beta``, ``weight`` and ``bias`` is (g,). The shape of
    ``theta`` is (2,), and ``sigma`` is a scalar. If ``theta`` and ``sigma`` are None,
    there is no position encoding.
    """
    b, c, h, w = x.shape
    g = alpha.numel()
    alpha, beta, weight, bias = (p.view(1, g, 1) for p in (alpha, beta, weight, bias))
    slab = x.reshape(b, g, c // g, h * w)

    # The query q is the position with the largest mean over channels, and z is the mean
    # over positions. The channels are added one by one. So positions with equal values
    # get equal sums. In torch's mean, the order of addition depends on the position.
    total: Any = sum(channel for channel in slab.unbind(2))
    i = total.argmax(-1)  # index of the query, (B, g)
    q = slab.gather(3, i[..., None, None].expand(-1, -1, c // g, 1)).squeeze(3)
    z = slab.mean(3)

    # Position encoding D (Eq. 5): the mean of two Gaussian densities, over rows and
    # over columns.
    D = None
    if theta is not None:
        assert sigma is not None, 'theta requires sigma'
        rows = torch.arange(h).repeat_interleave(w).to(x)
        columns = torch.arange(w).repeat(h).to(x)
        # row and column of the query, (B, g, 2)
        query = torch.stack([i // w, i % w], 2).to(x)
        p = torch.stack([rows, columns])  # row and column of each position, (2, N)
        d = sigma.abs().clamp(min=MIN_SIGMA)
        # Distance of each position to the query, in rows and in columns, (B, g, 2, N).
        distance = (p - query[..., None]).abs()
        exponent = -0.5 * (theta.view(2, 1) * distance / d) ** 2
        density = torch.exp(exponent) / (d * math.sqrt(2 * math.pi))
        D = density.mean(2)

    # The score S (Eq. 1).
    to_query = alpha * _phi(slab, q, similarity)
    if D is not None:
        to_query = to_query * D
    S = to_query + beta * _phi(slab, z, similarity)

    # Normalise the score (Eqs. 6 and 7). The square root has an infinite gradient at 0.
    # So it is not computed if the variance is 0.
    if normalization:
        centred = S - S.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        flat = variance == 0
        deviation = torch.where(flat, torch.ones_like(variance), variance).sqrt()
        deviation = torch.where(flat, torch.zeros_like(variance), deviation)
        S = centred / (deviation + 1e-5)

    # The gate is the sigmoid of lambda S + xi (Eq. 8).
    return PRMSteps(i, D, torch.sigmoid(weight * S + bias))


def _phi(slab, v, similarity):
    """Similarity (Eqs. 2-4) of each position to a vector, (B, g, N). ``slab`` holds
    the features by groups, (B, g, k, N). ``v`` holds one vector for each group,
    (B, g, k)."""
    v = v[..., None]
    if similarity == 'l1':
        return -(slab - v).abs().sum(2)
    dot = (slab * v).sum(2)
    if similarity == 'dot':
        return dot
    norms = slab.norm(dim=2) * v.norm(dim=2)
    return dot / torch.maximum(norms, torch.full_like(norms, 1e-8))


def lct(x: Tensor, *inputs: Any, **switches: Any) -> Tensor:
    """Linear Context Transform (Ruan et al., AAAI 2020, Eqs. 2-5).

    The arguments are those of :func:`lct_gate`.
    """
    return x * lct_gate(x, *inputs, **switches)[:, :, None, None]


def lct_gate(
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    groups: int,
    eps: float = 1e-5,
    normalization: bool = True,
) -> Tensor:
    """The gate of LCT, (B, C).

    ``weight`` and ``bias`` are (C,). If both are None, Eq. 4 is left out.
    """
    b, c, h, w = x.shape
    z = x.reshape(b, c, h * w).mean(2)
    if normalization:
        v = z.reshape(b, groups, c // groups)
        mu = v.mean(2, keepdim=True)
        deviation = (((v - mu) ** 2).mean(2, keepdim=True) + eps).sqrt()
        z = ((v - mu) / deviation).reshape(b, c)
    if weight is not None:
        assert bias is not None, 'weight requires bias'
        z = weight * z + bias
    return torch.sigmoid(z)


def sac(
    x: Tensor,
    w_phi: Tensor,
    b_phi: Tensor,
    w_theta: Tensor,
    b_theta: Tensor,
    w_rho: Tensor,
    b_rho: Tensor,
    softmax: bool = False,
    residual: bool = True,
) -> Tensor:
    """Spatially-Aware Context (Ruan et al., IEEE TIP 2021, Eqs. 2-5).

    There are K contexts and D output channels. The shape of ``w_phi`` and ``w_theta``
    is (K, C), and the shape of their biases is (K,). The shape of ``w_rho`` is (D, C),
    and the shape of its bias is (D,).
    ``softmax`` normalises the weights over the K contexts (the paper's Table II).
    ``residual`` adds x, which requires D = C.
    """
    b, c, h, w = x.shape
    X = x.reshape(b, c, h * w)
    attention, weights = sac_maps(x, w_phi, b_phi, w_theta, b_theta, softmax)
    mu = attention @ X.transpose(1, 2)  # contexts, (B, K, C)
    Y = mu.transpose(1, 2) @ weights  # mixture of contexts, (B, C, N)
    Z = w_rho @ Y + b_rho[:, None]
    if residual:
        Z = X + Z
    return Z.reshape(b, -1, h, w)


class SACMaps(NamedTuple):
    """The maps of SAC: one number for each context at each position."""

    attention: Tensor  # alpha of Eq. 2, (B, K, N). The sum over positions is 1
    weights: Tensor  # beta of Eq. 4, the weights of the contexts, (B, K, N)


def sac_maps(
    x: Tensor,
    w_phi: Tensor,
    b_phi: Tensor,
    w_theta: Tensor,
    b_theta: Tensor,
    softmax: bool = False,
) -> SACMaps:
    """The attention maps (Eq. 2) and the weights of the contexts (Eq. 4) of SAC."""
    X = x.reshape(*x.shape[:2], -1)
    attention = _softmax(w_phi @ X + b_phi[:, None], 2)
    weights = w_theta @ X + b_theta[:, None]
    return SACMaps(attention, _softmax(weights, 1) if softmax else weights)


def _softmax(logits, dim):
    e = torch.exp(logits - logits.amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)
