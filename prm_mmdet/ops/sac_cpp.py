"""Spatially-Aware Context in the compiled CPU kernels.

The kernels read contiguous features in float32 or float64. Half-precision and
channels_last features are therefore copied first.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch
from torch import Tensor

from .common import as_gradients
from .kernels import LIBRARY, Arguments, from_kernel, integers, pointers, to_kernel

# Number of positions in a block, the part of a map that a core handles at a time. The
# features of a block should fit in the core's cache. With an odd multiple of 16, the
# rows of a block do not compete for the same places in the cache.
_BLOCK = 176


class _Arguments(Arguments):
    _fields_ = (
        *integers('batch channels results contexts positions'),
        *integers('block softmax residual threads'),
        *pointers('x gradient result w_maps b_maps b_transform'),
        *pointers('log_sums gathered mixing g_mixing g_contexts centre'),
        *pointers('g_w_maps g_b_maps thread_scratch scratch'),
    )


def forward(x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Takes the arguments of ``sac``. Returns y (B, D, H, W), the logarithms of the
    denominators in the attention's softmax (B, K), and the contexts (B, K, C)."""
    *parameters, softmax, residual = inputs
    features = to_kernel(x)
    w_transform = parameters[4].to(features.dtype)
    k, d = len(parameters[1]), len(w_transform)
    y = features.new_empty((len(x), d, *x.shape[2:]))
    log_sums = features.new_zeros((len(x), k))
    contexts = features.new_zeros((len(x), k, x.shape[1]))
    if x.numel():
        arguments = _arguments(features, parameters, softmax, residual)
        arguments.set(result=y, log_sums=log_sums, gathered=contexts)
        arguments.call('sac_contexts', features.dtype)
        arguments.set(mixing=_mixing(w_transform, contexts))
        arguments.call('sac_result', features.dtype)
    return from_kernel(y, x), log_sums, contexts


def backward(gradient: Tensor, x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Takes the gradient of y, the tensors that ``forward`` took, the tensors that
    ``forward`` kept, ``softmax`` and ``residual``. Returns the gradients of x and of
    the six parameters."""
    *parameters, log_sums, contexts, softmax, residual = inputs
    features, contexts = to_kernel(x), contexts.contiguous()
    w_transform = parameters[4].to(features.dtype)
    k, d = len(parameters[1]), len(w_transform)
    g_x = torch.empty_like(features)
    shares = features.new_zeros((len(x), d * k + d))
    g_mixing, g_sums = shares[:, : d * k].unflatten(1, (d, k)), shares[:, d * k :]
    g_w_maps = x.new_zeros((2 * k, x.shape[1]), dtype=torch.float64)
    g_b_maps = x.new_zeros(2 * k, dtype=torch.float64)
    if x.numel():
        arguments = _arguments(features, parameters, softmax, residual)
        arguments.set(
            gradient=to_kernel(gradient.to(features.dtype)),
            result=g_x,
            log_sums=log_sums.contiguous(),
            gathered=contexts,
            g_mixing=shares,
            g_w_maps=g_w_maps,
            g_b_maps=g_b_maps,
        )
        arguments.call('sac_g_mixing', features.dtype)
        g_contexts = (g_mixing.mT @ w_transform).contiguous()
        centre = (g_contexts.double() * contexts).sum(2).to(features.dtype)
        arguments.set(
            mixing=_mixing(w_transform, contexts), g_contexts=g_contexts, centre=centre
        )
        arguments.call('sac_gradients', features.dtype)
    values = [g_w_maps[:k], g_b_maps[:k], g_w_maps[k:], g_b_maps[k:]]
    values += [torch.einsum('bdk,bkc->dc', g_mixing, contexts), g_sums.sum(0)]
    return from_kernel(g_x, x), *as_gradients(x, parameters, values)


def _mixing(w_transform, contexts):
    """The product of w_transform and the transposed contexts, (B, D, K). SAC multiplies
    it by the weights of the contexts at each position."""
    return (w_transform @ contexts.mT).contiguous()


def _arguments(x, parameters, softmax, residual):
    batch, channels, height, width = x.shape
    w_attention, b_attention, w_weights, b_weights, w_transform, b_transform = (
        p.to(x.dtype) for p in parameters
    )
    arguments = _Arguments(
        batch=batch,
        channels=channels,
        results=len(w_transform),
        contexts=len(w_attention),
        positions=height * width,
        block=_BLOCK,
        softmax=softmax,
        residual=residual,
        threads=torch.get_num_threads(),
        x=x,
        w_maps=torch.cat([w_attention, w_weights]),
        b_maps=torch.cat([b_attention, b_weights]),
        b_transform=b_transform.contiguous(),
    )
    size = LIBRARY.sac_thread_scratch(byref(arguments))
    arguments.set(
        thread_scratch=x.new_empty((arguments.threads, size)),
        scratch=x.new_empty(LIBRARY.sac_scratch(byref(arguments))),
    )
    return arguments
