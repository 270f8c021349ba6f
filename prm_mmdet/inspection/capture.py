"""Record what the blocks in a model compute for each image."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.model import is_model_wrapper
from torch import nn

from ..ops.common import without_autocast
from .geometry import Grid, Grids, first
from .quantities import adds, check, kind, quantities

# If the value of a sigmoid is outside this range, the sigmoid's gradient is less than a
# fifth of its largest gradient.
SATURATED = (0.05, 0.95)
# SAC's weights of contexts are compared between pairs of positions. To limit the number
# of pairs, no more than this many positions of an image are used.
_POSITIONS = 512
COSINE_BINS = np.linspace(-1, 1, 81)
# Type of a quantity: an array, or None if the block does not have the quantity.
MaybeArray = Any


@contextlib.contextmanager
def capture(model: nn.Module, images: int = 0) -> Iterator[list[Record]]:
    """Record what each block in a model does, inside a ``with`` statement::

        with capture(model, images=2) as records:
            for data in loader:
                model.test_step(data)
        records[0].gates['']  # statistics of the first block's gate

    Blocks are PRM, LCT, SAC, SE, GE, SGE, SK, CBAM, BAM, DoubleAttention and MMCV's
    ContextBlock. Forward hooks compute each block's gates and maps again from its
    input, in float32 and without gradients. The model's outputs, gradients and running
    statistics stay exactly the same. All hooks are removed at the end, also after an
    error. Do not copy or pickle the model inside the ``with`` statement: a copy keeps
    the hooks, and pickling fails. You can save its state dict.

    Args:
        model: The model. Call it as a whole, directly or by ``test_step`` or
            ``train_step``, because the size of the images is read from that call. If
            it is wrapped for distributed training, the wrapped model is recorded.
            With PyTorch 2.6 or later, compiled code runs uncompiled inside the ``with``
            statement. With earlier versions, do not compile the model.
        images: Number of images whose maps are kept, beginning with the first image.
            Default: 0.

    Yields:
        A list with one record for each block, in the order in which blocks run. The
        list is empty before the first pass. A record holds sums, histograms and the
        maps (h, w) of at most ``images`` images, so it stays small. If a block runs
        several times in a pass, the maps of its first run are kept. If a block runs on
        regions of interest, no maps are kept, and ``record.images`` counts regions.

    Raises:
        ValueError: The model has no block, or a block cannot be captured.
    """
    model = unwrapped(model)
    blocks = {n: m for n, m in model.named_modules() if kind(m)}
    if not blocks:
        raise ValueError(
            f'{type(model).__name__} has none of the blocks that can be captured: PRM, '
            'LCT, SAC, SE, GE, SGE, SK, CBAM, BAM, ContextBlock or DoubleAttention'
        )
    for name, block in blocks.items():
        check(name, block)
    records: list[Record] = []
    with _uncompiled(), Grids(model) as grids, contextlib.ExitStack() as hooks:
        for name, block in blocks.items():
            record = Record(name, block)
            observe = _Observer(record, records, grids, images)
            handle = block.register_forward_hook(observe, with_kwargs=True)
            hooks.callback(handle.remove)
        yield records


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without its wrapper for distributed training or compilation."""
    inner: Any = model.module if is_model_wrapper(model) else model
    # torch.compile keeps the original model in _orig_mod.
    return getattr(inner, '_orig_mod', inner)


def _uncompiled():
    """Run compiled models uncompiled. Compiled code ignores hooks added later."""
    if hasattr(getattr(torch, 'compiler', None), 'set_stance'):
        return torch.compiler.set_stance('force_eager')
    # PyTorch before 2.6 cannot switch compiled code off, so nothing is changed.
    return contextlib.nullcontext()


@dataclass
class Record:
    """What :func:`capture` recorded of one block.

    ``context_in`` and ``context_out`` are the means of the block's input and output
    over positions, (C,), in float64. They are averaged over images.
    """

    name: str
    block: Any  # the block itself, an nn.Module
    images: int = 0
    stage: str | None = None  # name of the stage by its stride: 'c4' at stride 16
    context_in: MaybeArray = None
    context_out: MaybeArray = None
    channel_gate: MaybeArray = None  # gate of each channel, (C,), averaged over images
    gates: dict[str, Moments] = field(default_factory=dict)
    contexts: int = 0  # number of contexts K, 0 for a block without contexts
    # Size of what a block adds to its input, relative to the input: sqrt(sum |Z - X|^2
    # / sum |X|^2) for input X and output Z, with sums over all images and positions.
    # For blocks that do not add to their input: 0.
    added: float = 0.0
    # At each position, SAC's weights of the K contexts form a vector. For all pairs of
    # positions, a histogram with the bins COSINE_BINS counts the cosine of the two
    # vectors. The key is True if a softmax over the contexts was applied before.
    cosines: dict[bool, np.ndarray] = field(default_factory=dict)
    # Maps of the first images, at most ``images`` (the argument of :func:`capture`).
    maps: list[Maps] = field(default_factory=list)

    @property
    def kind(self) -> str | None:
        """The kind of the block: 'PRM', 'LCT', 'SAC', ..."""
        return kind(self.block)


