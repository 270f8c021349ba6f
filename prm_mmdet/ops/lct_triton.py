"""Linear Context Transform in Triton kernels, forward and backward.

The input x is (B, C, H, W): B samples, C channels and N = H * W positions. The forward
pass launches three kernels, and so does the backward pass:

1. Sum each channel over positions. Each of P programs sums a part of the positions. The
   partial sums are called shares, (B, C, P).
2. From the sums, compute gates (forward) or gradients (backward). A program computes M
   channels. If groups are normalised (Eqs. 2 and 3), the M channels are one group.
3. Write the result, (B, C, H, W). This launch starts at the positions that the first
   launch read last, because they are still in cache.

A block is BLOCK_C channels at BLOCK_N positions. Sums are accumulated in float32
(float64 for float64 inputs), in an order that never changes. In the functions, the
argument s is a ``_Sizes``, and the argument p is a ``_Plan``.
"""

from typing import Any, NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import memory_format
from .triton_launch import allocator, dense, launch, pointers, processors, strides, wide

# Number of elements in a block (channels times positions), and number of warps that
# compute a block.
_BLOCK = 4096
_WARPS = 8
# In a large channels_last map, a block has this many channels. Their 32 numbers in
# float32 fill a cache line.
_INNER = 32
# Largest number of channels for a program of the second launch, if no groups are
# normalised.
_CHANNELS = 256


class _Sizes(NamedTuple):
    """Sizes and strides for all kernels. Features and gradients have the same
    strides."""

    stride_c: int  # stride of the channels, in elements
    stride_n: int  # stride of the positions, in elements
    B: int  # number of samples
    C: int  # number of channels
    N: int  # number of positions
    M: int  # number of channels that a program of the second launch computes
    P: int  # number of programs that share the positions of a block of channels


class _Plan(NamedTuple):
    """The compile-time constants of all kernels."""

    BLOCK_C: tl.constexpr  # number of channels in a block
    BLOCK_N: tl.constexpr  # number of positions in a block
    BLOCK_M: tl.constexpr  # M of _Sizes, rounded up to a power of two
    EPS: tl.constexpr  # number that Eq. 3 adds to the variance
    NORMALIZED: tl.constexpr  # whether groups are normalised (Eqs. 2 and 3)
    WIDE: tl.constexpr  # whether offsets within a sample need 64 bits


def forward(
    x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], *switches: Any
) -> tuple[Tensor, Tensor]:
    """Takes the arguments of ``lct``. Returns the output y (B, C, H, W), and the mean
    of each channel (B, C)."""
    x = dense(x)
    s, p = _plan(x, *switches)
    new = allocator(x, s.C)
    y = torch.empty_like(x, memory_format=memory_format(x))
    shares, mean, gate = new(s.P), new(), new()
    _sum(x, None, shares, s, p)
    grid = (s.B * triton.cdiv(s.C, s.M),)
    launch(_gate_kernel, grid, x, shares, weight, bias, mean, gate, s, p)
    _scale(x, gate, None, y, s, p)
    return y, mean


