"""Spatially-Aware Context as one operator, forward and backward, re-associated.

Source: D. Ruan, Y. Shi, J. Wen, N. Zheng and M. Zheng, "Spatially-Aware Context Neural
Networks", IEEE Transactions on Image Processing 30, 2021, Eqs. 2-5.

The mixture of contexts Y = contexts^T weights has rank K, and the convolution after it
is linear: W Y = (W contexts^T) weights costs K (N + C) multiplications a channel
instead of C N, and Y is never formed. For backward the operator keeps x, the two maps
(B, 2K, N) and the contexts (B, K, C).
"""

import torch
from torch import Tensor

from . import reference
from .backend import backend
from .common import accumulation_dtype, exporting, memory_format, without_autocast
from .operator import operator

# Bytes of x that one step takes, in the dtype of accumulation: few enough to bound the
# float32 copies of half-precision features, enough to pay for starting the threads of
# some twenty products.
_STEP = {'cpu': 1 << 25}
_STEP_ELSEWHERE = 1 << 28


def sac(
    x,
    w_attention,
    b_attention,
    w_customization,
    b_customization,
    w_transform,
    b_transform,
    softmax=False,
    residual=True,
):
    """Gather K contexts from all positions, mix them anew at each, and transform.

    Args:
        x (Tensor): Features, (B, C, H, W), any floating dtype and memory format.
            Everything is computed in float32 at least.
        w_attention (Tensor): (K, C), from x to the logits of the K attention maps
            (Eq. 2).
        b_attention (Tensor): (K,).
        w_customization (Tensor): (K, C), from x to the weights of the K contexts at
            each position (Eq. 3).
        b_customization (Tensor): (K,).
        w_transform (Tensor): (D, C), from the mixture of contexts to the output
            (Eq. 5).
        b_transform (Tensor): (D,).
        softmax (bool): Whether to normalise the weights over the K contexts (the
            paper's Table II). Default: False.
        residual (bool): Whether to add x, for which D is C. Default: True.

    Returns:
        Tensor: (B, D, H, W), dtype of ``x``; channels_last if ``x`` is, contiguous
        otherwise.

    Raises:
        RuntimeError: On a second differentiation, which only
            ``PRM_MMDET_BACKEND=reference`` offers (see :mod:`.select`).
    """
    convolutions = (w_attention, b_attention, w_customization, b_customization)
    inputs = (x, *convolutions, w_transform, b_transform, softmax, residual)
    if exporting():  # in operators that every format knows
        return _plain(*inputs)
    if backend(x, kernels=False) == 'reference':
        return _reference(*inputs)
    return _operator(*inputs)


def sac_context(x, attention, weights, softmax=False):
    """Gather K contexts from all positions and mix them anew at each, the part of SAC
    that other blocks share.

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
        return mixed.to(x.dtype).reshape(x.shape)


def _reference(x, *inputs):
    dtype = accumulation_dtype(x)
    parameters = [t.to(dtype) for t in inputs[:6]]
    with without_autocast(x):
        return reference.sac(x.to(dtype), *parameters, *inputs[6:]).to(x.dtype)


def _plain(x, *inputs):
    """The forward in one step, of operators that autograd and exporters know."""
    *parameters, softmax, residual = inputs
    dtype = accumulation_dtype(x)
    w_attention, b_attention, w_customization, b_customization, *transform = (
        t.to(dtype) for t in parameters
    )
    with without_autocast(x):
        features = x.flatten(2).to(dtype)
        attention = (w_attention @ features + b_attention[:, None]).softmax(2)
        weights = w_customization @ features + b_customization[:, None]
        if softmax:
            weights = weights.softmax(1)
        contexts = attention @ features.transpose(1, 2)
        y = transform[0] @ contexts.transpose(1, 2) @ weights + transform[1][:, None]
        if residual:
            y = y + features
        # Not by unflatten, behind which torch's older ONNX exporter freezes sizes.
        return y.to(x.dtype).reshape(x.shape[0], y.shape[1], *x.shape[2:])


def _forward(
    x: Tensor,
    w_attention: Tensor,
    b_attention: Tensor,
    w_customization: Tensor,
    b_customization: Tensor,
    w_transform: Tensor,
    b_transform: Tensor,
    softmax: bool,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y, the maps of attention and of weights (B, 2K, N), and the contexts
    (B, K, C)."""
    tensors = (x, w_attention, b_attention, w_customization, b_customization)
    y, maps, contexts = _shapes(*tensors, w_transform)
    dtype, k = maps.dtype, len(w_attention)
    w = torch.cat([w_attention, w_customization]).to(dtype)
    b = torch.cat([b_attention, b_customization]).to(dtype)[:, None]
    w_last, b_last = w_transform.to(dtype), b_transform.to(dtype)[:, None]
    with without_autocast(x):
        for step in _steps(x):
            features = _read(x, step, dtype)
            logits = torch.baddbmm(b, w.expand(len(features), -1, -1), features)
            attention, weights = logits.split(k, 1)
            attention = attention.softmax(2)
            if softmax:
                weights = weights.softmax(1)
            torch.cat([attention, weights], 1, out=maps[step])
            torch.bmm(attention, features.transpose(1, 2), out=contexts[step])
            # Eq. 5.
            mixing = _each(w_last, contexts[step].transpose(1, 2))  # (S, D, K)
            result = _room(y, step, dtype)
            if residual:
                torch.add(features, b_last, out=result)
            else:
                result.copy_(b_last.expand_as(result))
            _store(y, step, result.baddbmm_(mixing, weights))
    return y, maps, contexts