@dataclass
class Maps:
    """What a block computed at the positions of one image, as NumPy arrays."""

    grid: Grid
    query: MaybeArray = None  # row and column of each group's query point, (g, 2)
    encoding: MaybeArray = None  # position encoding D, averaged over groups, (h, w)
    attention: MaybeArray = None  # attention maps of the K contexts, (K, h, w)
    # Norms over channels, (h, w), for a block that adds to its input X and returns Z.
    norm_in: MaybeArray = None  # |X|, the norm of the block's input
    norm_added: MaybeArray = None  # |Z - X|, the norm of what the block adds


class Moments:
    """Statistics of all values that :meth:`update` got: count, mean, standard
    deviation, and the fraction of saturated values (below 0.05 or above 0.95)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0
        self._saturated = 0.0

    def update(self, values: torch.Tensor) -> None:
        """Add the values of a tensor."""
        count = values.numel()
        mean = values.mean(dtype=torch.float64).item()
        deviations = values - mean
        squares = (deviations * deviations).sum(dtype=torch.float64).item()
        low, high = SATURATED
        self._saturated += ((values < low) | (values > high)).sum().item()
        # The formula of Chan, Golub and LeVeque (1983) has smaller rounding errors than
        # a difference of sums.
        shift, total = mean - self.mean, self.count + count
        self._squares += squares + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation: the sum of squares is divided by the count."""
        return math.sqrt(self._squares / self.count)

    @property
    def saturated(self) -> float:
        """Fraction of the values below 0.05 or above 0.95, see ``SATURATED``."""
        return self._saturated / self.count


class _Observer:
    """A forward hook that fills the record of a block."""

    def __init__(
        self, record: Record, records: list[Record], grids: Grids, images: int
    ) -> None:
        self.record, self.records = record, records
        self.grids, self.images = grids, images
        self._energy = [0.0, 0.0]
        self._pass = 0

    def __call__(
        self, block: nn.Module, inputs: tuple, keywords: dict[str, Any], output: Any
    ) -> None:
        x = first(inputs, keywords)
        if len(x):
            with torch.no_grad(), without_autocast(output):
                self._observe(block, *(t.detach().float() for t in (x, output)))

    def _observe(self, block, x, y):
        record = self.record
        if not record.images:
            self.records.append(record)
        found, grid = quantities(block, x), self.grids.of(x.shape[2:])
        record.stage = grid.stage
        self._average('context_in', x.mean((2, 3)))
        self._average('context_out', y.mean((2, 3)))
        if found.channel_gate is not None:
            self._average('channel_gate', found.channel_gate)
        for name, gate in found.gates.items():
            record.gates.setdefault(name, Moments()).update(gate)
        maps = {k: getattr(found, k) for k in ('query', 'encoding', 'attention')}
        if adds(block):
            maps.update(norm_in=x.norm(dim=1), norm_added=(y - x).norm(dim=1))
            for i, name in enumerate(('norm_in', 'norm_added')):
                self._energy[i] += (maps[name] ** 2).sum(dtype=torch.float64).item()
            record.added = math.sqrt(self._energy[1] / max(self._energy[0], 1e-300))
        if found.weights is not None:
            self._compare(found.weights)
        # Keep maps only of the block's first run in a pass. If a batch is not as
        # large as the batch of images, it holds regions of interest. Their places in
        # the image are not known, so their maps are not kept.
        if self._pass != self.grids.passes and len(x) == self.grids.batch:
            self._keep(grid, {k: v for k, v in maps.items() if v is not None})
        self._pass = self.grids.passes
        record.images += len(x)

    def _keep(self, grid, maps):
        for i in range(self.images - len(self.record.maps)):
            arrays = {k: v[i].cpu().numpy() for k, v in maps.items() if i < len(v)}
            if arrays:
                self.record.maps.append(Maps(grid, **arrays))

    def _average(self, name, values):
        """Add values (B, C) to the running mean of a record's attribute."""
        before = getattr(self.record, name)
        total = values.sum(0, dtype=torch.float64).cpu().numpy()
        seen, count = self.record.images, len(values)
        before = 0 if before is None else before
        setattr(self.record, name, (before * seen + total) / (seen + count))

    def _compare(self, weights):
        """Update the histograms of cosines. ``weights`` is (B, K, N) for K contexts and
        N positions. Each pair of positions gives the cosine of its two vectors (K,)."""
        step = math.ceil(weights.shape[2] / _POSITIONS)
        weights = weights[:, :, ::step]
        self.record.contexts = weights.shape[1]
        n, bins = weights.shape[2], len(COSINE_BINS) - 1
        pairs = torch.ones(n, n, device=weights.device).triu(1).bool()
        for softmax in (False, True):
            vectors = weights.softmax(1) if softmax else weights
            vectors = nn.functional.normalize(vectors, dim=1)
            cosine = (vectors.transpose(1, 2) @ vectors)[:, pairs].clamp(-1, 1)
            counts = torch.histc(cosine, bins, -1, 1).cpu().numpy()
            self.record.cosines[softmax] = counts + self.record.cosines.get(softmax, 0)
