"""Position-Aware Recalibration Module in Triton kernels, forward and backward.

The input x is (B, C, H, W): B samples, C channels and N = H * W positions. The channels
form G groups of K = C / G. A slab is one group of one sample, (K, N). P programs divide
the positions of a slab among them. A program loads blocks of its positions, with all K
channels of the slab, (K, BLOCK_N).

Each direction takes three passes over a slab, because a pass requires sums over all
positions from the pass before it:

- forward: 1. the query (the position with the largest sum over channels) and the mean
  vector, 2. the mean and the deviation of the score (Eq. 1), 3. the output.
- backward: 1. the sums that Eq. 6's gradient requires, 2. the gradients of the query,
  of the mean vector and of the parameters, 3. the gradient of x.

If there are enough slabs to fill the device, P is 1, and the program makes all three
passes. It starts each pass at the end where the previous pass stopped, because the
positions that were read last are still in cache. Otherwise, each pass is a launch.

Sums have the dtype A: float64 if x is float64, else float32. They are accumulated in an
order that never changes. In the functions, s is a _Slabs, f a _Forward, b a _Backward,
p a _Plan and t a _Targets.
"""

from typing import Any, NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    EPS,
    MIN_DEVIATION,
    MIN_NORMS,
    MIN_SIGMA,
    as_gradients,
    memory_format,
)
from .triton_launch import allocator, dense, launch, pointers, processors, strides, wide

# Elements of a block, channels times positions. With 16 warps, a program reads 32 kB of
# float32 at a time. This uses the memory bandwidth that one multiprocessor can get.
_BLOCK = 8192
_WARPS = 16
# A block has at least this many positions (a cache line), even with many channels.
_MIN_POSITIONS = 16
_SIMILARITIES = {'dot': 0, 'l1': 1, 'cosine': 2}

_L1 = tl.constexpr(_SIMILARITIES['l1'])
_COSINE = tl.constexpr(_SIMILARITIES['cosine'])
_EPS = tl.constexpr(EPS)
_MIN_VARIANCE = tl.constexpr(MIN_DEVIATION**2)
_MIN_NORMS = tl.constexpr(MIN_NORMS)
_MIN_SIGMA = tl.constexpr(MIN_SIGMA)
_ROOT_2_PI = tl.constexpr(2.5066282746310002)
_NOWHERE = tl.constexpr(2**31 - 1)  # larger than every position
# Indices into the last axis of _Forward.partial. The K channels' sums begin at _SUMS.
_LARGEST, _COUNT, _CENTRE, _SQUARES, _SUMS = (tl.constexpr(i) for i in range(5))
# Indices into the last axis of _Backward.g_parameters. Theta has two numbers, 4 and 5.
_BIAS, _WEIGHT, _ALPHA, _BETA, _THETA, _SIGMA = map(tl.constexpr, (0, 1, 2, 3, 4, 6))


class _Slabs(NamedTuple):
    """The arguments of all kernels. All maps have the same strides."""

    x: Tensor  # features, (B, C, H, W), any floating dtype, dense
    alpha: Tensor  # weight of the similarity to the query, (G,)
    beta: Tensor  # weight of the similarity to the mean vector, (G,)
    weight: Tensor  # lambda of Eq. 8, (G,)
    bias: Tensor  # xi of Eq. 8, (G,)
    theta: Optional[Tensor]  # scale of rows and of columns, (2,); None: no encoding
    sigma: Optional[Tensor]  # deviation of the encoding, (); None: no encoding
    place: Tensor  # index of the query among the N positions, (B, G), int64
    mean: Tensor  # mean of x over positions, (B, G, K), dtype A
    statistics: Tensor  # shift, offset and deviation, see _Norm, (B, G, 3)
    stride_c: int  # stride of the channels, in elements
    stride_n: int  # stride of the positions, in elements
    G: int  # groups
    N: int  # positions
    W: int  # positions in a row


