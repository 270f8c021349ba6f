"""Position-Aware Recalibration Module in PyTorch operators, for any device.

A slab is one group of one sample: k = C / g channels by N = H * W positions. Slabs
are independent and numbered through, B * g of them. Each step takes few enough (S in
the shapes below) that they stay in the processor's cache while some thirty operators
run on them: memory is read once and written once.
"""

import math

import torch

from .common import (
    EPS,
    MIN_DEVIATION,
    MIN_NORMS,
    MIN_SIGMA,
    accumulation_dtype,
    memory_format,
)

# Bytes of x that one step takes; on a CPU for each thread. About five arrays of this
# size are in use at a time. Smaller steps lie in nearer caches, but start operators,
# and make threads wait for one another, more often.
_STEP = {'cpu': 1 << 23}
_STEP_ELSEWHERE = 1 << 26
# Channels that a step takes at least where they are innermost: a cache line of them.
_LINE = 16


def forward(x, alpha, beta, weight, bias, theta, sigma, similarity, normalization):
    """Returns y (B, C, H, W), the query's index (B, g), the mean vector (B, g, k) and
    the statistics of the score (B, g, 3): shift, offset and deviation."""
    slabs = _Slabs(x, alpha, beta, weight, bias, theta, sigma)
    y = torch.empty_like(x, memory_format=memory_format(x))
    index = x.new_empty(slabs.count, dtype=torch.int64)
    mean = x.new_empty((slabs.count, slabs.k), dtype=slabs.dtype)
    statistics = x.new_zeros((slabs.count, 3), dtype=slabs.dtype)
    for step in slabs.steps(x, y):
        slab = slabs.read(x, step)
        index[step], mean[step] = _query(slab, slabs.width), slab.mean(2)
        maps, _ = _SIMILARITIES[similarity](slab, _targets(slab, index, mean, step))
        score = slabs.score(maps, slabs.position_weight(index, step), step)
        deviation = None
        if normalization:
            score, *kept = _normalize(score)
            statistics[step], deviation = torch.cat(kept, 1), kept[2]
        gate = slabs.gate(score, deviation, step)
        gated = torch.mul(slab, gate[:, None], out=slabs.room(y, step))
        slabs.store(y, step, gated)
    shape = (x.shape[0], slabs.groups)
    return y, index.view(shape), mean.view(*shape, slabs.k), statistics.view(*shape, 3)


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
    slabs = _Slabs(x, alpha, beta, weight, bias, theta, sigma)
    n = slabs.height * slabs.width
    gx = torch.empty_like(x, memory_format=memory_format(x))
    index, mean = index.flatten(), mean.flatten(0, 1)
    statistics = statistics.flatten(0, 1)
    g_beta, g_weight, g_bias = (torch.empty_like(slabs.beta) for _ in range(3))
    # Of the product of D and alpha, summed to what each slab's rows and columns get.
    g_rows = slabs.beta.new_empty((slabs.count, slabs.height if slabs.encoded else 1))
    g_columns = slabs.beta.new_empty((slabs.count, slabs.width))

    for step in slabs.steps(gradient, x, gx):
        slab, g_y = slabs.read(x, step), slabs.read(gradient, step)
        targets = _targets(slab, index, mean, step)
        maps, differentiate = _SIMILARITIES[similarity](slab, targets)
        position_weight = slabs.position_weight(index, step)
        score = slabs.score(maps, position_weight, step)
        deviation = None
        if normalization:
            shift, offset, deviation = statistics[step].split(1, 1)
            score = (score - shift).sub_(offset)
        gate = slabs.gate(score, deviation, step)

        # Eq. 8, then Eqs. 7 and 6 together.
        result = slabs.room(gx, step)
        g_gate = torch.mul(g_y, slab, out=result).sum(1)
        g_logit = torch.ops.aten.sigmoid_backward(g_gate, gate)
        total, product = g_logit.sum(1, keepdim=True), _dot_product(g_logit, score)
        g_bias[step] = total
        if normalization:
            inverse = 1 / (deviation + EPS)
            g_weight[step] = product * inverse
            scale = slabs.weight[step] * inverse
            spread = product * inverse * scale / (n * deviation)
            # In this order a map of one position has exactly none.
            g_score = (g_logit - total / n).mul_(scale).addcmul_(score, -spread)
        else:
            g_weight[step] = product
            g_score = g_logit * slabs.weight[step]

        # Eq. 1.
        g_maps = torch.empty_like(maps)
        torch.mul(g_score, position_weight, out=g_maps[:, 0])
        torch.mul(g_score, slabs.beta[step], out=g_maps[:, 1])
        g_beta[step] = _dot_product(g_score, maps[:, 1])
        if slabs.encoded:
            g_weights = g_score.mul_(maps[:, 0]).unflatten(1, (-1, slabs.width))
            torch.sum(g_weights, 2, out=g_rows[step])
            torch.sum(g_weights, 1, out=g_columns[step])
        else:
            g_rows[step] = _dot_product(g_score, maps[:, 0])

        # Eqs. 2-4; the mean vector's gradient spreads over all positions, the query's
        # lands on its own.
        g_targets, add = differentiate(g_maps)
        torch.mul(g_y, gate[:, None], out=result)
        add(result)
        result.add_(g_targets[:, 1, :, None], alpha=1 / n)
        at = index[step, None, None].expand(-1, slabs.k, 1)
        result.scatter_add_(2, at, g_targets[:, 0, :, None])
        slabs.store(gx, step, result)

    g_alpha, g_theta, g_sigma = slabs.position_gradients(index, g_rows, g_columns)
    per_group = [
        g.view(x.shape[0], slabs.groups).sum(0).to(p.dtype)
        for g, p in zip(
            (g_alpha, g_beta, g_weight, g_bias), (alpha, beta, weight, bias)
        )
    ]
    if theta is None:
        return (gx, *per_group, x.new_empty(0), x.new_empty(0))
    return (gx, *per_group, g_theta.to(theta.dtype), g_sigma.to(sigma.dtype))


