"""Linear Context Transform in Triton kernels, forward and backward.

Each direction is three launches: sums over positions by channel, what follows from them
in each group of channels, and the sweep that writes the result. The last one starts
where the first one stopped, so that part of what it reads still lies in cache. Sums are
taken in float32 (float64 for such inputs), in an order that does not vary.
"""

import contextlib

import torch
import triton
import triton.language as tl

from .common import accumulation_dtype, memory_format

# Elements in a program's block, and the warps that work on them.
_BLOCK = 4096
_WARPS = 8
# Channels in a block where channels are innermost: a cache line of float32.
_INNER = 32
# Channels that one program takes of the middle step where no groups are normalised.
_CHANNELS = 256
# The same roundings whatever Triton's version does by default.
_OPTIONS = dict(enable_fp_fusion=False)


def forward(x, weight, bias, groups, eps, normalization):
    """Returns y (B, C, H, W) and the channels' means (B, C)."""
    x = x.contiguous(memory_format=memory_format(x))
    plan = _Plan(x, groups, eps, normalization)
    y = torch.empty_like(x, memory_format=memory_format(x))
    mean, gate = plan.new(), plan.new()
    if x.numel():
        with plan.device():
            shares = plan.sums(x, None)
            _gate_kernel[(len(x) * plan.groups,)](
                *(shares, weight, bias, mean, gate), **plan.middle
            )
            plan.scale(x, gate, None, y)
    return y, mean


def backward(gradient, x, weight, bias, mean, groups, eps, normalization):
    """Returns the gradients of x, weight and bias; the last two are empty where there
    is no transform."""
    x = x.contiguous(memory_format=memory_format(x))
    gradient = gradient.contiguous(memory_format=memory_format(x))
    plan = _Plan(x, groups, eps, normalization)
    gx = torch.empty_like(x, memory_format=memory_format(x))
    gate, shift = plan.new(), plan.new()
    g_weight, g_bias = (
        x.new_empty(0) if p is None else torch.zeros_like(p) for p in (weight, bias)
    )
    if x.numel():
        with plan.device():
            shares = plan.sums(x, gradient)
            _gate_gradient_kernel[(plan.groups,)](
                *(shares, weight, bias, mean, gate, shift, g_weight, g_bias, len(x)),
                **plan.middle,
            )
            plan.scale(gradient, gate, shift, gx)
    return gx, g_weight, g_bias


