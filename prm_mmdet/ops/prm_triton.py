"""Position-Aware Recalibration Module in Triton kernels, forward and backward.

A slab is one group of one sample: k = C / g channels by N = H * W positions. It takes
three passes in each direction, since a pass needs what the one before it summed over
all positions: the query and the mean, the moments of the score, the gate; the sums of
Eq. 6's gradient, the gradients of query and mean, that of x. Where there are slabs
enough to fill the device, one program makes all three passes over a slab, each from
the end where the last one stopped, so that much of it still lies in cache. Where
there are few, each pass is a launch and several programs share a slab.

A program holds all channels of a slab for a block of positions. Sums are taken in
float32 (float64 for such inputs), in an order that does not vary.
"""

import contextlib

import torch
import triton
import triton.language as tl

from .common import (
    EPS,
    MIN_DEVIATION,
    MIN_NORMS,
    MIN_SIGMA,
    accumulation_dtype,
    memory_format,
)

# Elements in a program's block, with 16 warps: 32 kB of float32 under way at a time,
# which is what keeps a multiprocessor's share of the memory busy.
_BLOCK = 8192
_WARPS = 16
# Positions that a block has at least, however many channels: a cache line of them.
_MIN_POSITIONS = 16
_SIMILARITIES = {'dot': 0, 'l1': 1, 'cosine': 2}

_EPS = tl.constexpr(EPS)
_MIN_VARIANCE = tl.constexpr(MIN_DEVIATION**2)
_MIN_NORMS = tl.constexpr(MIN_NORMS)
_MIN_SIGMA = tl.constexpr(MIN_SIGMA)
_ROOT_2_PI = tl.constexpr(2.5066282746310002)


def forward(x, alpha, beta, weight, bias, theta, sigma, similarity, normalization):
    """Returns y (B, C, H, W), the query's index (B, g), the mean vector (B, g, k) and
    the statistics of the score (B, g, 3): shift, offset and deviation."""
    x, plan = _plan(x, len(alpha), similarity, normalization, theta is not None)
    y = torch.empty_like(x, memory_format=memory_format(x))
    shape, dtype = (len(x), len(alpha)), accumulation_dtype(x)
    index = x.new_empty(shape, dtype=torch.int64)
    mean = x.new_empty((*shape, plan['K']), dtype=dtype)
    statistics = x.new_zeros((*shape, 3), dtype=dtype)
    shares = (*shape, plan['SPLITS'])
    # Each program's: largest channel sum and its place, sums of the channels, and
    # count, mean and squared deviations of the score.
    largest, places = x.new_empty(shares, dtype=dtype), x.new_empty(shares, dtype=int)
    sums = x.new_empty((*shares, plan['K']), dtype=dtype)
    moments = x.new_empty((*shares, 3), dtype=dtype)
    _launch(
        _forward_kernel,
        x,
        plan,
        *(x, y, alpha, beta, weight, bias, theta, sigma, index, mean, statistics),
        *(largest, places, sums, moments),
        *_strides(x),
        *_strides(y),
    )
    return y, index, mean, statistics