def plain(x, alpha, beta, weight, bias, theta, sigma, similarity, normalization):
    """The forward in one step, of operators that autograd and exporters know."""
    slabs = _Slabs(x, alpha, beta, weight, bias, theta, sigma)
    every = slice(None)
    slab = x.to(slabs.dtype).reshape(-1, slabs.k, slabs.height * slabs.width)
    index, mean = _query(slab, slabs.width), slab.mean(2)
    maps, _ = _SIMILARITIES[similarity](slab, _targets(slab, index, mean, every))
    score = slabs.score(maps, slabs.position_weight(index, every), every)
    deviation = None
    if normalization:
        score, *_, deviation = _normalize(score)
    gate = slabs.gate(score, deviation, every)
    return (slab * gate[:, None]).view(x.shape).to(x.dtype)


class _Slabs:
    """The parameters of each slab, and the way from tensors to slabs and back."""

    def __init__(self, x, alpha, beta, weight, bias, theta, sigma):
        batch, channels, self.height, self.width = x.shape
        self.groups = alpha.shape[0]
        self.k = channels // self.groups
        self.count = batch * self.groups
        self.dtype = accumulation_dtype(x)
        self.alpha, self.beta, self.weight, self.bias = (
            p.to(self.dtype).repeat(batch)[:, None] for p in (alpha, beta, weight, bias)
        )
        self.encoded = theta is not None
        if self.encoded:
            self.theta, self.sigma = theta.to(self.dtype), sigma.to(self.dtype)
            self.deviation = self.sigma.abs().clamp(min=MIN_SIGMA)
            # Halved, since D is the mean of the two.
            self.rows = self._density(self.height, 0) / 2
            self.columns = self._density(self.width, 1) / 2

    def steps(self, *tensors):
        """Slices of slabs; a step leaves a sample only where slabs are contiguous."""
        x = tensors[-1]
        step = _STEP.get(x.device.type, _STEP_ELSEWHERE)
        if x.device.type == 'cpu':
            step *= torch.get_num_threads()
        size = self.k * self.height * self.width * torch.finfo(self.dtype).bits // 8
        size = max(1, step // max(size, 1))
        span = self.count
        if not all(t.is_contiguous() for t in tensors):
            size, span = max(size, -(-_LINE // self.k)), self.groups
        for sample in range(0, self.count, max(span, 1)):
            for start in range(sample, sample + span, size):
                yield slice(start, min(start + size, sample + span))

    def read(self, tensor, step):
        """(S, k, N), contiguous, in the dtype of accumulation."""
        shape = (-1, self.k, self.height * self.width)
        if tensor.is_contiguous():
            part = tensor.view(shape)[step]
        else:
            part = tensor[self._place(step)].reshape(shape).contiguous()
        return part.to(self.dtype)

    def room(self, tensor, step):
        """(S, k, N) for a step's result: in the tensor itself if possible."""
        if self._fits(tensor):
            return tensor.view(-1, self.k, self.height * self.width)[step]
        size = (step.stop - step.start, self.k, self.height * self.width)
        return tensor.new_empty(size, dtype=self.dtype)

    def store(self, tensor, step, result):
        """Put a result where it belongs, unless ``room`` was there."""
        if tensor.is_contiguous() and not self._fits(tensor):
            tensor.view(-1, self.k, self.height * self.width)[step] = result
        elif not tensor.is_contiguous():
            part = tensor[self._place(step)]
            part.copy_(result.view(part.shape))

    def _fits(self, tensor):
        return tensor.is_contiguous() and tensor.dtype == self.dtype

    def _place(self, step):
        sample, group = divmod(step.start, self.groups)
        channels = slice(group * self.k, (group + step.stop - step.start) * self.k)
        return sample, channels

    def _density(self, length, axis):
        """Eq. 5 on one axis, for distances from -(length - 1) to length - 1."""
        distance = torch.arange(1 - length, length, device=self.theta.device)
        ratio = self.theta[axis] * distance / self.deviation
        return torch.exp(-0.5 * ratio.square()) / (
            self.deviation * math.sqrt(2 * math.pi)
        )

    def _axes(self, index):
        """For each slab, what to take from the densities: (S, H) and (S, W)."""
        row = index.div(self.width, rounding_mode='floor')
        # Not by %, which torch's ONNX exporter refuses of a dynamic width.
        column = index - row * self.width
        for length, centre in ((self.height, row), (self.width, column)):
            positions = torch.arange(length - 1, 2 * length - 1, device=index.device)
            yield positions - centre[:, None]

    def position_weight(self, index, step):
        """alpha * D, (S, N): D is the mean of the two axes' densities, a sum of a
        function of the row and one of the column. Without encoding (S, 1)."""
        alpha = self.alpha[step]
        if not self.encoded:
            return alpha
        rows, columns = self._axes(index[step])
        rows, columns = alpha * self.rows[rows], alpha * self.columns[columns]
        return (rows[:, :, None] + columns[:, None]).flatten(1)

    def score(self, maps, position_weight, step):
        """Eq. 1, (S, N)."""
        return torch.addcmul(self.beta[step] * maps[:, 1], maps[:, 0], position_weight)

    def gate(self, score, deviation, step):
        """Eq. 8, (S, N), with the division of Eq. 7."""
        weight = self.weight[step]
        if deviation is not None:
            weight = weight / (deviation + EPS)
        return torch.addcmul(self.bias[step], score, weight).sigmoid()

    def position_gradients(self, index, g_rows, g_columns):
        """Gradients of alpha (B * g, 1), theta (2,) and sigma (), from those of
        alpha * D summed to rows (B * g, H) and columns (B * g, W); without encoding
        from that of alpha."""
        if not self.encoded:
            return g_rows, None, None
        g_alpha, g_theta, g_sigma = 0, [], 0
        axes = zip(self._axes(index), (self.rows, self.columns), (g_rows, g_columns))
        for axis, (at, table, g) in enumerate(axes):
            length = g.shape[1]
            distance = torch.arange(1 - length, length, device=g.device)
            ratio = self.theta[axis] * distance / self.deviation
            g_alpha = g_alpha + (g * table[at]).sum(1, keepdim=True)
            g = self.alpha * g
            slope = -table * ratio * distance / self.deviation
            g_theta.append((g * slope[at]).sum())
            slope = table * (ratio.square() - 1) / self.deviation
            g_sigma = g_sigma + (g * slope[at]).sum()
        # Under its floor, and at zero, sigma has no effect.
        effect = self.sigma.sign() * (self.sigma.abs() >= MIN_SIGMA)
        return g_alpha, torch.stack(g_theta), g_sigma * effect


def _query(slab, width):
    """Index of the query point, (S,): the first of equals."""
    # The first row that has the largest, then the first in it: a maximum is found
    # several times faster than its place.
    rows = _sum_channels(slab).unflatten(1, (-1, width))
    row = rows.amax(2).argmax(1)
    at = row[:, None, None].expand(-1, 1, width)
    return row * width + rows.gather(1, at).squeeze(1).argmax(1)


def _sum_channels(slab):
    """(S, N), by halves: torch's own sum adds some positions in another order, and
    equal ones would differ in their last bits."""
    while slab.shape[1] > 1:
        half = slab.shape[1] // 2
        total = slab[:, :half] + slab[:, half : 2 * half]
        if slab.shape[1] % 2:
            total[:, 0] += slab[:, -1]
        slab = total
    return slab[:, 0]


def _targets(slab, index, mean, step):
    """What positions are compared to, (S, 2, k): the query vector and the mean."""
    at = index[step, None, None].expand(-1, slab.shape[1], 1)
    return torch.stack([slab.gather(2, at).squeeze(2), mean[step]], 1)


def _normalize(score):
    """Eq. 6: the score less its mean (S, N); what was taken off, in two parts, and the
    deviation, (S, 1) each."""
    # Shifting by one of its own values changes nothing, and makes a constant map
    # exactly zero: the rounding of a mean would be blown up by the division.
    shift = score[:, :1].detach()
    score = score - shift
    offset = score.mean(1, keepdim=True)
    score = score - offset
    variance = score.square().mean(1, keepdim=True)
    return score, shift, offset, variance.clamp(min=MIN_DEVIATION**2).sqrt()


def _dot_product(a, b):
    """Of the rows of two maps, (S, 1)."""
    return (a * b).sum(1, keepdim=True)


# The similarities of slabs (S, k, N) to two targets (S, 2, k). Each returns the maps
# (S, 2, N) and their derivative, a function of the maps' gradient; that one returns
# the gradient of the targets and a function that adds the slab's own to a tensor.


def _dot(slab, targets):
    """Eq. 4."""

    def differentiate(g_maps):
        def add(gradient):
            gradient.baddbmm_(targets.transpose(1, 2), g_maps)

        return torch.bmm(g_maps, slab.transpose(1, 2)), add

    return torch.bmm(targets, slab), differentiate


def _l1(slab, targets):
    """Eq. 3."""
    differences = [slab - target[:, :, None] for target in targets.unbind(1)]

    def differentiate(g_maps):
        signs = [difference.sign_() for difference in differences]
        g_targets = [
            torch.bmm(g[:, None], sign.transpose(1, 2))
            for g, sign in zip(g_maps.unbind(1), signs)
        ]

        def add(gradient):
            for g, sign in zip(g_maps.unbind(1), signs):
                gradient.addcmul_(sign, g[:, None], value=-1)

        return torch.cat(g_targets, 1), add

    maps = [d.abs().sum(1) for d in differences]
    return torch.stack(maps, 1).neg(), differentiate


def _cosine(slab, targets):
    """Eq. 2."""
    square, target_square = slab.square().sum(1), targets.square().sum(2)
    norms = target_square.sqrt()[:, :, None] * square.sqrt()[:, None]
    maps = torch.bmm(targets, slab) / norms.clamp(min=MIN_NORMS)

    def differentiate(g_maps):
        # Under the floor the norms are constants.
        of_norms = (g_maps * maps).masked_fill(norms < MIN_NORMS, 0)
        g_products = g_maps / norms.clamp(min=MIN_NORMS)
        tiny = torch.finfo(slab.dtype).tiny
        g_square = of_norms.sum(1) / square.clamp(min=tiny)
        g_target_square = of_norms.sum(2) / target_square.clamp(min=tiny)

        def add(gradient):
            gradient.baddbmm_(targets.transpose(1, 2), g_products)
            gradient.addcmul_(slab, g_square[:, None], value=-1)

        g_targets = torch.bmm(g_products, slab.transpose(1, 2))
        return g_targets.sub_(targets * g_target_square[:, :, None]), add

    return maps, differentiate


_SIMILARITIES = {'dot': _dot, 'l1': _l1, 'cosine': _cosine}
