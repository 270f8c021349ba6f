"""The blocks in vectorised PyTorch, to compare this package's operators with.

Each function follows its paper's equations, and ``torch.compile`` can compile it. Its
arguments, defaults and result are those of the operator of the same name in
:mod:`prm_mmdet.ops`. ``x`` is (B, C, H, W), and N = H * W. PRM splits the channels into
g groups of k channels. SAC has K contexts (weighted means of x over the positions).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def prm(
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor,
    theta: Tensor,
    sigma: Tensor,
) -> Tensor:
    """PRM with dot products as similarities, as in the code of the paper's authors.

    A group's query point is the position where the mean over its channels is largest.
    The position encoding (Eq. 5) requires the distance of each position to the query
    point. A tensor (2, N) for each group stores the distances along both axes.
    """
    height, width = x.shape[2:]
    alpha, beta, weight, bias = (p[:, None] for p in (alpha, beta, weight, bias))
    # x with its channels in groups, (B, g, k, N).
    slab = x.reshape(len(x), len(alpha), -1, height * width)
    # Which of the N positions is the query point of a group, (B, g).
    index = slab.mean(2).argmax(2)
    at_index = index[:, :, None, None].expand(-1, -1, slab.shape[2], 1)
    query, mean = slab.gather(3, at_index), slab.mean(3, keepdim=True)
    grid = torch.cartesian_prod(
        torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    )  # row and column of each position, (N, 2)
    point = torch.stack([index // width, index % width], 2)[..., None]
    # Number of rows, and number of columns, between each position and the query point.
    # Both numbers are multiplied by theta. The shape is (B, g, 2, N).
    distance = (grid.T - point).abs() * theta[:, None]
    density = torch.exp(-0.5 * (distance / sigma) ** 2)
    density = (density / (sigma * math.sqrt(2 * math.pi))).mean(2)
    to_query, to_mean = (slab * query).sum(2), (slab * mean).sum(2)
    score = alpha * to_query * density + beta * to_mean
    deviation = score.std(2, keepdim=True, unbiased=False)
    score = (score - score.mean(2, keepdim=True)) / (deviation + 1e-5)
    gate = torch.sigmoid(weight * score + bias)
    return (slab * gate[:, :, None]).reshape(x.shape)


def lct(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """LCT, by Eqs. 2-5 of its paper."""
    normalised = F.group_norm(x.mean((2, 3)), groups, weight, bias, 1e-5)
    return x * torch.sigmoid(normalised)[..., None, None]


def sac(
    x: Tensor,
    w_attention: Tensor,
    b_attention: Tensor,
    w_customization: Tensor,
    b_customization: Tensor,
    w_transform: Tensor,
    b_transform: Tensor,
) -> Tensor:
    """SAC, computed in the order of the paper's equations. First the K contexts are
    mixed into a map (B, C, N). Then a 1x1 convolution with C * C * N multiplications
    transforms the map."""
    attention = _conv(x, w_attention, b_attention).flatten(2).softmax(2)
    weights = _conv(x, w_customization, b_customization).flatten(2)
    # K contexts of C channels, (B, K, C).
    contexts = attention @ x.flatten(2).transpose(1, 2)
    mixture = (contexts.transpose(1, 2) @ weights).reshape(x.shape)
    return x + _conv(mixture, w_transform, b_transform)


def se(
    x: Tensor, w_squeeze: Tensor, b_squeeze: Tensor, w_excite: Tensor, b_excite: Tensor
) -> Tensor:
    """Squeeze-and-Excitation."""
    hidden = F.relu(F.linear(x.mean((2, 3)), w_squeeze, b_squeeze))
    return x * torch.sigmoid(F.linear(hidden, w_excite, b_excite))[..., None, None]


def gc(
    x: Tensor,
    w_attention: Tensor,
    b_attention: Tensor,
    w_first: Tensor,
    b_first: Tensor,
    w_last: Tensor,
    b_last: Tensor,
) -> Tensor:
    """Global Context, with attention pooling and channel addition."""
    # The weight of each position, (B, 1, N). The weights of an image have the sum 1.
    attention = _conv(x, w_attention, b_attention).flatten(2).softmax(2)
    # The weighted mean of x over the positions, (B, C).
    context = (x.flatten(2) @ attention.transpose(1, 2)).squeeze(2)
    hidden = F.linear(context, w_first, b_first)
    hidden = F.relu(F.layer_norm(hidden, hidden.shape[1:]))
    return x + F.linear(hidden, w_last, b_last)[..., None, None]


def _conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight[:, :, None, None], bias)
