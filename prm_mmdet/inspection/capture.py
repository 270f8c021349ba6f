"""Recording what the blocks in a model do with the images that pass."""

import contextlib
import math
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch
from mmengine.model import is_model_wrapper
from torch import nn

from ..ops.common import without_autocast
from .geometry import Grid, Grids, first
from .quantities import adds, check, kind, quantities

# A gate outside of these leaves its score less than a fifth of the gradient that it
# has at 1/2.
SATURATED = (0.05, 0.95)
# Similarities are taken between so many positions of an image at most.
_POSITIONS = 512
COSINE_BINS = np.linspace(-1, 1, 81)


@contextlib.contextmanager
def capture(model, images=0):
    """Record what each block in a model does, while the context lasts::

        with capture(model, images=2) as records:
            for data in loader:
                model.test_step(data)
        records[0].gates['']

    Blocks are PRM, LCT, SAC, and the compared SE, GE, SGE, SK, CBAM, BAM,
    DoubleAttention and MMCV's ContextBlock. What they compute is computed again from
    their inputs, by forward hooks, without gradients and in float32. Outputs, gradients
    and running statistics stay what they were, to the bit, and no hook is left,
    whatever is raised. Copies of the model that are made meanwhile keep the hooks, and
    pickling it whole fails; its state dict does not.

    Args:
        model (nn.Module): Called as a whole, directly or by ``test_step`` or
            ``train_step``: the size of the images is learned from the call. Of a
            wrapper for distributed training, the model inside is looked at. Code of
            ``torch.compile`` runs uncompiled meanwhile, which takes PyTorch 2.6.
        images (int): Keep the maps of so many images, the first that pass. Default: 0.

    Yields:
        list[Record]: One for each block, in the order in which they run, empty before
        the first pass. Memory is bounded: a record holds sums, a histogram, and for
        each image kept the maps (h, w) of its contexts, and three more at most. A block
        that runs several times in a pass keeps the maps of the first, one that runs on
        regions of interest none; its ``images`` are the regions.

    Raises:
        ValueError: The model has no such block, or one that cannot be captured.
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
    records = []
    with _uncompiled(), Grids(model) as grids, contextlib.ExitStack() as hooks:
        for name, block in blocks.items():
            record = Record(name, block)
            observe = _Observer(record, records, grids, images)
            handle = block.register_forward_hook(observe, with_kwargs=True)
            hooks.callback(handle.remove)
        yield records


def unwrapped(model):
    """The model itself, out of a wrapper for distributed training or compilation."""
    model = model.module if is_model_wrapper(model) else model
    return getattr(model, '_orig_mod', model)  # of torch.compile


def _uncompiled():
    """Compiled code knows nothing of hooks that came after it."""
    if hasattr(getattr(torch, 'compiler', None), 'set_stance'):
        return torch.compiler.set_stance('force_eager')
    return contextlib.nullcontext()  # before PyTorch 2.6


@dataclass
class Record:
    """What was seen of one block.

    Contexts are means over positions, (C,) in float64, averaged over images.
    """

    name: str
    block: nn.Module
    images: int = 0
    stage: Optional[str] = None  # 'c4' at stride 16
    context_in: Optional[np.ndarray] = None
    context_out: Optional[np.ndarray] = None
    channel_gate: Optional[np.ndarray] = None  # (C,), averaged over images
    gates: dict = field(default_factory=dict)  # names to Moments
    contexts: int = 0  # K, of a block that weights contexts by position
    added: float = 0.0  # of a block that adds: root of |Z - X|^2 / |X|^2, both summed
    cosines: dict = field(default_factory=dict)  # softmax or not to counts a bin
    maps: list = field(default_factory=list)  # Maps of the images kept

    @property
    def kind(self):
        return kind(self.block)


@dataclass
class Maps:
    """What a block computed at the positions of one image, as NumPy arrays."""

    grid: Grid
    query: Optional[np.ndarray] = None  # (g, 2), row and column
    encoding: Optional[np.ndarray] = None  # (h, w)
    attention: Optional[np.ndarray] = None  # (K, h, w)
    norm_in: Optional[np.ndarray] = None  # (h, w), |X|, of a block that adds
    norm_added: Optional[np.ndarray] = None  # (h, w), |Z - X|


class Moments:
    """Count, mean, spread and saturated share of numbers that come in pieces."""

    def __init__(self):
        self.count, self.mean, self._squares, self._saturated = 0, 0.0, 0.0, 0

    def update(self, values):
        """Take in a tensor."""
        count = values.numel()
        mean = values.mean(dtype=torch.float64).item()
        deviations = values - mean
        squares = (deviations * deviations).sum(dtype=torch.float64).item()
        low, high = SATURATED
        self._saturated += ((values < low) | (values > high)).sum().item()
        # The pairwise rule of Chan, Golub and LeVeque: no cancellation.
        shift, total = mean - self.mean, self.count + count
        self._squares += squares + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def std(self):
        """Standard deviation, biased."""
        return math.sqrt(self._squares / self.count)

    @property
    def saturated(self):
        """Share of the numbers outside of ``SATURATED``."""
        return self._saturated / self.count


class _Observer:
    """A forward hook that fills a record."""

    def __init__(self, record, records, grids, images):
        self.record, self.records = record, records
        self.grids, self.images = grids, images
        self._energy = [0.0, 0.0]
        self._pass = 0

    def __call__(self, block, inputs, keywords, output):
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
        # Not where a block runs for each level, or on regions of an image.
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
        """Take (B, C) into a running mean."""
        before = getattr(self.record, name)
        total = values.sum(0, dtype=torch.float64).cpu().numpy()
        seen, count = self.record.images, len(values)
        before = 0 if before is None else before
        setattr(self.record, name, (before * seen + total) / (seen + count))

    def _compare(self, weights):
        """Count the cosines between the weights (B, K, N) of positions of an image."""
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
