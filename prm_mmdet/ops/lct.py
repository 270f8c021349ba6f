"""Linear Context Transform, vectorised.

Source: D. Ruan, J. Wen, N. Zheng and M. Zheng, "Linear Context Transform Block",
AAAI 2020, Eqs. 2-5.
"""

import torch
import torch.nn.functional as F

from .common import accumulation_dtype, without_autocast


def lct(x, weight, bias, groups, eps=1e-5, normalization=True):
    """Multiply each channel by a gate computed from the channels' means.

    Args:
        x (Tensor): Features, (B, C, H, W), any floating dtype and memory format. The
            gate is computed in float32 at least.
        weight (Tensor | None): (C,), gain of Eq. 4; None, together with ``bias``,
            leaves the transform out.
        bias (Tensor | None): (C,), bias of Eq. 4.
        groups (int): Groups of channels that are normalised together; divides C.
        eps (float): Added to the variance (Eq. 3). Default: 1e-5.
        normalization (bool): Whether to normalise within groups (Eqs. 2 and 3).

    Returns:
        Tensor: (B, C, H, W), dtype and memory format of ``x``.
    """
    dtype = accumulation_dtype(x)
    with without_autocast(x):
        context = x.mean((2, 3), dtype=dtype)  # (B, C)
        if weight is not None:
            weight, bias = weight.to(dtype), bias.to(dtype)
        if normalization:
            # Eqs. 2-4 are group normalisation of a map of one position.
            context = F.group_norm(context, groups, weight, bias, eps)
        elif weight is not None:
            context = weight * context + bias
        gate = torch.sigmoid(context)[:, :, None, None]
        return (x * gate).to(x.dtype)