class _Plan:
    """How the kernels divide a map, and their launches."""

    def __init__(self, x, groups, eps, normalization):
        self.x = x
        batch, channels, height, width = x.shape
        n = height * width
        block_n = min(_BLOCK, triton.next_power_of_2(max(n, 1)))
        self.strides = channels * n, n, 1
        if not x.is_contiguous():
            block_n = min(block_n, _BLOCK // _INNER)
            self.strides = channels * n, 1, channels
        block_c = min(_BLOCK // block_n, triton.next_power_of_2(channels))
        self.blocks = triton.cdiv(n, block_n)
        self.slabs = batch * triton.cdiv(channels, block_c)
        self.splits = min(_splits(x, self.slabs), max(self.blocks, 1))
        acc = tl.float64 if x.dtype == torch.float64 else tl.float32
        self.tile = dict(C=channels, N=n, BLOCK_C=block_c, BLOCK_N=block_n, ACC=acc)
        m = channels // groups if normalization else min(channels, _CHANNELS)
        self.groups = triton.cdiv(channels, m)
        self.middle = dict(
            C=channels,
            N=n,
            M=m,
            BLOCK_M=triton.next_power_of_2(m),
            SPLITS=self.splits,
            EPS=eps,
            NORMALIZED=normalization,
            ACC=acc,
            **_OPTIONS,
        )

    def new(self, *size):
        size = (*self.x.shape[:2], *size)
        return self.x.new_empty(size, dtype=accumulation_dtype(self.x))

    def device(self):
        x = self.x
        return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()

    def sums(self, x, factor):
        """Of x, or of its products with a factor: (B, C, splits)."""
        shares = self.new(self.splits)
        _sum_kernel[(self.slabs * self.splits,)](
            *(x, factor, shares),
            *self.strides,
            **self.tile,
            SPLITS=self.splits,
            SHARE=triton.cdiv(self.blocks, self.splits),
            num_warps=_WARPS,
            **_OPTIONS,
        )
        return shares

    def scale(self, x, gain, shift, result):
        """x * gain + shift, where there is a shift."""
        _scale_kernel[(self.slabs * self.blocks,)](
            *(x, gain, shift, result),
            *self.strides,
            **self.tile,
            BLOCKS=self.blocks,
            num_warps=_WARPS,
            **_OPTIONS,
        )


def _splits(x, slabs):
    """Programs that share the positions of a block of channels: eight for each
    multiprocessor in all."""
    if not x.is_cuda:  # the interpreter
        return 1
    available = torch.cuda.get_device_properties(x.device).multi_processor_count
    return triton.cdiv(8 * available, slabs)


@triton.jit
def _tile(slab, block, stride_b, stride_c, stride_n, C, N, BLOCK_C, BLOCK_N):
    """Where a block of channels (slab, over all samples) and of positions lies: the
    offset of each element, whether it exists, and its channel (b * C + c)."""
    slabs = tl.cdiv(C, BLOCK_C)
    b = (slab // slabs).to(tl.int64)
    c = slab % slabs * BLOCK_C + tl.arange(0, BLOCK_C)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    at = b * stride_b + (c[:, None] * stride_c + n[None, :] * stride_n)
    return at, (c < C)[:, None] & (n < N)[None, :], b * C + c, c < C


@triton.jit
def _sum_kernel(
    x,
    factor,
    shares,
    stride_b,
    stride_c,
    stride_n,
    C,
    N,
    SHARE,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    slab, split = program // SPLITS, program % SPLITS
    total = tl.zeros((BLOCK_C, BLOCK_N), ACC)
    for i in range(SHARE):
        at, inside, _, _ = _tile(
            *(slab, split * SHARE + i, stride_b, stride_c, stride_n),
            *(C, N, BLOCK_C, BLOCK_N),
        )
        value = tl.load(x + at, mask=inside, other=0).to(ACC)
        if factor is not None:
            value *= tl.load(factor + at, mask=inside, other=0).to(ACC)
        total += value
    _, _, channel, exists = _tile(slab, 0, 0, 0, 0, C, N, BLOCK_C, BLOCK_N)
    tl.store(shares + channel * SPLITS + split, tl.sum(total, 1), mask=exists)


@triton.jit
def _scale_kernel(
    x,
    gain,
    shift,
    result,
    stride_b,
    stride_c,
    stride_n,
    C,
    N,
    BLOCKS,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    slab, block = program // BLOCKS, program % BLOCKS
    at, inside, channel, exists = _tile(
        slab, block, stride_b, stride_c, stride_n, C, N, BLOCK_C, BLOCK_N
    )
    value = tl.load(x + at, mask=inside, other=0).to(ACC)
    value *= tl.load(gain + channel, mask=exists, other=0)[:, None]
    if shift is not None:
        value += tl.load(shift + channel, mask=exists, other=0)[:, None]
    tl.store(result + at, value, mask=inside)


@triton.jit
def _total(shares, channel, inside, SPLITS, BLOCK_M: tl.constexpr, ACC: tl.constexpr):
    total = tl.zeros((BLOCK_M,), ACC)
    for i in range(SPLITS):
        total += tl.load(shares + channel * SPLITS + i, mask=inside, other=0)
    return total


@triton.jit
def _normalize(mean, inside, M, EPS: tl.constexpr):
    """Eqs. 2 and 3, and one over the deviation."""
    centred = tl.where(inside, mean - tl.sum(tl.where(inside, mean, 0)) / M, 0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred) / M + EPS)
    return centred * inverse, inverse


@triton.jit
def _gate(context, weight, bias, c, inside, ACC: tl.constexpr):
    """Eqs. 4 and 5, and the gain."""
    gain = tl.full(context.shape, 1, ACC)
    if weight is not None:
        gain = tl.load(weight + c, mask=inside, other=0).to(ACC)
        context = context * gain + tl.load(bias + c, mask=inside, other=0).to(ACC)
    return 1 / (1 + tl.exp(-context)), gain


@triton.jit
def _gate_kernel(
    shares,
    weight,
    bias,
    mean,
    gate,
    C,
    N,
    M,
    SPLITS,
    BLOCK_M: tl.constexpr,
    EPS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    ACC: tl.constexpr,
):
    groups = tl.cdiv(C, M)
    b, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    j = tl.arange(0, BLOCK_M)
    c = group * M + j
    inside = (j < M) & (c < C)
    context = _total(shares, b * C + c, inside, SPLITS, BLOCK_M, ACC) / N
    tl.store(mean + b * C + c, context, mask=inside)
    if NORMALIZED:
        context, _ = _normalize(context, inside, M, EPS)
    value, _ = _gate(context, weight, bias, c, inside, ACC)
    tl.store(gate + b * C + c, value, mask=inside)


@triton.jit
def _gate_gradient_kernel(
    shares,
    weight,
    bias,
    mean,
    gate,
    shift,
    g_weight,
    g_bias,
    B,
    C,
    N,
    M,
    SPLITS,
    BLOCK_M: tl.constexpr,
    EPS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    ACC: tl.constexpr,
):
    j = tl.arange(0, BLOCK_M)
    c = tl.program_id(0) * M + j
    inside = (j < M) & (c < C)
    total_weight = tl.zeros((BLOCK_M,), ACC)
    total_bias = tl.zeros((BLOCK_M,), ACC)
    for b in range(B):
        at = b * C + c
        context = tl.load(mean + at, mask=inside, other=0)
        inverse = tl.full((), 1, ACC)
        if NORMALIZED:
            context, inverse = _normalize(context, inside, M, EPS)
        value, gain = _gate(context, weight, bias, c, inside, ACC)
        tl.store(gate + at, value, mask=inside)
        # Eqs. 5 and 4.
        g = _total(shares, at, inside, SPLITS, BLOCK_M, ACC) * value * (1 - value)
        total_weight += g * context
        total_bias += g
        g *= gain
        # Eqs. 3 and 2.
        if NORMALIZED:
            along = tl.sum(g * context) / M
            g = (g - tl.sum(g) / M - context * along) * inverse
        tl.store(shift + at, g / N, mask=inside)
    if weight is not None:
        tl.store(g_weight + c, total_weight, mask=inside)
        tl.store(g_bias + c, total_bias, mask=inside)
