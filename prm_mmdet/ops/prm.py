"""Position-Aware Recalibration Module, vectorised.

Source: X. Ma and S. Fu, "Position-Aware Recalibration Module: Learning From Feature
Semantics and Feature Position", IJCAI 2020, Eqs. 1-8.
"""

import math

import torch

from .common import accumulation_dtype, without_autocast

SIMILARITIES = ('dot', 'l1', 'cosine')
# Eq. 5 divides by sigma: below this it would overflow, and at zero give NaN.
_MIN_SIGMA = 1e-5
# Far under the 1e-5 of Eq. 7, so it shows only in the gradient of the root at zero.
_MIN_VARIANCE = 1e-30


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
        Tensor: (B, C, H, W), dtype and memory format of ``x``.
    """
    dtype = accumulation_dtype(x)
    alpha, beta, weight, bias = (
        p.to(dtype).unsqueeze(1) for p in (alpha, beta, weight, bias)
    )
    with without_autocast(x):
        grouped = x.unflatten(1, (len(alpha), -1)).to(dtype)  # (B, g, k, H, W)
        slab = grouped.flatten(3)
        to_query, to_mean, index = _similarities(slab, similarity)
        if theta is not None:
            to_query = to_query * _encode_positions(
                index, theta.to(dtype), sigma.to(dtype), x.shape[2:]
            )
        score = alpha * to_query + beta * to_mean  # (B, g, N)
        if normalization:
            score = _normalize(score)
        gate = torch.sigmoid(weight * score + bias)
        gate = gate.unflatten(2, x.shape[2:]).unsqueeze(2)  # (B, g, 1, H, W)
        return (grouped * gate).flatten(1, 2).to(x.dtype)


def _similarities(slab, similarity):
    """Similarity of every position to the query point and to the mean: two (B, g, N)
    maps, and the query's index (B, g)."""
    index = slab.mean(2).argmax(2)  # the first of equals
    query = slab.gather(3, index[:, :, None, None].expand(*slab.shape[:3], 1))
    targets = torch.cat([query, slab.mean(3, keepdim=True)], 3)  # (B, g, k, 2)
    if similarity == 'l1':
        maps = [-(slab - t).abs().sum(2) for t in targets.split(1, 3)]
        return maps[0], maps[1], index
    maps = targets.transpose(2, 3) @ slab  # (B, g, 2, N)
    if similarity == 'cosine':
        norms = targets.norm(dim=2)[..., None] * slab.norm(dim=2)[:, :, None]
        maps = maps / norms.clamp(min=1e-8)
    return maps[:, :, 0], maps[:, :, 1], index


def _encode_positions(index, theta, sigma, size):
    """Mean of the two axes' Gaussian densities, (B, g, N).

    It is a sum of a function of the row and one of the column, so only (B, g, H) and
    (B, g, W) are ever exponentiated.
    """
    height, width = size
    sigma = sigma.abs().clamp(min=_MIN_SIGMA)

    def density(length, centre, scale):
        positions = torch.arange(length, device=index.device)
        ratio = scale * (positions - centre[..., None]) / sigma
        return torch.exp(-0.5 * ratio.square()) / (sigma * math.sqrt(2 * math.pi))

    rows = density(height, index.div(width, rounding_mode='floor'), theta[0])
    columns = density(width, index % width, theta[1])
    return (0.5 * (rows[..., :, None] + columns[..., None, :])).flatten(2)


def _normalize(score):
    # Shifting by one of its own values changes nothing, and makes a constant map
    # exactly zero: the rounding of a mean would be blown up by the division.
    score = score - score[..., :1].detach()
    score = score - score.mean(-1, keepdim=True)
    variance = score.square().mean(-1, keepdim=True)
    return score / (variance.clamp(min=_MIN_VARIANCE).sqrt() + 1e-5)