class _Forward(NamedTuple):
    """The arguments of forward's kernels."""

    y: Tensor  # output, shape, dtype and strides of x
    places: Tensor  # position of each program's largest channel sum, (B, G, P), int64
    # Each program's results for its positions, (B, G, P, 4 + K), dtype A: four numbers,
    # from _LARGEST to _SQUARES, then the sum over positions of each of the K channels.
    partial: Tensor


class _Backward(NamedTuple):
    """The arguments of backward's kernels."""

    gradient: Tensor  # gradient of y, shape and strides of x, any floating dtype
    gx: Tensor  # gradient of x, shape, dtype and strides of x
    g_logit: Tensor  # gradient of the gate before its sigmoid, (B, G, N), dtype A
    # Gradients of the parameters, summed over each program's positions, (B, G, P, 7),
    # dtype A.
    g_parameters: Tensor
    # Gradients of the query vector and of the mean vector, summed over each program's
    # positions, (B, G, P, 2, K), dtype A.
    g_targets: Tensor


class _Plan(NamedTuple):
    """The compile-time constants of all kernels."""

    K: tl.constexpr  # channels in a group
    SIMILARITY: tl.constexpr  # a value of _SIMILARITIES
    NORMALIZED: tl.constexpr  # whether Eqs. 6 and 7 are applied
    P: tl.constexpr  # programs that share a slab, a power of two
    BLOCK_K: tl.constexpr  # K, rounded up to a power of two
    BLOCK_N: tl.constexpr  # positions in a block
    WIDE: tl.constexpr  # whether offsets within a sample need 64 bits


class _Targets(NamedTuple):
    """What Eq. 1 requires beside the features of a slab. The kernels compute it."""

    place: tl.tensor  # index of the query among the N positions, ()
    query: tl.tensor  # query vector, (BLOCK_K,)
    mean: tl.tensor  # mean vector, (BLOCK_K,)
    alpha: tl.tensor  # weight of the similarity to the query, ()
    beta: tl.tensor  # weight of the similarity to the mean vector, ()
    row: tl.tensor  # theta / sigma of rows, ()
    column: tl.tensor  # theta / sigma of columns, ()
    # Half of a Gaussian density at distance 0. D (Eq. 5) is the mean of two densities,
    # so it is the sum of their halves.
    height: tl.tensor


class _Norm(NamedTuple):
    """What Eqs. 6 to 8 require beside the scores of a slab. The kernels compute it."""

    shift: tl.tensor  # score of the first position
    offset: tl.tensor  # mean of score - shift
    deviation: tl.tensor
    inverse: tl.tensor  # 1 / (deviation + EPS)
    scale: tl.tensor  # weight * inverse
    bias: tl.tensor