def backward(
    gradient,
    x,
    alpha,
    beta,
    weight,
    bias,
    theta,
    sigma,
    index,
    mean,
    statistics,
    similarity,
    normalization,
):
    """Returns the gradients of x, alpha, beta, weight, bias, theta and sigma; the last
    two are empty where there is no position encoding."""
    x, plan = _plan(x, len(alpha), similarity, normalization, theta is not None)
    gradient = _dense(gradient)
    gx = torch.empty_like(x, memory_format=memory_format(x))
    shape, dtype = (len(x), len(alpha)), accumulation_dtype(x)
    g_logit = x.new_empty((*shape, x.shape[2] * x.shape[3]), dtype=dtype)
    # Per slab: alpha, beta, weight, bias, theta (2), sigma, and one unused.
    g_parameters = x.new_zeros((*shape, 8), dtype=dtype)
    shares = (*shape, plan['SPLITS'])
    totals = x.new_empty((*shares, 2), dtype=dtype)
    g_targets = x.new_empty((*shares, 2, plan['K']), dtype=dtype)
    partial = x.new_empty((*shares, 8), dtype=dtype)
    _launch(
        _backward_kernel,
        x,
        plan,
        *(gradient, x, gx, alpha, beta, weight, bias, theta, sigma),
        *(index, mean, statistics, g_logit, g_parameters, totals, g_targets, partial),
        *_strides(gradient),
        *_strides(x),
        *_strides(gx),
    )
    per_group = g_parameters.sum(0)
    # Copies, since an operator's outputs may not share their memory.
    gradients = [
        per_group[:, i].to(p.dtype, copy=True)
        for i, p in enumerate((alpha, beta, weight, bias))
    ]
    if theta is None:
        return (gx, *gradients, x.new_empty(0), x.new_empty(0))
    shared = per_group[:, 4:7].sum(0)
    g_theta = shared[:2].to(theta.dtype, copy=True)
    return (gx, *gradients, g_theta, shared[2].to(sigma.dtype, copy=True))


