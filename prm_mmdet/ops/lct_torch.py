"""Linear Context Transform in PyTorch operators, for any device.

Both directions are two sweeps over the features. Batch normalisation's kernels make
them: they are the ones in PyTorch that sum a product of two maps by channel without
writing the product out, and that scale and shift half-precision maps by float32
numbers, in any layout.
"""

import torch
from torch.nn import functional as F

from .common import accumulation_dtype, memory_format


def forward(x, weight, bias, groups, eps, normalization):
    """Returns y (B, C, H, W) and the channels' means (B, C)."""
    x = x.contiguous(memory_format=memory_format(x))
    mean = _mean(x)
    context, _ = _normalize(mean, groups, eps, normalization)
    gate = _gate(context, weight, bias)
    return _scale(x, gate, torch.zeros_like(gate)), mean


def backward(gradient, x, weight, bias, mean, groups, eps, normalization):
    """Returns the gradients of x, weight and bias; the last two are empty where there
    is no transform."""
    x = x.contiguous(memory_format=memory_format(x))
    gradient = gradient.contiguous(memory_format=memory_format(x))
    context, inverse = _normalize(mean, groups, eps, normalization)
    gate = _gate(context, weight, bias)

    # Eqs. 5 and 4.
    g_logit = torch.ops.aten.sigmoid_backward(_product_sum(gradient, x), gate)
    g_weight, g_bias = x.new_empty(0), x.new_empty(0)
    g_context = g_logit
    if weight is not None:
        g_weight = (g_logit * context).sum(0).to(weight.dtype)
        g_bias = g_logit.sum(0).to(bias.dtype)
        g_context = g_logit * weight.to(g_logit.dtype)

    # Eqs. 3 and 2.
    if normalization:
        g, z = (t.unflatten(1, (groups, -1)) for t in (g_context, context))
        along = (g * z).mean(2, keepdim=True)
        g = (g - g.mean(2, keepdim=True)).addcmul_(z, along, value=-1)
        g_context = (g * inverse).flatten(1)

    g_mean = g_context / (x.shape[2] * x.shape[3])
    return _scale(gradient, gate, g_mean), g_weight, g_bias


def plain(x, weight, bias, groups, eps, normalization):
    """The forward, of operators that autograd and exporters know."""
    dtype = accumulation_dtype(x)
    context = x.mean((2, 3), dtype=dtype)
    if weight is not None:
        weight, bias = weight.to(dtype), bias.to(dtype)
    if normalization:
        # Eqs. 2-4 are group normalisation of a map of one position.
        context = F.group_norm(context, groups, weight, bias, eps)
    elif weight is not None:
        context = weight * context + bias
    return (x * torch.sigmoid(context)[:, :, None, None]).to(x.dtype)


def _normalize(mean, groups, eps, normalization):
    """Eqs. 2 and 3: (B, C), and one over the deviation, (B, G, 1)."""
    if not normalization:
        return mean, None
    mean = mean.unflatten(1, (groups, -1))
    centred = mean - mean.mean(2, keepdim=True)
    inverse = (centred.square().mean(2, keepdim=True) + eps).rsqrt()
    return (centred * inverse).flatten(1), inverse


def _gate(context, weight, bias):
    """Eqs. 4 and 5, (B, C)."""
    if weight is not None:
        weight, bias = weight.to(context.dtype), bias.to(context.dtype)
        context = torch.addcmul(bias, context, weight)
    return context.sigmoid()


def _mean(x):
    """Of the positions, (B, C), in the dtype of accumulation."""
    dtype = accumulation_dtype(x)
    if x.dtype == dtype or x.is_cuda:
        return x.mean((2, 3), dtype=dtype)
    # Here a sum in another dtype first converts its input: a sample at a time.
    mean = x.new_empty(x.shape[:2], dtype=dtype)
    for sample, result in zip(x, mean):
        torch.mean(sample, (1, 2), dtype=dtype, out=result)
    return mean


def _as_channels(*maps):
    """The maps as (1, C', H, W) views: each channel of each sample a channel of its
    own, or a sample at a time where channels are innermost."""
    if maps[0].numel() == 0:  # which batch normalisation's kernels do not survive
        return []
    if maps[0].is_contiguous():
        maps = [[t.view(1, -1, *t.shape[2:])] for t in maps]
    else:
        maps = [t.split(1) for t in maps]
    return list(zip(*maps))


def _product_sum(gradient, x):
    """Over the positions, (B, C), in the dtype of accumulation."""
    total = x.new_zeros(x.shape[:2], dtype=accumulation_dtype(x))
    parts = _as_channels(gradient, x)
    for (g, part), result in zip(parts, total.chunk(max(len(parts), 1))):
        zero, one = (
            torch.zeros_like(result.flatten()),
            torch.ones_like(result.flatten()),
        )
        # With the identity for statistics, what a gain receives.
        _, product, _ = torch.ops.aten.native_batch_norm_backward(
            g, part, one, zero, one, None, None, False, 0.0, [False, True, True]
        )
        result.copy_(product.view_as(result))
    return total


def _scale(x, gain, shift):
    """x * gain + shift, for (B, C) gains and shifts, rounded once to x's dtype."""
    y = torch.empty_like(x, memory_format=memory_format(x))
    parts = _as_channels(x, y)
    channels = (t.flatten().chunk(max(len(parts), 1)) for t in (gain, shift))
    unused = gain.new_empty(0), gain.new_empty(0)
    for (part, result), g, s in zip(parts, *channels):
        torch.ops.aten.native_batch_norm.out(
            part,
            g,
            s,
            torch.zeros_like(g),
            torch.ones_like(g),
            False,
            0.0,
            0.0,
            out=result,
            save_mean=unused[0],
            save_invstd=unused[1],
        )
    return y