def forward(x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Takes the arguments of ``prm``. Returns y (B, C, H, W), the query's index (B, G),
    the mean vector (B, G, K), and the statistics of the score (B, G, 3): shift, offset
    and deviation of :class:`_Norm`."""
    *parameters, similarity, normalization = inputs
    x = dense(x)
    y = torch.empty_like(x, memory_format=memory_format(x))
    groups = len(parameters[0])
    plan, new = _plan(x, groups, similarity, normalization), allocator(x, groups)
    kept = new(dtype=torch.int64), new(plan.K.value), new(3)
    results = _Forward(
        y=y,
        places=new(plan.P.value, dtype=torch.int64),
        partial=new(plan.P.value, _SUMS.value + plan.K.value),
    )
    passes = (_find_query, _measure_score, _write_output)
    _launch(_forward_kernel, passes, x, parameters, kept, results, plan)
    return y, *kept


def backward(gradient: Tensor, x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Takes the gradient of y, the tensors of ``forward``, the tensors that it kept,
    and the switches. Returns the gradients of x, alpha, beta, weight, bias, theta and
    sigma. Without position encoding, the gradients of theta and sigma are empty."""
    *parameters, index, mean, statistics, similarity, normalization = inputs
    x = dense(x)
    groups = len(parameters[0])
    plan, new = _plan(x, groups, similarity, normalization), allocator(x, groups)
    results = _Backward(
        gradient=dense(gradient, like=x),
        gx=torch.empty_like(x, memory_format=memory_format(x)),
        g_logit=new(x.shape[2] * x.shape[3]),
        g_parameters=new(plan.P.value, 7),
        g_targets=new(plan.P.value, 2, plan.K.value),
    )
    kept = (index, mean, statistics)
    passes = (_sum_logits, _differentiate_targets, _write_gradient)
    _launch(_backward_kernel, passes, x, parameters, kept, results, plan)

    totals = results.g_parameters.sum((0, 2))  # sums over samples and programs, (G, 7)
    shared = totals[:, _THETA.value :].sum(0)  # two gradients of theta, one of sigma
    columns = (_ALPHA, _BETA, _WEIGHT, _BIAS)
    values = [*(totals[:, column.value] for column in columns), shared[:2], shared[2]]
    return results.gx, *as_gradients(x, parameters, values)


def _plan(x, groups, similarity, normalization):
    k, n = x.shape[1] // groups, x.shape[2] * x.shape[3]
    block_k = triton.next_power_of_2(k)
    block_n = min(_BLOCK // block_k, triton.next_power_of_2(n))
    block_n = max(block_n, _MIN_POSITIONS)
    programs = _programs(len(x) * groups, processors(x))
    programs = min(programs, triton.next_power_of_2(triton.cdiv(n, block_n)))
    constants = dict(
        K=k,
        SIMILARITY=_SIMILARITIES[similarity],
        NORMALIZED=normalization,
        P=max(programs, 1),
        BLOCK_K=block_k,
        BLOCK_N=block_n,
        WIDE=wide(x),
    )
    return _Plan(**{name: tl.constexpr(value) for name, value in constants.items()})


def _programs(slabs, available):
    """Upper limit of P, the number of programs that share a slab. A power of two.

    The number is 1 if the slabs occupy most of the available multiprocessors. Otherwise
    each multiprocessor gets two programs.
    """
    if 5 * slabs >= 4 * available:
        return 1
    return triton.next_power_of_2(max(1, 2 * available // max(slabs, 1)))


def _launch(whole, passes, x, parameters, kept, results, plan):
    """Launch ``whole``. If several programs share a slab, launch ``passes`` instead."""
    groups, (*_, height, width) = len(parameters[0]), x.shape
    sizes = (*strides(x), groups, height * width, width)
    slabs = _Slabs(x, *parameters, *kept, *sizes)
    grid = (len(x) * groups, plan.P.value)
    for kernel in (whole,) if plan.P.value == 1 else passes:
        launch(kernel, grid, x, slabs, results, plan, num_warps=_WARPS)


@triton.jit
def _forward_kernel(s, f, p):
    """Forward if P is 1: one program makes all three passes over its slab."""
    _find_query(s, f, p)
    tl.debug_barrier()
    _measure_score(s, f, p)
    tl.debug_barrier()
    _write_output(s, f, p)


@triton.jit
def _find_query(s, f, p):
    """First pass, over the program's positions: the largest sum over channels with its
    position, and the sum of each channel."""
    begin, end = _blocks(s, p)
    acc = f.partial.dtype.element_ty
    total = tl.zeros([p.BLOCK_K, p.BLOCK_N], acc)
    largest = tl.full([p.BLOCK_N], float('-inf'), acc)
    place = tl.full([p.BLOCK_N], _NOWHERE, tl.int32)
    for i in range(begin, end):
        n = _positions(i, p)
        block = _load(s.x, n, s, p)
        total += block
        value = tl.sum(block, 0)
        # One NaN makes the whole slab NaN, so any position can be the query. Count NaN
        # as infinite, because comparisons with NaN are always false.
        value = tl.where(value == value, value, float('inf'))
        value = tl.where(n < s.N, value, float('-inf'))
        better = (value > largest) | ((value == largest) & (n < place))
        largest, place = tl.where(better, value, largest), tl.where(better, n, place)
    top = tl.max(largest, 0)
    first = tl.min(tl.where(largest == top, place, _NOWHERE), 0)
    partial = f.partial + _share(p) * (_SUMS + p.K)
    c = tl.arange(0, p.BLOCK_K)
    tl.store(f.places + _share(p), first)
    tl.store(partial + _LARGEST, top)
    tl.store(partial + _SUMS + c, tl.sum(total, 1), mask=c < p.K)


@triton.jit
def _measure_score(s, f, p):
    """Second pass: the query and the mean vector of the slab, and the mean and squared
    deviations of the score over the program's positions."""
    begin, end = _blocks(s, p)
    slab = tl.program_id(0).to(tl.int64)
    every = _every_share(p)
    partial = f.partial + every * (_SUMS + p.K)
    largest = tl.load(partial + _LARGEST)
    place = tl.load(f.places + every).to(tl.int32)
    place = tl.min(tl.where(largest == tl.max(largest, 0), place, _NOWHERE), 0)
    c = tl.arange(0, p.BLOCK_K)
    sums = partial[None, :] + _SUMS + c[:, None]
    mean = tl.sum(tl.load(sums, mask=(c < p.K)[:, None], other=0), 1) / s.N
    if tl.program_id(1) == 0:
        tl.store(s.place + slab, place)
        tl.store(s.mean + slab * p.K + c, mean, mask=c < p.K)
    if p.NORMALIZED:
        t = _targets(place, mean, s, p)
        shift = _shift(t, s, p)
        # Each of BLOCK_N lanes has a mean of its own, and updates it by Welford's
        # recurrence. _combine joins the lanes.
        acc = f.partial.dtype.element_ty
        count = tl.zeros([p.BLOCK_N], acc)
        centre = tl.zeros([p.BLOCK_N], acc)
        squares = tl.zeros([p.BLOCK_N], acc)
        for i in range(begin, end):
            n = _positions(begin + end - 1 - i, p)
            score = _score(_load(s.x, n, s, p), n, t, s, p) - shift
            inside = n < s.N
            count += tl.where(inside, 1.0, 0.0)
            away = tl.where(inside, score - centre, 0.0)
            centre += away / tl.maximum(count, 1.0)
            squares += tl.where(inside, away * (score - centre), 0.0)
        count, centre, squares = _combine(count, centre, squares)
        own = f.partial + _share(p) * (_SUMS + p.K)
        tl.store(own + _COUNT, count)
        tl.store(own + _CENTRE, centre)
        tl.store(own + _SQUARES, squares)


@triton.jit
def _write_output(s, f, p):
    """Third pass: the gate (Eqs. 7 and 8), and the output."""
    begin, end = _blocks(s, p)
    t = _recall(s, p)
    shift, offset, deviation = 0.0, 0.0, 1.0
    if p.NORMALIZED:
        shift = _shift(t, s, p)
        partial = f.partial + _every_share(p) * (_SUMS + p.K)
        count, centre, squares = (
            tl.load(partial + _COUNT),
            tl.load(partial + _CENTRE),
            tl.load(partial + _SQUARES),
        )
        count, offset, squares = _combine(count, centre, squares)
        deviation = tl.sqrt(tl.maximum(squares / s.N, _MIN_VARIANCE))
    if tl.program_id(1) == 0:
        own = s.statistics + tl.program_id(0).to(tl.int64) * 3
        tl.store(own, shift)
        tl.store(own + 1, offset)
        tl.store(own + 2, deviation)
    norm = _norm(shift, offset, deviation, s, p)
    for i in range(begin, end):
        n = _positions(i, p)
        block = _load(s.x, n, s, p)
        gate = _gate(_score(block, n, t, s, p) - shift - offset, norm)
        _store(f.y, block * gate[None, :], n, s, p)


@triton.jit
def _backward_kernel(s, b, p):
    """Backward if P is 1: one program makes all three passes over its slab."""
    _sum_logits(s, b, p)
    tl.debug_barrier()
    _differentiate_targets(s, b, p)
    tl.debug_barrier()
    _write_gradient(s, b, p)


@triton.jit
def _sum_logits(s, b, p):
    """First pass: the gradients of weight and bias, which Eq. 6's gradient requires.

    The pass stores the logit's gradient (N numbers a slab) for the second pass, which
    then need not read the gradient of y (K * N numbers a slab).
    """
    begin, end = _blocks(s, p)
    t = _recall(s, p)
    norm = _recall_norm(t, s, p)
    g_bias = tl.zeros([p.BLOCK_N], norm.scale.dtype)
    g_weight = tl.zeros([p.BLOCK_N], norm.scale.dtype)
    for i in range(begin, end):
        n = _positions(i, p)
        block = _load(s.x, n, s, p)
        score = _score(block, n, t, s, p) - norm.shift - norm.offset
        gate = _gate(score, norm)
        g_logit = tl.sum(_load(b.gradient, n, s, p) * block, 0) * gate * (1 - gate)
        tl.store(_logits(n, s, b), g_logit, mask=n < s.N)
        g_bias += tl.where(n < s.N, g_logit, 0.0)
        # Multiply score and inverse first. If the deviation is infinite, inverse is 0,
        # but g_logit * score may overflow.
        g_weight += tl.where(n < s.N, g_logit * (score * norm.inverse), 0.0)
    own = b.g_parameters + _share(p) * 7
    tl.store(own + _BIAS, tl.sum(g_bias, 0))
    tl.store(own + _WEIGHT, tl.sum(g_weight, 0))


@triton.jit
def _differentiate_targets(s, b, p):
    """Second pass: gradients of alpha, beta, theta, sigma, query and mean vector."""
    begin, end = _blocks(s, p)
    t = _recall(s, p)
    norm = _recall_norm(t, s, p)
    average, spread = _balance(norm, s, b, p)
    acc = norm.scale.dtype
    g_alpha = tl.zeros([p.BLOCK_N], acc)
    g_beta = tl.zeros([p.BLOCK_N], acc)
    g_row = tl.zeros([p.BLOCK_N], acc)
    g_column = tl.zeros([p.BLOCK_N], acc)
    g_sigma = tl.zeros([p.BLOCK_N], acc)
    g_query = tl.zeros([p.BLOCK_K, p.BLOCK_N], acc)
    g_mean = tl.zeros([p.BLOCK_K, p.BLOCK_N], acc)
    for i in range(begin, end):
        n = _positions(begin + end - 1 - i, p)
        block = _load(s.x, n, s, p)
        score = _score(block, n, t, s, p) - norm.shift - norm.offset
        g_logit = tl.load(_logits(n, s, b), mask=n < s.N, other=0)
        g_score = norm.scale * (g_logit - average - score * spread)
        g_score = tl.where(n < s.N, g_score, 0.0)
        down, across = _distances(n, t, s)
        rows, columns = _densities(n, t, s)
        to_query = _similarity(block, t.query, p)
        to_mean = _similarity(block, t.mean, p)
        g_alpha += g_score * to_query * (rows + columns)
        g_beta += g_score * to_mean
        g_density = t.alpha * g_score * to_query
        by_row, by_column = t.row * down, t.column * across
        g_row -= g_density * rows * by_row * down
        g_column -= g_density * columns * by_column * across
        # Subtract 1 at each position. The difference of two sums would lose digits.
        g_sigma += g_density * (
            rows * (by_row * by_row - 1) + columns * (by_column * by_column - 1)
        )
        g_to_query = t.alpha * g_score * (rows + columns)
        g_query += _similarity_gradient(g_to_query, block, t.query, p)[1]
        g_mean += _similarity_gradient(t.beta * g_score, block, t.mean, p)[1]
    own = b.g_parameters + _share(p) * 7
    tl.store(own + _ALPHA, tl.sum(g_alpha, 0))
    tl.store(own + _BETA, tl.sum(g_beta, 0))
    if s.theta is not None:
        sigma = tl.load(s.sigma).to(acc)
        inverse = 1 / tl.maximum(tl.abs(sigma), _MIN_SIGMA)
        tl.store(own + _THETA, inverse * tl.sum(g_row, 0))
        tl.store(own + _THETA + 1, inverse * tl.sum(g_column, 0))
        # If |sigma| is below _MIN_SIGMA, it has no effect and no gradient.
        sign = tl.where(sigma < 0, -1.0, 1.0)
        sign = tl.where(tl.abs(sigma) < _MIN_SIGMA, 0.0, sign)
        tl.store(own + _SIGMA, sign * inverse * tl.sum(g_sigma, 0))
    c = tl.arange(0, p.BLOCK_K)
    own = b.g_targets + _share(p) * 2 * p.K + c
    tl.store(own, tl.sum(g_query, 1), mask=c < p.K)
    tl.store(own + p.K, tl.sum(g_mean, 1), mask=c < p.K)


@triton.jit
def _write_gradient(s, b, p):
    """Third pass: the gradient of x."""
    begin, end = _blocks(s, p)
    t = _recall(s, p)
    norm = _recall_norm(t, s, p)
    average, spread = _balance(norm, s, b, p)
    c = tl.arange(0, p.BLOCK_K)
    shares = b.g_targets + _every_share(p)[None, :] * 2 * p.K + c[:, None]
    g_query = tl.sum(tl.load(shares, mask=(c < p.K)[:, None], other=0), 1)
    g_mean = tl.sum(tl.load(shares + p.K, mask=(c < p.K)[:, None], other=0), 1) / s.N
    for i in range(begin, end):
        n = _positions(i, p)
        block = _load(s.x, n, s, p)
        gradient = _load(b.gradient, n, s, p)
        score = _score(block, n, t, s, p) - norm.shift - norm.offset
        gate = _gate(score, norm)
        g_logit = tl.sum(gradient * block, 0) * gate * (1 - gate)
        g_score = norm.scale * (g_logit - average - score * spread)
        rows, columns = _densities(n, t, s)
        g_to_query = t.alpha * g_score * (rows + columns)
        result = gradient * gate[None, :] + g_mean[:, None]
        result += _similarity_gradient(g_to_query, block, t.query, p)[0]
        result += _similarity_gradient(t.beta * g_score, block, t.mean, p)[0]
        result += tl.where((n == t.place)[None, :], g_query[:, None], 0.0)
        _store(b.gx, result, n, s, p)


@triton.jit
def _blocks(s, p):
    """Numbers of the program's first block, and of the block after its last block."""
    blocks = tl.cdiv(s.N, p.BLOCK_N)
    size = tl.cdiv(blocks, p.P)
    begin = tl.program_id(1) * size
    return begin, tl.minimum(begin + size, blocks)


@triton.jit
def _share(p):
    """The number of this program among the programs of all slabs."""
    return tl.program_id(0).to(tl.int64) * p.P + tl.program_id(1)


@triton.jit
def _every_share(p):
    """The numbers of the programs that share the slab, (P,)."""
    return tl.program_id(0).to(tl.int64) * p.P + tl.arange(0, p.P)


@triton.jit
def _positions(i, p):
    """The positions in block i, (BLOCK_N,). Some may lie beyond the map."""
    return i * p.BLOCK_N + tl.arange(0, p.BLOCK_N)


@triton.jit
def _address(tensor, n, s, p):
    """Addresses of the slab at positions n, and a mask: False outside the slab."""
    slab, k = tl.program_id(0), tl.arange(0, p.BLOCK_K)
    sample, c, C = slab // s.G, slab % s.G * p.K + k, s.G * p.K
    at = pointers(tensor, sample, c, n, C, s.N, s.stride_c, s.stride_n, p.WIDE)
    return at, (k < p.K)[:, None] & (n < s.N)[None, :]


@triton.jit
def _load(tensor, n, s, p):
    """The slab at positions n, (BLOCK_K, len(n)), dtype A. It is zero outside x."""
    at, exists = _address(tensor, n, s, p)
    return tl.load(at, mask=exists, other=0).to(s.mean.dtype.element_ty)


@triton.jit
def _store(tensor, block, n, s, p):
    at, exists = _address(tensor, n, s, p)
    tl.store(at, block.to(tensor.dtype.element_ty), mask=exists)


@triton.jit
def _logits(n, s, b):
    """Addresses in g_logit of the positions n of this program's slab."""
    return b.g_logit + tl.program_id(0).to(tl.int64) * s.N + n


@triton.jit
def _combine(count, mean, squares):
    """Join the counts, means and sums of squared deviations of parts into those of the
    whole (Chan's formula)."""
    number = tl.sum(count, 0)
    middle = tl.sum(count * mean, 0) / tl.maximum(number, 1.0)
    away = mean - middle
    return number, middle, tl.sum(squares + count * away * away, 0)


@triton.jit
def _targets(place, mean, s, p):
    """The query, the mean vector and the parameters of a slab, as _Targets."""
    acc = s.mean.dtype.element_ty
    group = tl.program_id(0) % s.G
    query = tl.sum(_load(s.x, place + tl.arange(0, 1), s, p), 1)
    alpha, beta = tl.load(s.alpha + group).to(acc), tl.load(s.beta + group).to(acc)
    row, column, height = 0.0, 0.0, 0.5  # Without position encoding, D (Eq. 5) is 1.
    if s.theta is not None:
        width = tl.maximum(tl.abs(tl.load(s.sigma).to(acc)), _MIN_SIGMA)
        row = tl.load(s.theta).to(acc) / width
        column = tl.load(s.theta + 1).to(acc) / width
        height = 0.5 / (width * _ROOT_2_PI)
    return _Targets(place, query, mean, alpha, beta, row, column, height)


@triton.jit
def _recall(s, p):
    """The _Targets of a slab, from the query and mean vector that forward kept."""
    slab, c = tl.program_id(0).to(tl.int64), tl.arange(0, p.BLOCK_K)
    mean = tl.load(s.mean + slab * p.K + c, mask=c < p.K, other=0)
    return _targets(tl.load(s.place + slab).to(tl.int32), mean, s, p)


@triton.jit
def _distances(n, t, s):
    """Signed distances, in rows and in columns, from the query to positions n."""
    down = (n // s.W - t.place // s.W).to(t.mean.dtype)
    across = (n % s.W - t.place % s.W).to(t.mean.dtype)
    return down, across


@triton.jit
def _densities(n, t, s):
    """Half of the density over rows, and half of the density over columns. The sum of
    both halves is D (Eq. 5)."""
    down, across = _distances(n, t, s)
    rows = t.height * tl.exp(-0.5 * (t.row * down) * (t.row * down))
    columns = t.height * tl.exp(-0.5 * (t.column * across) * (t.column * across))
    return rows, columns


@triton.jit
def _similarity(block, target, p):
    """Similarity (Eqs. 2 to 4) of each position in a block to the target, (BLOCK_N,).
    The target is the query or the mean vector."""
    if p.SIMILARITY == _L1:
        value = -tl.sum(tl.abs(block - target[:, None]), 0)
    else:
        value = tl.sum(block * target[:, None], 0)
    if p.SIMILARITY == _COSINE:
        value = value / tl.maximum(_norms(block, target), _MIN_NORMS)
    return value


@triton.jit
def _norms(block, target):
    """The product of norms that Eq. 2 divides by, (BLOCK_N,)."""
    return tl.sqrt(tl.sum(block * block, 0)) * tl.sqrt(tl.sum(target * target, 0))


@triton.jit
def _similarity_gradient(g, block, target, p):
    """Gradients of the similarity's inputs: of the block, and of the target at each
    position, (BLOCK_K, BLOCK_N) both. g (BLOCK_N,) is the similarity's gradient."""
    if p.SIMILARITY == _L1:
        away = block - target[:, None]
        sign = tl.where(away > 0, 1.0, tl.where(away < 0, -1.0, 0.0))
        of_target = g[None, :] * sign
        of_block = -of_target
    else:
        radial = g * 0
        if p.SIMILARITY == _COSINE:
            norms = _norms(block, target)
            # If norms is below _MIN_NORMS, Eq. 2 divides by the constant _MIN_NORMS.
            # The norms then get no gradient.
            radial = g * _similarity(block, target, p)
            radial = tl.where(norms < _MIN_NORMS, 0.0, radial)
            g = g / tl.maximum(norms, _MIN_NORMS)
        of_block, of_target = g[None, :] * target[:, None], g[None, :] * block
        if p.SIMILARITY == _COSINE:
            square = tl.sum(block * block, 0)
            of_block -= block * (radial / tl.where(square > 0, square, 1.0))[None, :]
            square = tl.sum(target * target, 0)
            square = tl.where(square > 0, square, 1.0)
            of_target -= target[:, None] * (radial / square)[None, :]
    return of_block, of_target


@triton.jit
def _score(block, n, t, s, p):
    """Score (Eq. 1) of each position in a block, (BLOCK_N,)."""
    rows, columns = _densities(n, t, s)
    to_query = _similarity(block, t.query, p)
    to_mean = _similarity(block, t.mean, p)
    return t.alpha * to_query * (rows + columns) + t.beta * to_mean


@triton.jit
def _shift(t, s, p):
    """The score of the first position, which is subtracted from all scores.

    If all scores are equal, the difference must be exactly zero, because Eq. 7 may
    divide it by 1e-5. This requires that all scores are rounded alike. The kernel of
    another pass may add the channels in another order. Therefore each pass computes
    this score (the shift) again. Backward does not read the shift that forward keeps.
    """
    n = tl.arange(0, p.BLOCK_N)
    score = _score(_load(s.x, n, s, p), n, t, s, p)
    return tl.sum(tl.where(n == 0, score, 0.0), 0)


@triton.jit
def _norm(shift, offset, deviation, s, p):
    """The factors in Eqs. 7 and 8, as _Norm."""
    group = tl.program_id(0) % s.G
    scale = tl.load(s.weight + group).to(s.mean.dtype.element_ty)
    bias = tl.load(s.bias + group).to(s.mean.dtype.element_ty)
    inverse = 1.0
    if p.NORMALIZED:
        inverse = 1.0 / (deviation + _EPS)
        scale = scale * inverse
    return _Norm(shift, offset, deviation, inverse, scale, bias)


@triton.jit
def _recall_norm(t, s, p):
    """The factors in Eqs. 7 and 8, from the statistics that forward kept."""
    shift, offset, deviation = 0.0, 0.0, 1.0
    if p.NORMALIZED:
        kept = s.statistics + tl.program_id(0).to(tl.int64) * 3
        shift = _shift(t, s, p)
        offset, deviation = tl.load(kept + 1), tl.load(kept + 2)
    return _norm(shift, offset, deviation, s, p)


@triton.jit
def _gate(score, norm):
    """The gate (Eq. 8)."""
    return tl.sigmoid(norm.scale * score + norm.bias)


@triton.jit
def _balance(norm, s, b, p):
    """Two numbers that the gradient of Eqs. 6 and 7 requires: the mean of g_logit, and
    a factor. The gradient is g_logit, minus the mean, minus factor times score."""
    average, spread = 0.0, 0.0
    if p.NORMALIZED:
        shares = b.g_parameters + _every_share(p) * 7
        average = tl.sum(tl.load(shares + _BIAS), 0) / s.N
        g_weight = tl.sum(tl.load(shares + _WEIGHT), 0)
        spread = g_weight / (s.N * norm.deviation)
    return average, spread