def _backward(
    gradient: Tensor,
    x: Tensor,
    w_attention: Tensor,
    b_attention: Tensor,
    w_customization: Tensor,
    b_customization: Tensor,
    w_transform: Tensor,
    b_transform: Tensor,
    maps: Tensor,
    contexts: Tensor,
    softmax: bool,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of x and of the six parameters."""
    dtype, k = maps.dtype, len(w_attention)
    softmax_backward = torch.ops.aten._softmax_backward_data
    w = torch.cat([w_attention, w_customization]).to(dtype)
    w_last = w_transform.to(dtype)
    gx = torch.empty_like(x, memory_format=memory_format(x))
    g_w, g_b = torch.zeros_like(w), w.new_zeros(2 * k)
    g_w_last, g_b_last = torch.zeros_like(w_last), w.new_zeros(len(w_last))
    with without_autocast(x):
        for step in _steps(x):
            features, g = _read(x, step, dtype), _read(gradient, step, dtype)
            attention, weights = maps[step].split(k, 1)
            mixing = _each(w_last, contexts[step].transpose(1, 2))  # (S, D, K)

            # Eq. 5, and Eq. 4 on the side of the weights.
            g_mixing = torch.bmm(g, weights.transpose(1, 2))
            g_weights = torch.bmm(mixing.transpose(1, 2), g)
            if softmax:
                g_weights = softmax_backward(g_weights, weights, 1, dtype)
            g_w_last += torch.bmm(g_mixing, contexts[step]).sum(0)
            g_b_last += g.sum((0, 2))

            # Eqs. 4 and 2 on the side of the contexts, then the merged convolution.
            g_contexts = _each(w_last.T, g_mixing).transpose(1, 2)  # (S, K, C)
            g_attention = torch.bmm(g_contexts, features)
            g_attention = softmax_backward(g_attention, attention, 2, dtype)
            g_logits = torch.cat([g_attention, g_weights], 1)
            g_w += torch.bmm(g_logits, features.transpose(1, 2)).sum(0)
            g_b += g_logits.sum((0, 2))

            # x acts through the logits, as what is gathered, and as the residual.
            ways = torch.cat([w.expand(len(g), -1, -1), g_contexts], 1)  # (S, 3K, C)
            result = _room(gx, step, dtype)
            if residual:
                result.copy_(g)
            else:
                result.zero_()
            result.baddbmm_(ways.transpose(1, 2), torch.cat([g_logits, attention], 1))
            _store(gx, step, result)
    parameters = (w_attention, w_customization, b_attention, b_customization)
    g_parameters = (*g_w.split(k), *g_b.split(k))
    g_w_attention, g_w_customization, g_b_attention, g_b_customization = (
        torch.empty_like(p).copy_(g) for p, g in zip(parameters, g_parameters)
    )
    return (
        gx,
        g_w_attention,
        g_b_attention,
        g_w_customization,
        g_b_customization,
        g_w_last.to(w_transform.dtype),
        g_b_last.to(b_transform.dtype),
    )


def _each(matrix, batch):
    """Product with each of a batch. ``matmul`` would choose its order by whether a
    gradient is needed, and so the last bits."""
    return torch.bmm(matrix.expand(len(batch), -1, -1), batch)


def _steps(x):
    """Slices of samples."""
    size = x[:1].numel() * accumulation_dtype(x).itemsize
    size = max(1, _STEP.get(x.device.type, _STEP_ELSEWHERE) // max(size, 1))
    for start in range(0, len(x), size):
        yield slice(start, start + size)


def _read(tensor, step, dtype):
    """(S, C, N) in the dtype of accumulation."""
    return tensor[step].flatten(2).to(dtype)


def _room(tensor, step, dtype):
    """(S, C, N) for a step's result: in the tensor itself if its dtype allows."""
    part = tensor[step].flatten(2)  # a view, the tensor being dense
    return part if part.dtype == dtype else torch.empty_like(part, dtype=dtype)


def _store(tensor, step, result):
    """Put a result where it belongs, unless ``_room`` was there."""
    if tensor.dtype != result.dtype:
        tensor[step].flatten(2).copy_(result)


def _shapes(x, w_attention, b_attention, w_customization, b_customization, w_last, *_):
    batch, channels, height, width = x.shape
    k, d = w_attention.shape[0], w_last.shape[0]
    dtype = accumulation_dtype(x)
    return (
        torch.empty(
            (batch, d, height, width),
            dtype=x.dtype,
            device=x.device,
            memory_format=memory_format(x),
        ),
        x.new_empty((batch, 2 * k, height * width), dtype=dtype),
        x.new_empty((batch, k, channels), dtype=dtype),
    )


def _products(x, w_attention, w_last):
    """Multiplications of a (D or C, K) matrix with a map of K numbers a position, for
    D and for C, and of a (D, C) one with the K contexts."""
    batch, channels, height, width = x
    k = batch * w_attention[0]
    positions = k * height * width
    return positions * w_last[0], positions * channels, k * w_last[0] * channels


def _flops(x, w_attention, b, w_customization, b2, w_last, *_, **__):
    mix, gather, transform = _products(x, w_attention, w_last)
    # Two products in the merged convolution, one with the attention, one of Eq. 5.
    return 2 * (3 * gather + mix + transform)


def _backward_flops(gradient, x, w_attention, b, w_customization, b2, w_last, *_, **__):
    mix, gather, transform = _products(x, w_attention, w_last)
    # Of the features: one to the attention, two to the merged weights, three back.
    return 2 * (6 * gather + 2 * mix + 3 * transform)


_operator = operator(
    'sac', _forward, _backward, _shapes, tensors=7, flops=(_flops, _backward_flops)
)