def backward(
    gradient: Tensor,
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    mean: Tensor,
    *switches: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Takes the gradient of the output, then x, weight and bias, the means that
    ``forward`` returned, and the other arguments of ``lct``. Returns the gradients
    of x, weight and bias. If weight and bias are None, their gradients are empty
    tensors."""
    x = dense(x)
    gradient = dense(gradient, like=x)
    s, p = _plan(x, *switches)
    new = allocator(x, s.C)
    gx = torch.empty_like(x, memory_format=memory_format(x))
    shares, gate, shift = new(s.P), new(), new()
    g_weight, g_bias = (
        x.new_empty(0) if t is None else torch.zeros_like(t) for t in (weight, bias)
    )
    _sum(x, gradient, shares, s, p)
    tensors = (shares, weight, bias, mean, gate, shift, g_weight, g_bias)
    grid = (triton.cdiv(s.C, s.M),)
    launch(_gate_gradient_kernel, grid, x, *tensors, s, p)
    _scale(gradient, gate, shift, gx, s, p)
    return gx, g_weight, g_bias


def _plan(x, groups, eps, normalization):
    batch, channels, height, width = x.shape
    n = height * width
    block_n = min(_BLOCK, triton.next_power_of_2(max(n, 1)))
    if not x.is_contiguous():
        block_n = min(block_n, _BLOCK // _INNER)
    block_c = min(_BLOCK // block_n, triton.next_power_of_2(channels))
    blocks, slabs = triton.cdiv(n, block_n), batch * triton.cdiv(channels, block_c)
    m = channels // groups if normalization else min(channels, _CHANNELS)
    sizes = _Sizes(
        *strides(x),
        B=batch,
        C=channels,
        N=n,
        M=m,
        P=max(1, min(_programs(slabs, processors(x)), blocks)),
    )
    constants = dict(
        BLOCK_C=block_c,
        BLOCK_N=block_n,
        BLOCK_M=triton.next_power_of_2(m),
        EPS=eps,
        NORMALIZED=normalization,
        WIDE=wide(x),
    )
    return sizes, _Plan(**{k: tl.constexpr(v) for k, v in constants.items()})


def _programs(slabs, available):
    """Upper limit of P, the number of programs for a slab.

    A slab is BLOCK_C channels of one sample. Its programs share its positions. If P is
    at the limit, a multiprocessor gets at least eight programs on average.
    """
    return triton.cdiv(8 * available, max(slabs, 1))


def _sum(x, factor, shares, s, p):
    """Sum x over the positions of each channel. If ``factor`` is given, sum x * factor.
    Each of the P programs writes the sum over its own positions into ``shares``,
    (B, C, P)."""
    grid = (s.B * triton.cdiv(s.C, p.BLOCK_C.value) * s.P,)
    launch(_sum_kernel, grid, x, x, factor, shares, s, p, num_warps=_WARPS)


def _scale(x, gain, shift, result, s, p):
    """Write x * gain + shift into ``result``. If ``shift`` is None, write x * gain."""
    blocks = triton.cdiv(s.C, p.BLOCK_C.value) * triton.cdiv(s.N, p.BLOCK_N.value)
    grid = (s.B * blocks,)
    launch(_scale_kernel, grid, x, x, gain, shift, result, s, p, num_warps=_WARPS)


@triton.jit
def _channels(slab, s, p):
    """Locate a slab, which is BLOCK_C channels of one sample. Returns the sample, the
    channels (BLOCK_C,), the channels' indices in a (B * C,) tensor, and a mask. The
    mask is False beyond the last channel."""
    blocks = tl.cdiv(s.C, p.BLOCK_C)
    sample = slab // blocks
    c = slab % blocks * p.BLOCK_C + tl.arange(0, p.BLOCK_C)
    return sample, c, sample.to(tl.int64) * s.C + c, c < s.C


@triton.jit
def _address(tensor, sample, c, n, s, p):
    """Addresses of a sample's values at channels c and positions n, (len(c), len(n)),
    and a mask that is False outside the map."""
    at = pointers(tensor, sample, c, n, s.C, s.N, s.stride_c, s.stride_n, p.WIDE)
    return at, (c < s.C)[:, None] & (n < s.N)[None, :]


@triton.jit
def _sum_kernel(
    x,  # features, (B, C, H, W), any floating dtype, dense
    # Gradient of the output, with the shape and strides of x. The kernel sums
    # x * factor. If factor is None, the kernel sums x.
    factor,
    # Each program's sums, written here, (B, C, P), float64 if x is float64, else
    # float32.
    shares,
    s,  # sizes and strides, of type _Sizes
    p,  # compile-time constants, of type _Plan
):
    slab, share = tl.program_id(0) // s.P, tl.program_id(0) % s.P
    sample, c, channel, exists = _channels(slab, s, p)
    size = tl.cdiv(tl.cdiv(s.N, p.BLOCK_N), s.P)
    acc = shares.dtype.element_ty
    total = tl.zeros((p.BLOCK_C, p.BLOCK_N), acc)
    for i in range(share * size, share * size + size):
        n = i * p.BLOCK_N + tl.arange(0, p.BLOCK_N)
        at, inside = _address(x, sample, c, n, s, p)
        value = tl.load(at, mask=inside, other=0).to(acc)
        if factor is not None:
            at, _ = _address(factor, sample, c, n, s, p)
            value *= tl.load(at, mask=inside, other=0).to(acc)
        total += value
    tl.store(shares + channel * s.P + share, tl.sum(total, 1), mask=exists)


@triton.jit
def _scale_kernel(
    x,  # features or gradient of y, (B, C, H, W), any floating dtype, dense
    gain,  # factor of each channel, (B, C), float64 if x is float64, else float32
    # Number added to each channel, (B, C), float32 at least. If None, nothing is added.
    shift,
    result,  # output: x * gain + shift, with the shape, dtype and strides of x
    s,  # sizes and strides, of type _Sizes
    p,  # compile-time constants, of type _Plan
):
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    blocks = tl.cdiv(s.N, p.BLOCK_N)
    sample, c, channel, exists = _channels(program // blocks, s, p)
    n = program % blocks * p.BLOCK_N + tl.arange(0, p.BLOCK_N)
    at, inside = _address(x, sample, c, n, s, p)
    value = tl.load(at, mask=inside, other=0).to(gain.dtype.element_ty)
    value *= tl.load(gain + channel, mask=exists, other=0)[:, None]
    if shift is not None:
        value += tl.load(shift + channel, mask=exists, other=0)[:, None]
    at, _ = _address(result, sample, c, n, s, p)
    tl.store(at, value.to(result.dtype.element_ty), mask=inside)


@triton.jit
def _gate_kernel(
    shares,  # partial sums of x, (B, C, P), float64 if x is float64, else float32
    weight,  # gain of Eq. 4, (C,), any floating dtype. If None, Eq. 4 is left out
    bias,  # bias of Eq. 4, (C,), any floating dtype. If None, Eq. 4 is left out
    mean,  # output: mean of each channel, (B, C), float32 at least
    gate,  # output: gate of each channel (Eq. 5), (B, C), float32 at least
    s,  # sizes and strides, of type _Sizes
    p,  # compile-time constants, of type _Plan
):
    groups = tl.cdiv(s.C, s.M)
    sample, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    c, inside = _group(group, s, p)
    channel = sample.to(tl.int64) * s.C + c
    context = _total(shares, channel, inside, s, p) / s.N
    tl.store(mean + channel, context, mask=inside)
    if p.NORMALIZED:
        context, _ = _normalize(context, inside, s, p)
    value, _ = _gate(context, weight, bias, c, inside)
    tl.store(gate + channel, value, mask=inside)


@triton.jit
def _gate_gradient_kernel(
    # Partial sums of x * (gradient of y), (B, C, P), float64 if x is float64, else
    # float32.
    shares,
    weight,  # gain of Eq. 4, (C,), any floating dtype. If None, Eq. 4 is left out
    bias,  # bias of Eq. 4, (C,), any floating dtype. If None, Eq. 4 is left out
    mean,  # mean of each channel, (B, C), float32 at least
    gate,  # output: gate of each channel (Eq. 5), (B, C), float32 at least
    # Output: (gradient of x) - gate * (gradient of y), (B, C), float32 at least.
    shift,
    g_weight,  # output: gradient of ``weight``, (C,). Empty if ``weight`` is None
    g_bias,  # output: gradient of ``bias``, (C,). Empty if ``bias`` is None
    s,  # sizes and strides, of type _Sizes
    p,  # compile-time constants, of type _Plan
):
    c, inside = _group(tl.program_id(0), s, p)
    acc = shares.dtype.element_ty
    total_weight = tl.zeros((p.BLOCK_M,), acc)
    total_bias = tl.zeros((p.BLOCK_M,), acc)
    for sample in range(s.B):
        channel = tl.cast(sample, tl.int64) * s.C + c
        context = tl.load(mean + channel, mask=inside, other=0)
        inverse = 1.0
        if p.NORMALIZED:
            context, inverse = _normalize(context, inside, s, p)
        value, gain = _gate(context, weight, bias, c, inside)
        tl.store(gate + channel, value, mask=inside)
        # Gradient of the sigmoid (Eq. 5), and of the gain and bias (Eq. 4).
        g = _total(shares, channel, inside, s, p) * value * (1 - value)
        total_weight += g * context
        total_bias += g
        g *= gain
        # Gradient of the normalisation within a group (Eqs. 3 and 2).
        if p.NORMALIZED:
            along = tl.sum(g * context, 0) / s.M
            g = (g - tl.sum(g, 0) / s.M - context * along) * inverse
        tl.store(shift + channel, g / s.N, mask=inside)
    if weight is not None:
        tl.store(g_weight + c, total_weight, mask=inside)
        tl.store(g_bias + c, total_bias, mask=inside)


@triton.jit
def _group(group, s, p):
    """Indices of the channels that one program computes, (BLOCK_M,), and a mask. The
    mask is False for indices beyond these channels."""
    j = tl.arange(0, p.BLOCK_M)
    c = group * s.M + j
    return c, (j < s.M) & (c < s.C)


@triton.jit
def _total(shares, channel, inside, s, p):
    """Sum over positions of each channel, (BLOCK_M,), from the P partial sums."""
    total = tl.zeros((p.BLOCK_M,), shares.dtype.element_ty)
    for i in range(s.P):
        total += tl.load(shares + channel * s.P + i, mask=inside, other=0)
    return total


@triton.jit
def _normalize(mean, inside, s, p):
    """The channels' means, normalised within a group (Eqs. 2 and 3), and 1 / (deviation
    of the means in the group)."""
    average = tl.sum(tl.where(inside, mean, 0.0), 0) / s.M
    centred = tl.where(inside, mean - average, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 0) / s.M + p.EPS)
    return centred * inverse, inverse


@triton.jit
def _gate(context, weight, bias, c, inside):
    """The gates of channels c (Eqs. 4 and 5), and the gains of Eq. 4. Without Eq. 4,
    the gains are 1."""
    gain = context * 0 + 1
    if weight is not None:
        gain = tl.load(weight + c, mask=inside, other=0).to(context.dtype)
        context = context * gain
        context += tl.load(bias + c, mask=inside, other=0).to(context.dtype)
    return tl.sigmoid(context), gain
