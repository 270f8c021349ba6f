"""Spatially-Aware Context, vectorised.

Source: D. Ruan, Y. Shi, J. Wen, N. Zheng and M. Zheng, "Spatially-Aware Context Neural
Networks", IEEE Transactions on Image Processing 30, 2021, Eqs. 2-4.
"""

from .common import accumulation_dtype, without_autocast


def sac_context(x, attention, weights, softmax=False):
    """Gather K contexts from all positions and mix them anew at each.

    Args:
        x (Tensor): Features, (B, C, H, W).
        attention (Tensor): Logits of the K attention maps, (B, K, H, W); the softmax
            over positions is taken here (Eq. 2).
        weights (Tensor): Weights of the K contexts at each position, (B, K, H, W).
        softmax (bool): Whether to normalise the weights over the K contexts (the
            paper's Table II). Default: False.

    Returns:
        Tensor: Y of Eq. 4, (B, C, H, W), dtype of ``x``; sums are accumulated in
        float32 at least.
    """
    dtype = accumulation_dtype(x)
    with without_autocast(x):
        attention = attention.flatten(2).to(dtype).softmax(2)  # (B, K, N)
        contexts = attention @ x.flatten(2).to(dtype).transpose(1, 2)  # (B, K, C)
        weights = weights.flatten(2).to(dtype)  # (B, K, N)
        if softmax:
            weights = weights.softmax(1)
        mixed = contexts.transpose(1, 2) @ weights  # (B, C, N)
        return mixed.to(x.dtype).unflatten(2, x.shape[2:])
