"""Position-Aware Recalibration Module in Triton kernels, forward and backward.

The input x is (B, C, H, W): B samples, C channels and N = H * W positions. The channels
form G groups of K = C / G channels. A slab is the part of x in one sample and one
group, (K, N). P programs share a slab: each computes some of the N positions. A program
loads K channels at BLOCK_N positions at a time (a block).

Forward and backward each take three passes over a slab, because the next pass requires
sums over all positions from the pass before it. The passes are:

- forward: 1. the query (the position with the largest sum over channels) and the mean
  vector, 2. the mean and the deviation of the score (Eq. 1), 3. the output.
- backward: 1. the sums that Eq. 6's gradient requires, 2. the gradients of the query,
  of the mean vector and of the parameters, 3. the gradient of x.

If there are enough slabs to fill the device, P is 1, and one kernel makes all three
passes. If P > 1, each pass has a kernel of its own. The second pass reads the blocks in
reverse order, because the blocks that the first pass read last are still in cache.

Sums are accumulated in float32 (float64 for float64 inputs), in an order that never
changes. Functions have arguments s (of type _Slabs), f (_Forward), b (_Backward),
p (_Plan) and t (_Targets).
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

# Number of elements in a block (channels times positions), 32 kB in float32. With 16
# warps, this is enough to use all the memory bandwidth of a multiprocessor.
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
_NOWHERE = tl.constexpr(2**31 - 1)  # larger than the index of any position
# Indices into the last axis of _Forward.partial. The K channels' sums begin at _SUMS.
_LARGEST, _COUNT, _CENTRE, _SQUARES, _SUMS = (tl.constexpr(i) for i in range(5))
# Indices into the last axis of _Backward.g_parameters. The two gradients of theta have
# the indices 4 and 5.
_BIAS, _WEIGHT, _ALPHA, _BETA, _THETA, _SIGMA = map(tl.constexpr, (0, 1, 2, 3, 4, 6))


class _Slabs(NamedTuple):
    """The arguments of all kernels. Features and gradients have the same strides."""

    x: Tensor  # features, (B, C, H, W), any floating dtype, dense
    alpha: Tensor  # weight of the similarity to the query, (G,)
    beta: Tensor  # weight of the similarity to the mean vector, (G,)
    weight: Tensor  # lambda of Eq. 8, (G,)
    bias: Tensor  # xi of Eq. 8, (G,)
    # Factors of a position's distance to the query, one for rows and one for columns,
    # (2,), or None.
    theta: Optional[Tensor]
    # Standard deviation of the position encoding, a scalar, or None.
    sigma: Optional[Tensor]
    place: Tensor  # index of the query among the N positions, (B, G), int64
    mean: Tensor  # mean of x over positions, (B, G, K), float32 at least
    statistics: Tensor  # shift, offset and deviation of _Norm, (B, G, 3)
    stride_c: int  # stride of the channels, in elements
    stride_n: int  # stride of the positions, in elements
    G: int  # number of groups
    N: int  # number of positions
    W: int  # width of the map, in positions


class _Forward(NamedTuple):
    """The arguments that only the kernels of forward get."""

    y: Tensor  # output, with the shape, dtype and strides of x
    # Position where each program found the largest sum over channels, (B, G, P), int64.
    places: Tensor
    # Results of each of the P programs that share a slab, (B, G, P, 4 + K), float32 at
    # least. On the last axis, the indices _LARGEST to _SQUARES hold four statistics.
    # Then follow the sums of the K channels over the program's positions.
    partial: Tensor


class _Backward(NamedTuple):
    """The arguments that only the kernels of backward get."""

    # Gradient of y, with the shape and strides of x, any floating dtype.
    gradient: Tensor
    gx: Tensor  # gradient of x, with the shape, dtype and strides of x
    # Gradient of the logit (the input of the gate's sigmoid), (B, G, N), float32 at
    # least.
    g_logit: Tensor
    # Gradients of the parameters, summed over each program's positions, (B, G, P, 7),
    # float32 at least.
    g_parameters: Tensor
    # Gradients of the query vector and of the mean vector, summed over each program's
    # positions, (B, G, P, 2, K), float32 at least.
    g_targets: Tensor


class _Plan(NamedTuple):
    """Values that are fixed when a kernel is compiled. For other values, Triton
    compiles the kernel again."""

    K: tl.constexpr  # number of channels in a group
    SIMILARITY: tl.constexpr  # 0 for 'dot', 1 for 'l1', 2 for 'cosine'
    NORMALIZED: tl.constexpr  # whether the score is normalised (Eqs. 6 and 7)
    P: tl.constexpr  # number of programs for one group of a sample, a power of two
    BLOCK_K: tl.constexpr  # K, rounded up to a power of two
    BLOCK_N: tl.constexpr  # number of positions in a block
    WIDE: tl.constexpr  # whether offsets within a sample need 64 bits


class _Targets(NamedTuple):
    """Query, mean vector and parameters of one group of one sample. With the group's
    features, they give the score (Eq. 1)."""

    place: tl.tensor  # index of the query among the N positions, a scalar
    query: tl.tensor  # query vector, (BLOCK_K,)
    mean: tl.tensor  # mean vector, (BLOCK_K,)
    alpha: tl.tensor  # weight of the similarity to the query, a scalar
    beta: tl.tensor  # weight of the similarity to the mean vector, a scalar
    # Theta's factor for distances in rows, divided by sigma, a scalar.
    row: tl.tensor
    # Theta's factor for distances in columns, divided by sigma, a scalar.
    column: tl.tensor
    # Half of the peak of a Gaussian density. D (Eq. 5) is the mean of two densities,
    # which is the sum of half of each density.
    height: tl.tensor


class _Norm(NamedTuple):
    """Numbers that turn the score of one group of one sample into the normalised score
    and the gate (Eqs. 6 to 8)."""

    shift: tl.tensor  # score of the first position, subtracted from all scores
    offset: tl.tensor  # mean of (score - shift) over positions
    deviation: tl.tensor
    inverse: tl.tensor  # 1 / (deviation + EPS)
    scale: tl.tensor  # ``inverse`` times the parameter ``weight`` (lambda of Eq. 8)
    bias: tl.tensor


def forward(x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Takes the arguments of ``prm``. Returns the output y (B, C, H, W), the query's
    index (B, G), the mean vector (B, G, K), and statistics of the score (B, G, 3). The
    statistics are the fields shift, offset and deviation of :class:`_Norm`."""
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
    """Takes the gradient of the output, the tensors that ``prm`` takes, the three
    tensors that ``forward`` returned for backward, and the other arguments of ``prm``.
    Returns the gradients of x, alpha, beta, weight, bias, theta and sigma. If theta and
    sigma are None, their gradients are empty tensors."""
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

    # Gradients of the parameters, summed over samples and programs, (G, 7).
    totals = results.g_parameters.sum((0, 2))
    # The gradients of theta (two numbers) and of sigma (one), summed over groups.
    shared = totals[:, _THETA.value :].sum(0)
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
    """Upper limit of P, the number of programs that share a slab (one group of one
    sample). The limit is a power of two.

    The limit is 1 if the slabs occupy most of the available multiprocessors. Otherwise,
    each multiprocessor gets about two programs.
    """
    if 5 * slabs >= 4 * available:
        return 1
    return triton.next_power_of_2(max(1, 2 * available // max(slabs, 1)))


def _launch(whole, passes, x, parameters, kept, results, plan):
    """If one program computes a slab (P = 1), launch the kernel ``whole``. Otherwise,
    launch the kernels ``passes``, one for each pass over the slabs."""
    groups, (*_, height, width) = len(parameters[0]), x.shape
    sizes = (*strides(x), groups, height * width, width)
    slabs = _Slabs(x, *parameters, *kept, *sizes)
    grid = (len(x) * groups, plan.P.value)
    for kernel in (whole,) if plan.P.value == 1 else passes:
        launch(kernel, grid, x, slabs, results, plan, num_warps=_WARPS)


@triton.jit
def _forward_kernel(s, f, p):
    """All passes of forward in one kernel, used if one program computes a slab."""
    _find_query(s, f, p)
    tl.debug_barrier()
    _measure_score(s, f, p)
    tl.debug_barrier()
    _write_output(s, f, p)


@triton.jit
def _find_query(s, f, p):
    """First pass, over the program's positions. Find the largest sum over channels and
    its position, and sum each channel over positions."""
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
    """Second pass. Determine the query and the mean vector of the slab. Then compute
    the mean and squared deviations of the score over the program's positions."""
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
        # Each of the BLOCK_N places in a block has a mean of its own, which Welford's
        # recurrence updates. _combine joins the BLOCK_N means.
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
    """All passes of backward in one kernel, used if one program computes a slab."""
    _sum_logits(s, b, p)
    tl.debug_barrier()
    _differentiate_targets(s, b, p)
    tl.debug_barrier()
    _write_gradient(s, b, p)


@triton.jit
def _sum_logits(s, b, p):
    """First pass: compute the gradients of weight and bias. The second pass requires
    them for the gradient of Eq. 6.

    The logit is the input of the gate's sigmoid. This pass stores the logit's gradient,
    N numbers for each group of a sample. The second pass then need not read the
    gradient of y, which has K * N numbers for each group of a sample.
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
        # but g_logit * score could overflow, and infinity times 0 is NaN.
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
        # Sigma's gradient is a sum of terms with a factor u * u - 1, where u is by_row
        # or by_column. Subtract 1 in each term, because the difference of a sum with
        # u * u and a sum with 1 would lose digits.
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
        # A sigma whose magnitude is below _MIN_SIGMA has no effect and no gradient.
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
    """Index of the program's first block, and of the block after its last block."""
    blocks = tl.cdiv(s.N, p.BLOCK_N)
    size = tl.cdiv(blocks, p.P)
    begin = tl.program_id(1) * size
    return begin, tl.minimum(begin + size, blocks)


@triton.jit
def _share(p):
    """Index of this program among the programs of all slabs."""
    return tl.program_id(0).to(tl.int64) * p.P + tl.program_id(1)


@triton.jit
def _every_share(p):
    """Indices (P,) of this slab's programs among the programs of all slabs."""
    return tl.program_id(0).to(tl.int64) * p.P + tl.arange(0, p.P)


@triton.jit
def _positions(i, p):
    """Positions in block i, (BLOCK_N,). The last block can reach beyond the map."""
    return i * p.BLOCK_N + tl.arange(0, p.BLOCK_N)


@triton.jit
def _address(tensor, n, s, p):
    """Addresses of this program's slab at positions n, and a mask that is False outside
    the slab."""
    slab, k = tl.program_id(0), tl.arange(0, p.BLOCK_K)
    sample, c, C = slab // s.G, slab % s.G * p.K + k, s.G * p.K
    at = pointers(tensor, sample, c, n, C, s.N, s.stride_c, s.stride_n, p.WIDE)
    return at, (k < p.K)[:, None] & (n < s.N)[None, :]


@triton.jit
def _load(tensor, n, s, p):
    """Values of this program's slab in ``tensor`` at positions n, (BLOCK_K, len(n)), in
    float32 at least. Outside the slab, the values are zero."""
    at, exists = _address(tensor, n, s, p)
    return tl.load(at, mask=exists, other=0).to(s.mean.dtype.element_ty)


@triton.jit
def _store(tensor, block, n, s, p):
    at, exists = _address(tensor, n, s, p)
    tl.store(at, block.to(tensor.dtype.element_ty), mask=exists)


@triton.jit
def _logits(n, s, b):
    """Addresses in ``g_logit`` of positions n, for this program's group and sample."""
    return b.g_logit + tl.program_id(0).to(tl.int64) * s.N + n


@triton.jit
def _combine(count, mean, squares):
    """Join the statistics of several parts: counts, means and sums of squared
    deviations. Returns the count, mean and sum of all parts together (Chan's
    formula)."""
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
    """The _Targets of a slab, computed from the query's index and the mean vector that
    forward stored."""
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
    """Halves of two Gaussian densities, one over rows and one over columns. The sum of
    the two halves is D (Eq. 5)."""
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
    """Norm of each position times the norm of the target, (BLOCK_N,). Eq. 2 divides by
    this product."""
    return tl.sqrt(tl.sum(block * block, 0)) * tl.sqrt(tl.sum(target * target, 0))


@triton.jit
def _similarity_gradient(g, block, target, p):
    """Differentiate the similarity of features (``block``) to a vector (``target``).

    From the similarity's gradient g (BLOCK_N,), compute the gradients of both,
    (BLOCK_K, BLOCK_N) each. The target's gradient is not yet summed over positions.
    """
    if p.SIMILARITY == _L1:
        away = block - target[:, None]
        sign = tl.where(away > 0, 1.0, tl.where(away < 0, -1.0, 0.0))
        of_target = g[None, :] * sign
        of_block = -of_target
    else:
        radial = g * 0
        if p.SIMILARITY == _COSINE:
            norms = _norms(block, target)
            # If the product of norms is below _MIN_NORMS, Eq. 2 divides by the constant
            # _MIN_NORMS. The norms then get no gradient.
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
    """The numbers by which Eqs. 7 and 8 shift and scale the score, as _Norm."""
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
    """The numbers by which Eqs. 7 and 8 shift and scale the score, as _Norm. They come
    from the statistics that forward stored."""
    shift, offset, deviation = 0.0, 0.0, 1.0
    if p.NORMALIZED:
        kept = s.statistics + tl.program_id(0).to(tl.int64) * 3
        shift = _shift(t, s, p)
        offset, deviation = tl.load(kept + 1), tl.load(kept + 2)
    return _norm(shift, offset, deviation, s, p)


@triton.jit
def _gate(score, norm):
    """The gate of each position (Eq. 8), from its score."""
    return tl.sigmoid(norm.scale * score + norm.bias)


@triton.jit
def _balance(norm, s, b, p):
    """Two numbers for the score's gradient (Eqs. 6 and 7): the mean of ``g_logit`` (the
    gradient of the gate's input), and a factor. The score's gradient is proportional to
    ``g_logit - mean - factor * score``."""
    average, spread = 0.0, 0.0
    if p.NORMALIZED:
        shares = b.g_parameters + _every_share(p) * 7
        average = tl.sum(tl.load(shares + _BIAS), 0) / s.N
        g_weight = tl.sum(tl.load(shares + _WEIGHT), 0)
        spread = g_weight / (s.N * norm.deviation)
    return average, spread