def _dense(x):
    """Itself where rows and columns have one stride, as the kernels want it, else a
    copy."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _strides(x):
    """Of samples, channels and positions."""
    if x.is_contiguous():
        return x.shape[1] * x.shape[2] * x.shape[3], x.shape[2] * x.shape[3], 1
    return x.stride(0), x.stride(1), x.stride(3)


def _plan(x, groups, similarity, normalization, encoded):
    """x as the kernels take it, and their constants."""
    x = _dense(x)
    batch, channels, height, width = x.shape
    k, n = channels // groups, height * width
    block_k = triton.next_power_of_2(k)
    block_n = max(_MIN_POSITIONS, _BLOCK // block_k)
    block_n = max(_MIN_POSITIONS, min(block_n, triton.next_power_of_2(n)))
    blocks = triton.cdiv(n, block_n)
    splits = min(_splits(x, batch * groups), triton.next_power_of_2(max(blocks, 1)))
    return x, dict(
        G=groups,
        K=k,
        N=n,
        W=width,
        SIMILARITY=_SIMILARITIES[similarity],
        ENCODED=encoded,
        NORMALIZED=normalization,
        ACC=tl.float64 if x.dtype == torch.float64 else tl.float32,
        SPLITS=splits,
        SHARE=triton.cdiv(blocks, splits),
        BLOCKS=blocks,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
    )


def _splits(x, slabs):
    """Programs that share a slab, a power of two: two on each multiprocessor in all, or
    one per slab where these nearly fill the device."""
    if not x.is_cuda:  # the interpreter
        return 1
    available = torch.cuda.get_device_properties(x.device).multi_processor_count
    if 5 * slabs >= 4 * available:
        return 1
    return triton.next_power_of_2(max(1, 2 * available // max(slabs, 1)))


def _launch(kernel, x, plan, *arguments):
    if not x.numel():
        return
    grid = (len(x) * plan['G'], plan['SPLITS'])
    device = torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
    with device:
        for step in (0,) if plan['SPLITS'] == 1 else (1, 2, 3):
            # Without contraction the same values round the same way in every pass:
            # Eq. 7 divides a map that is constant but for rounding by 1e-5.
            kernel[grid](
                *arguments,
                **plan,
                PASS=step,
                num_warps=_WARPS,
                enable_fp_fusion=False,
            )


@triton.jit
def _load(pointer, c, n, stride_c, stride_n, K, N, ACC: tl.constexpr):
    """A block (k, n) of a slab; zero outside."""
    mask = (c < K)[:, None] & (n < N)[None, :]
    at = pointer + c[:, None] * stride_c + n[None, :] * stride_n
    return tl.load(at, mask=mask, other=0).to(ACC)


@triton.jit
def _gaussian(distance, theta, sigma):
    """Eq. 5 on one axis."""
    ratio = theta * distance / sigma
    return tl.exp(-0.5 * ratio * ratio) / (sigma * _ROOT_2_PI)


@triton.jit
def _densities(n, place, theta, sigma, W, ENCODED: tl.constexpr, ACC: tl.constexpr):
    """Eq. 5 for rows and for columns, and the distances."""
    down = (n // W - place // W).to(ACC)
    across = (n % W - place % W).to(ACC)
    if ENCODED:
        width = tl.maximum(tl.abs(tl.load(sigma).to(ACC)), _MIN_SIGMA)
        rows = _gaussian(down, tl.load(theta).to(ACC), width)
        columns = _gaussian(across, tl.load(theta + 1).to(ACC), width)
    else:
        rows, columns = down * 0 + 1, across * 0 + 1
    return rows, columns, down, across


@triton.jit
def _similarity(block, target, SIMILARITY: tl.constexpr):
    """Eqs. 2-4, and for Eq. 2 the product of norms that it divides by."""
    norms = tl.sum(block * 0, 0)
    if SIMILARITY == 1:
        value = -tl.sum(tl.abs(block - target[:, None]), 0)
    else:
        value = tl.sum(block * target[:, None], 0)
    if SIMILARITY == 2:
        norms = tl.sqrt(tl.sum(block * block, 0)) * tl.sqrt(tl.sum(target * target, 0))
        value = value / tl.maximum(norms, _MIN_NORMS)
    return value, norms


@triton.jit
def _score(
    block,
    n,
    query,
    mean,
    place,
    alpha,
    beta,
    theta,
    sigma,
    W,
    SIMILARITY: tl.constexpr,
    ENCODED: tl.constexpr,
    ACC: tl.constexpr,
):
    """Eq. 1."""
    to_query, _ = _similarity(block, query, SIMILARITY)
    to_mean, _ = _similarity(block, mean, SIMILARITY)
    rows, columns, _, _ = _densities(n, place, theta, sigma, W, ENCODED, ACC)
    return alpha * to_query * (0.5 * (rows + columns)) + beta * to_mean


@triton.jit
def _first(values, n):
    """That of position 0, which is in the block."""
    return tl.sum(tl.where(n == 0, values, 0), 0)


@triton.jit
def _forward_kernel(
    x,
    y,
    alpha,
    beta,
    weight,
    bias,
    theta,
    sigma,
    index,
    mean,
    statistics,
    largest,
    places,
    sums,
    moments,
    x_sample,
    x_channel,
    x_position,
    y_sample,
    y_channel,
    y_position,
    G,
    K: tl.constexpr,
    N,
    W,
    BLOCKS,
    SHARE,
    SIMILARITY: tl.constexpr,
    ENCODED: tl.constexpr,
    NORMALIZED: tl.constexpr,
    ACC: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PASS: tl.constexpr,
):
    slab = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    group = slab % G
    x += slab // G * x_sample + group * K * x_channel
    y += slab // G * y_sample + group * K * y_channel
    begin, end = split * SHARE, tl.minimum(split * SHARE + SHARE, BLOCKS)
    c, lanes, shares = (
        tl.arange(0, BLOCK_K),
        tl.arange(0, BLOCK_N),
        tl.arange(0, SPLITS),
    )
    share = slab * SPLITS + split
    every = slab * SPLITS + shares

    if PASS == 0 or PASS == 1:
        total = tl.zeros([BLOCK_K, BLOCK_N], ACC)
        best = tl.full([BLOCK_N], float('-inf'), ACC)
        place = tl.full([BLOCK_N], 2**31 - 1, tl.int32)
        for i in range(begin, end):
            n = i * BLOCK_N + lanes
            block = _load(x, c, n, x_channel, x_position, K, N, ACC)
            total += block
            value = tl.sum(block, 0)
            # A NaN makes the whole slab NaN: any index will do.
            value = tl.where(value == value, value, float('inf'))
            value = tl.where(n < N, value, float('-inf'))
            better = (value > best) | ((value == best) & (n < place))
            best, place = tl.where(better, value, best), tl.where(better, n, place)
        top = tl.max(best, 0)
        tl.store(largest + share, top)
        tl.store(places + share, tl.min(tl.where(best == top, place, 2**31 - 1), 0))
        tl.store(sums + share * K + c, tl.sum(total, 1), mask=c < K)

    if PASS == 0:
        tl.debug_barrier()

    if PASS != 1:
        best = tl.load(largest + every)
        place = tl.load(places + every)
        place = tl.min(tl.where(best == tl.max(best, 0), place, 2**31 - 1), 0)
        at = sums + every[None, :] * K + c[:, None]
        z = tl.sum(tl.load(at, mask=(c < K)[:, None], other=0), 1) / N
        q = tl.load(x + c * x_channel + place * x_position, mask=c < K, other=0).to(ACC)
        a, b = tl.load(alpha + group).to(ACC), tl.load(beta + group).to(ACC)
        shift = 0.0
        if NORMALIZED:
            # A constant map less one of its values is exactly zero.
            block = _load(x, c, lanes, x_channel, x_position, K, N, ACC)
            score = _score(
                *(block, lanes, q, z, place, a, b, theta, sigma, W),
                SIMILARITY,
                ENCODED,
                ACC,
            )
            shift = _first(score, lanes)

        if PASS == 0 or PASS == 2:
            if split == 0:
                tl.store(index + slab, place)
                tl.store(mean + slab * K + c, z, mask=c < K)
            if NORMALIZED:
                # Welford's recurrence in each lane, Chan's formula between lanes.
                count = tl.zeros([BLOCK_N], ACC)
                centre = tl.zeros([BLOCK_N], ACC)
                squares = tl.zeros([BLOCK_N], ACC)
                for i in range(begin, end):
                    n = (begin + end - 1 - i) * BLOCK_N + lanes
                    block = _load(x, c, n, x_channel, x_position, K, N, ACC)
                    score = _score(
                        *(block, n, q, z, place, a, b, theta, sigma, W),
                        SIMILARITY,
                        ENCODED,
                        ACC,
                    )
                    inside = n < N
                    count += tl.where(inside, 1.0, 0.0)
                    away = tl.where(inside, score - shift - centre, 0.0)
                    centre += away / tl.maximum(count, 1.0)
                    squares += tl.where(inside, away * (score - shift - centre), 0.0)
                number = tl.sum(count, 0)
                middle = tl.sum(count * centre, 0) / tl.maximum(number, 1.0)
                squares += count * (centre - middle) * (centre - middle)
                tl.store(moments + share * 3, number)
                tl.store(moments + share * 3 + 1, middle)
                tl.store(moments + share * 3 + 2, tl.sum(squares, 0))

        if PASS == 0:
            tl.debug_barrier()

        if PASS == 0 or PASS == 3:
            scale = tl.load(weight + group).to(ACC)
            offset = 0.0
            if NORMALIZED:
                count = tl.load(moments + every * 3)
                centre = tl.load(moments + every * 3 + 1)
                squares = tl.load(moments + every * 3 + 2)
                offset = tl.sum(count * centre, 0) / N
                squares += count * (centre - offset) * (centre - offset)
                variance = tl.sum(squares, 0) / N
                deviation = tl.sqrt(tl.maximum(variance, _MIN_VARIANCE))
                scale = scale / (deviation + _EPS)
                if split == 0:
                    tl.store(statistics + slab * 3, shift)
                    tl.store(statistics + slab * 3 + 1, offset)
                    tl.store(statistics + slab * 3 + 2, deviation)
            level = tl.load(bias + group).to(ACC)
            for i in range(begin, end):
                n = i * BLOCK_N + lanes
                block = _load(x, c, n, x_channel, x_position, K, N, ACC)
                score = _score(
                    *(block, n, q, z, place, a, b, theta, sigma, W),
                    SIMILARITY,
                    ENCODED,
                    ACC,
                )
                gate = tl.sigmoid(scale * (score - shift - offset) + level)
                room = y + c[:, None] * y_channel + n[None, :] * y_position
                mask = (c < K)[:, None] & (n < N)[None, :]
                value = block * gate[None, :]
                tl.store(room, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    gradient,
    x,
    gx,
    alpha,
    beta,
    weight,
    bias,
    theta,
    sigma,
    index,
    mean,
    statistics,
    g_logit,
    g_parameters,
    totals,
    g_targets,
    partial,
    g_sample,
    g_channel,
    g_position,
    x_sample,
    x_channel,
    x_position,
    gx_sample,
    gx_channel,
    gx_position,
    G,
    K: tl.constexpr,
    N,
    W,
    BLOCKS,
    SHARE,
    SIMILARITY: tl.constexpr,
    ENCODED: tl.constexpr,
    NORMALIZED: tl.constexpr,
    ACC: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PASS: tl.constexpr,
):
    slab = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    group = slab % G
    x += slab // G * x_sample + group * K * x_channel
    gx += slab // G * gx_sample + group * K * gx_channel
    gradient += slab // G * g_sample + group * K * g_channel
    g_logit += slab * N
    begin, end = split * SHARE, tl.minimum(split * SHARE + SHARE, BLOCKS)
    c, lanes, shares = (
        tl.arange(0, BLOCK_K),
        tl.arange(0, BLOCK_N),
        tl.arange(0, SPLITS),
    )
    share = slab * SPLITS + split
    every = slab * SPLITS + shares

    place = tl.load(index + slab).to(tl.int32)
    z = tl.load(mean + slab * K + c, mask=c < K, other=0)
    q = tl.load(x + c * x_channel + place * x_position, mask=c < K, other=0).to(ACC)
    a, b = tl.load(alpha + group).to(ACC), tl.load(beta + group).to(ACC)
    plain_scale = tl.load(weight + group).to(ACC)
    level = tl.load(bias + group).to(ACC)
    shift, offset, inverse, scale = 0.0, 0.0, 1.0, plain_scale
    deviation = 1.0
    if NORMALIZED:
        block = _load(x, c, lanes, x_channel, x_position, K, N, ACC)
        score = _score(
            *(block, lanes, q, z, place, a, b, theta, sigma, W),
            SIMILARITY,
            ENCODED,
            ACC,
        )
        shift = _first(score, lanes)
        offset = tl.load(statistics + slab * 3 + 1)
        deviation = tl.load(statistics + slab * 3 + 2)
        inverse = 1.0 / (deviation + _EPS)
        scale = plain_scale * inverse

    if PASS == 0 or PASS == 1:
        total = tl.zeros([BLOCK_N], ACC)
        product = tl.zeros([BLOCK_N], ACC)
        for i in range(begin, end):
            n = i * BLOCK_N + lanes
            block = _load(x, c, n, x_channel, x_position, K, N, ACC)
            g = _load(gradient, c, n, g_channel, g_position, K, N, ACC)
            score = _score(
                *(block, n, q, z, place, a, b, theta, sigma, W),
                SIMILARITY,
                ENCODED,
                ACC,
            )
            score = score - shift - offset
            gate = tl.sigmoid(scale * score + level)
            logit = tl.sum(g * block, 0) * gate * (1 - gate)
            tl.store(g_logit + n, logit, mask=n < N)
            logit = tl.where(n < N, logit, 0.0)
            total += logit
            product += tl.where(n < N, logit * score, 0.0)
        tl.store(totals + share * 2, tl.sum(total, 0))
        tl.store(totals + share * 2 + 1, tl.sum(product, 0))

    if PASS == 0:
        tl.debug_barrier()

    if PASS != 1:
        total = tl.sum(tl.load(totals + every * 2), 0)
        product = tl.sum(tl.load(totals + every * 2 + 1), 0)
        average, spread = 0.0, 0.0
        if NORMALIZED:
            average = total / N
            spread = product * inverse * scale / (N * deviation)

        if PASS == 0 or PASS == 2:
            # Their sums over positions: the parameters', the vectors'.
            g_alpha = tl.zeros([BLOCK_N], ACC)
            g_beta = tl.zeros([BLOCK_N], ACC)
            g_down = tl.zeros([BLOCK_N], ACC)
            g_across = tl.zeros([BLOCK_N], ACC)
            g_sigma = tl.zeros([BLOCK_N], ACC)
            q_norm = tl.zeros([BLOCK_N], ACC)
            z_norm = tl.zeros([BLOCK_N], ACC)
            g_q = tl.zeros([BLOCK_K, BLOCK_N], ACC)
            g_z = tl.zeros([BLOCK_K, BLOCK_N], ACC)
            for i in range(begin, end):
                n = (begin + end - 1 - i) * BLOCK_N + lanes
                block = _load(x, c, n, x_channel, x_position, K, N, ACC)
                logit = tl.load(g_logit + n, mask=n < N, other=0)
                to_query, q_norms = _similarity(block, q, SIMILARITY)
                to_mean, z_norms = _similarity(block, z, SIMILARITY)
                rows, columns, down, across = _densities(
                    n, place, theta, sigma, W, ENCODED, ACC
                )
                weighting = 0.5 * (rows + columns)
                score = a * to_query * weighting + b * to_mean - shift - offset
                if NORMALIZED:
                    g_score = (logit - average) * scale - spread * score
                else:
                    g_score = logit * scale
                g_score = tl.where(n < N, g_score, 0.0)
                g_alpha += g_score * to_query * weighting
                g_beta += g_score * to_mean
                if ENCODED:
                    width = tl.maximum(tl.abs(tl.load(sigma).to(ACC)), _MIN_SIGMA)
                    by_row = tl.load(theta).to(ACC) * down / width
                    by_column = tl.load(theta + 1).to(ACC) * across / width
                    g_weighting = 0.5 * a * to_query * g_score / width
                    g_down -= g_weighting * rows * by_row * down
                    g_across -= g_weighting * columns * by_column * across
                    g_sigma += g_weighting * (
                        rows * (by_row * by_row - 1)
                        + columns * (by_column * by_column - 1)
                    )
                g_to_query, g_to_mean = g_score * a * weighting, g_score * b
                if SIMILARITY == 1:
                    g_q += g_to_query[None, :] * _sign(block - q[:, None])
                    g_z += g_to_mean[None, :] * _sign(block - z[:, None])
                else:
                    if SIMILARITY == 2:
                        q_norm += tl.where(
                            q_norms < _MIN_NORMS, 0.0, g_to_query * to_query
                        )
                        z_norm += tl.where(
                            z_norms < _MIN_NORMS, 0.0, g_to_mean * to_mean
                        )
                        g_to_query = g_to_query / tl.maximum(q_norms, _MIN_NORMS)
                        g_to_mean = g_to_mean / tl.maximum(z_norms, _MIN_NORMS)
                    g_q += g_to_query[None, :] * block
                    g_z += g_to_mean[None, :] * block
            of_q, of_z = tl.sum(g_q, 1), tl.sum(g_z, 1)
            if SIMILARITY == 2:
                of_q -= q * _ratio(tl.sum(q_norm, 0), tl.sum(q * q, 0))
                of_z -= z * _ratio(tl.sum(z_norm, 0), tl.sum(z * z, 0))
            tl.store(g_targets + share * 2 * K + c, of_q, mask=c < K)
            tl.store(g_targets + share * 2 * K + K + c, of_z, mask=c < K)
            tl.store(partial + share * 8, tl.sum(g_alpha, 0))
            tl.store(partial + share * 8 + 1, tl.sum(g_beta, 0))
            tl.store(partial + share * 8 + 2, tl.sum(g_down, 0))
            tl.store(partial + share * 8 + 3, tl.sum(g_across, 0))
            tl.store(partial + share * 8 + 4, tl.sum(g_sigma, 0))

        if PASS == 0:
            tl.debug_barrier()

        if PASS == 0 or PASS == 3:
            if split == 0:
                own, sums = g_parameters + slab * 8, partial + every * 8
                tl.store(own, tl.sum(tl.load(sums), 0))
                tl.store(own + 1, tl.sum(tl.load(sums + 1), 0))
                tl.store(own + 2, product * inverse)
                tl.store(own + 3, total)
                if ENCODED:
                    tl.store(own + 4, tl.sum(tl.load(sums + 2), 0))
                    tl.store(own + 5, tl.sum(tl.load(sums + 3), 0))
                    # Under its floor, and at zero, sigma has no effect.
                    s = tl.load(sigma).to(ACC)
                    s = tl.where(s < 0, -1.0, 1.0) * tl.where(
                        tl.abs(s) < _MIN_SIGMA, 0.0, 1.0
                    )
                    tl.store(own + 6, s * tl.sum(tl.load(sums + 4), 0))
            at = g_targets + every[None, :] * 2 * K + c[:, None]
            of_q = tl.sum(tl.load(at, mask=(c < K)[:, None], other=0), 1)
            of_z = tl.sum(tl.load(at + K, mask=(c < K)[:, None], other=0), 1) / N
            for i in range(begin, end):
                n = i * BLOCK_N + lanes
                block = _load(x, c, n, x_channel, x_position, K, N, ACC)
                g = _load(gradient, c, n, g_channel, g_position, K, N, ACC)
                to_query, q_norms = _similarity(block, q, SIMILARITY)
                to_mean, z_norms = _similarity(block, z, SIMILARITY)
                rows, columns, _, _ = _densities(
                    n, place, theta, sigma, W, ENCODED, ACC
                )
                weighting = 0.5 * (rows + columns)
                score = a * to_query * weighting + b * to_mean - shift - offset
                gate = tl.sigmoid(scale * score + level)
                logit = tl.sum(g * block, 0) * gate * (1 - gate)
                if NORMALIZED:
                    g_score = (logit - average) * scale - spread * score
                else:
                    g_score = logit * scale
                g_to_query, g_to_mean = g_score * a * weighting, g_score * b
                result = g * gate[None, :] + of_z[:, None]
                if SIMILARITY == 1:
                    result -= g_to_query[None, :] * _sign(block - q[:, None])
                    result -= g_to_mean[None, :] * _sign(block - z[:, None])
                else:
                    if SIMILARITY == 2:
                        of_norm = tl.where(
                            q_norms < _MIN_NORMS, 0.0, g_to_query * to_query
                        )
                        of_norm += tl.where(
                            z_norms < _MIN_NORMS, 0.0, g_to_mean * to_mean
                        )
                        of_norm = _ratio(of_norm, tl.sum(block * block, 0))
                        result -= block * of_norm[None, :]
                        g_to_query = g_to_query / tl.maximum(q_norms, _MIN_NORMS)
                        g_to_mean = g_to_mean / tl.maximum(z_norms, _MIN_NORMS)
                    result += g_to_query[None, :] * q[:, None]
                    result += g_to_mean[None, :] * z[:, None]
                result += tl.where((n == place)[None, :], of_q[:, None], 0.0)
                room = gx + c[:, None] * gx_channel + n[None, :] * gx_position
                mask = (c < K)[:, None] & (n < N)[None, :]
                tl.store(room, result.to(gx.dtype.element_ty), mask=mask)


@triton.jit
def _sign(value):
    return tl.where(value > 0, 1.0, tl.where(value < 0, -1.0, 0.0))


@triton.jit
def _ratio(value, square):
    """Zero where the norm is: there the value is."""
    return value / tl.where(square > 0, square, 1.0)
