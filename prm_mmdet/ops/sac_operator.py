"""Spatially-Aware Context as one function, with fewer multiplications.

Source: D. Ruan, Y. Shi, J. Wen, N. Zheng and M. Zheng, "Spatially-Aware Context Neural
Networks", IEEE Transactions on Image Processing 30, 2021, Eqs. 2-5.

A sample x has C channels and N positions. SAC gathers K contexts, (K, C), and mixes
them at each position by weights, (K, N). The mixture is the matrix product
Y = contexts^T weights, (C, N). A linear convolution W, (D, C), gives the output W Y.

Here, the output is computed as (W contexts^T) weights. This takes K (N + C)
multiplications for each of the D output channels. Computing W Y takes C N
multiplications for each output channel, and memory for Y.

For backward, the kernels (``sac_cpp.py``) keep x, the contexts (B, K, C) and the
denominators of the attention (B, K). Plain PyTorch keeps x, x minus its mean (in
float32 at least), and the maps of attention and weights (B, 2K, N).
"""

from __future__ import annotations

from torch import Tensor

from . import reference
from .common import accumulation_dtype, memory_format, without_autocast
from .operator import operator


def sac(
    x: Tensor,
    w_attention: Tensor,
    b_attention: Tensor,
    w_customization: Tensor,
    b_customization: Tensor,
    w_transform: Tensor,
    b_transform: Tensor,
    softmax: bool = False,
    residual: bool = True,
) -> Tensor:
    """The input plus K contexts, mixed anew at each position and transformed.

    Args:
        x: Features, (B, C, H, W), any floating dtype and memory format. Everything is
            computed in float32 at least.
        w_attention: (K, C), from x to the logits of the K attention maps (Eq. 2).
        b_attention: (K,), bias of these logits.
        w_customization: (K, C), from x to the weights of the K contexts at each
            position (Eq. 4).
        b_customization: (K,), bias of these weights.
        w_transform: (D, C), from the mixture of contexts to the output (Eq. 5).
        b_transform: (D,), bias of the output.
        softmax: Whether to normalise the weights over the K contexts (the paper's
            Table II). Default: False.
        residual: Whether to add x, which requires D = C. Default: True.

    Returns:
        (B, D, H, W), dtype of ``x``.

    Raises:
        RuntimeError: If the result of kernels is differentiated twice. The message
            names the backend that has a second derivative.
    """
    attention = (w_attention, b_attention)
    customization = (w_customization, b_customization)
    transform = (w_transform, b_transform)
    return _sac(x, *attention, *customization, *transform, softmax, residual)


def sac_context(
    x: Tensor, attention: Tensor, weights: Tensor, softmax: bool = False
) -> Tensor:
    """Gather K contexts from all positions, and mix them anew at each position. Other
    blocks share this part of SAC.

    Args:
        x (Tensor): Features, (B, C, H, W).
        attention (Tensor): Logits of the K attention maps, (B, K, H, W). This function
            applies the softmax over positions (Eq. 2).
        weights (Tensor): Weights of the K contexts at each position, (B, K, H, W).
        softmax (bool): Whether to normalise the weights over the K contexts (the
            paper's Table II). Default: False.

    Returns:
        Tensor: Y of Eq. 4, (B, C, H, W), dtype of ``x``. Sums are accumulated in
        float32 at least.
    """
    dtype = accumulation_dtype(x)
    with without_autocast(x):
        # Shapes: attention and weights (B, K, N), contexts (B, K, C), mixed (B, C, N).
        attention = attention.flatten(2).to(dtype).softmax(2)
        contexts = attention @ x.flatten(2).to(dtype).transpose(1, 2)
        weights = weights.flatten(2).to(dtype)
        if softmax:
            weights = weights.softmax(1)
        mixed = contexts.transpose(1, 2) @ weights
        return mixed.to(x.dtype).reshape(x.shape)


def _plain(
    x,
    w_attention,
    b_attention,
    w_customization,
    b_customization,
    w_transform,
    b_transform,
    softmax,
    residual,
):
    dtype = accumulation_dtype(x)
    # Shapes: features (B, C, N), attention and weights (B, K, N), contexts (B, C, K).
    features = x.flatten(2).to(dtype)
    # Subtracting the features' mean does not change the attention. It keeps gradients
    # accurate if the features' mean is far larger than their deviation.
    centre = features.detach().mean(2, keepdim=True)
    centred = features - centre
    attention = w_attention.to(dtype) @ centred + b_attention.to(dtype)[:, None]
    attention = attention.softmax(2)
    weights = w_customization.to(dtype) @ features + b_customization.to(dtype)[:, None]
    if softmax:
        weights = weights.softmax(1)
    contexts = centred @ attention.transpose(1, 2) + centre
    y = w_transform.to(dtype) @ contexts @ weights + b_transform.to(dtype)[:, None]
    if residual:
        y = y + features
    # Use reshape. For unflatten, PyTorch's older ONNX exporter would write fixed sizes.
    return y.to(x.dtype).reshape(x.shape[0], y.shape[1], *x.shape[2:])


def _shapes(x, w_attention, b, w_customization, b2, w_transform, *_):
    dtype, contexts = accumulation_dtype(x), w_attention.shape[0]
    y = x.new_empty((x.shape[0], w_transform.shape[0], *x.shape[2:]))
    return (
        y.contiguous(memory_format=memory_format(x)),
        x.new_empty((x.shape[0], contexts), dtype=dtype),
        x.new_empty((x.shape[0], contexts, x.shape[1]), dtype=dtype),
    )


def _products(x, w_attention, w_transform):
    """Numbers of multiplications in three steps of SAC: gather K contexts, mix the
    transformed contexts at each position, and transform the contexts from C to D
    channels."""
    batch, channels, height, width = x
    k = batch * w_attention[0]
    positions = k * height * width
    return (
        positions * channels,
        positions * w_transform[0],
        k * w_transform[0] * channels,
    )


def _flops(x, w_attention, b, w_customization, b2, w_transform, *_, **__):
    gather, mix, transform = _products(x, w_attention, w_transform)
    # Computing the attention's logits takes as many multiplications as gathering the
    # contexts. So does computing the weights. Therefore ``gather`` counts three times.
    return 2 * (3 * gather + mix + transform)


def _backward_flops(g, x, w_attention, b, w_customization, b2, w_transform, *_, **__):
    gather, mix, transform = _products(x, w_attention, w_transform)
    # Eight products take as many multiplications as gathering the contexts. Two compute
    # logits and weights again, and one gives the gradient of the attention. Two give
    # the gradients of the convolutions for logits and weights. Three give the gradient
    # of x.
    return 2 * (8 * gather + 2 * mix + 3 * transform)


_sac = operator(
    'sac',
    tensors='Tensor x, Tensor w_attention, Tensor b_attention, Tensor w_customization, '
    'Tensor b_customization, Tensor w_transform, Tensor b_transform',
    switches='bool softmax, bool residual',
    kept='Tensor log_sums, Tensor contexts',
    plain=_plain,
    reference=reference.sac,
    shapes=_shapes,
    flops=(_flops, _backward_flops),
    kernels=('cpp',),
)
