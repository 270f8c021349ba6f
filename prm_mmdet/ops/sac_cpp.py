"""Spatially-Aware Context in the compiled CPU kernels.

Half-precision features are converted to float32 and channels_last features to
contiguous ones, each by a copy.
"""

from __future__ import annotations

from ctypes import byref, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from .kernels import LIBRARY, Arguments, from_kernel, to_kernel

# Positions of one block. The features of a block should fit in a core's cache.
_BLOCK, _BLOCK_OF_MANY_CHANNELS, _MANY_CHANNELS = 256, 128, 256


class _Arguments(Arguments):
    _fields_ = [
        (name, c_int64)
        for name in (
            *('batch', 'channels', 'results', 'contexts', 'positions'),
            *('block', 'softmax', 'residual', 'threads'),
        )
    ] + [
        (name, c_void_p)
        for name in (
            *('x', 'gradient', 'result', 'w_maps', 'b_maps', 'w_transform'),
            *('b_transform', 'log_sums', 'gathered', 'g_w_maps', 'g_b_maps'),
            *('g_w_transform', 'g_b_transform', 'thread_scratch', 'scratch'),
        )
    ]


def forward(x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Takes what ``sac`` takes. Returns y (B, D, H, W), the logarithms of the softmax's
    denominators (B, K) and the contexts (B, K, C)."""
    *parameters, softmax, residual = inputs
    features = to_kernel(x)
    batch, channels, height, width = x.shape
    results, contexts = len(parameters[5]), len(parameters[1])
    result = features.new_empty((batch, results, height, width))
    kept = (
        features.new_zeros((batch, contexts)),
        features.new_zeros((batch, contexts, channels)),
    )
    _run('sac_forward', features, None, result, parameters, kept, {}, softmax, residual)
    return (from_kernel(result, x), *kept)


def backward(gradient: Tensor, x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Takes y's gradient, what ``forward`` took with what it kept before the switches.
    Returns the gradients of x and of the six parameters."""
    *parameters, log_sums, contexts, softmax, residual = inputs
    features = to_kernel(x)
    result = torch.empty_like(features)
    k, d = len(parameters[1]), len(parameters[5])

    def sums(*size):
        return x.new_zeros(size, dtype=torch.float64)

    g = dict(
        g_w_maps=sums(2 * k, x.shape[1]),
        g_b_maps=sums(2 * k),
        g_w_transform=sums(d, x.shape[1]),
        g_b_transform=sums(d),
    )
    g_y, kept = to_kernel(gradient.to(features.dtype)), (log_sums, contexts)
    _run('sac_backward', features, g_y, result, parameters, kept, g, softmax, residual)
    (w_attention, w_weights), (b_attention, b_weights) = (
        g[name].split(k) for name in ('g_w_maps', 'g_b_maps')
    )
    last = (g['g_w_transform'], g['g_b_transform'])
    values = (w_attention, b_attention, w_weights, b_weights, *last)
    return (
        from_kernel(result, x),
        *(value.to(p.dtype, copy=True) for p, value in zip(parameters, values)),
    )


def _run(name, x, gradient, result, parameters, kept, gradients, softmax, residual):
    if x.numel() == 0:
        return
    batch, channels, height, width = x.shape
    w_attention, b_attention, w_weights, b_weights, w_transform, b_transform = (
        p.to(x.dtype) for p in parameters
    )
    many = max(channels, len(w_transform)) > _MANY_CHANNELS
    arguments = _Arguments(
        batch=batch,
        channels=channels,
        results=len(w_transform),
        contexts=len(w_attention),
        positions=height * width,
        block=_BLOCK_OF_MANY_CHANNELS if many else _BLOCK,
        softmax=softmax,
        residual=residual,
        threads=torch.get_num_threads(),
        x=x,
        gradient=gradient,
        result=result,
        w_maps=torch.cat([w_attention, w_weights]),
        b_maps=torch.cat([b_attention, b_weights]),
        w_transform=w_transform.contiguous(),
        b_transform=b_transform.contiguous(),
        log_sums=kept[0].contiguous(),
        gathered=kept[1].contiguous(),
        **gradients,
    )
    size = LIBRARY.sac_thread_scratch(byref(arguments))
    thread_scratch = x.new_empty((arguments.threads, size))
    scratch = x.new_empty(LIBRARY.sac_scratch(byref(arguments)))
    arguments.thread_scratch = thread_scratch.data_ptr()
    arguments.scratch = scratch.data_ptr()
    arguments.call(name, x.dtype)
