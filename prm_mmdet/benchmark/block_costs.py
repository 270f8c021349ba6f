"""Time and memory of one block, beside the forms that it is compared with.

The forms of a block are:

- ``ours``: the operator of this package, and ``ours, compiled`` under torch.compile;
- ``plain``: the block in vectorised PyTorch (:mod:`.opponents`), and
  ``plain, compiled``;
- ``x * gate``: a product with one fixed number per channel. No gate can be cheaper;
- ``x * learnt gate``: the same product, with a gradient for these numbers, too.

For SE and GC, ``ours`` is the plain form. This module requires torch only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from .. import ops
from . import opponents
from .measure import Setting, Spread, interleave, peak_memory, ratio

STAGES = ('c2', 'c3', 'c4', 'c5')
PASSES = ('step', 'forward')
OURS, PLAIN = 'ours', 'plain'
LIMIT, LEARNT = 'x * gate', 'x * learnt gate'
COMPILED = ', compiled'
_COPY = 'copy'
# The number of maps that a pass reads and writes, divided by the two maps of a copy. A
# forward reads x and writes the output y: two maps. A step (forward and backward) then
# reads x and the gradient of y, and writes the gradient of x: five maps.
_FLOOR = {'step': 5 / 2, 'forward': 2 / 2}
_GROUPS = 64


class Block(NamedTuple):
    """A block that can be measured alone."""

    ours: Callable[..., Tensor]  # this package's function of x and the parameters
    plain: Callable[..., Tensor] | None  # in plain PyTorch. None if ``ours`` is
    shapes: Callable[[int], list[tuple[int, ...]]]  # of the parameters, by channels
    # Channels of the block's input in c2 (ResNet's ``layer1``), at the place in a
    # bottleneck that the papers use.
    width: int


def _sac_shapes(c: int) -> list[tuple[int, ...]]:
    k = max(1, c // 32)
    return [(k, c), (k,), (k, c), (k,), (c, c), (c,)]


def _bottleneck(c: int) -> list[tuple[int, ...]]:
    return [(c // 16, c), (c // 16,), (c, c // 16), (c,)]


_lct, _plain_lct = (partial(f.lct, groups=_GROUPS) for f in (ops, opponents))
BLOCKS = {
    'PRM': Block(ops.prm, opponents.prm, lambda c: [(_GROUPS,)] * 4 + [(2,), ()], 256),
    'LCT': Block(_lct, _plain_lct, lambda c: [(c,), (c,)], 256),
    'SAC': Block(ops.sac, opponents.sac, _sac_shapes, 64),
    'SE': Block(opponents.se, None, _bottleneck, 256),
    'GC': Block(opponents.gc, None, lambda c: [(1, c), (1,), *_bottleneck(c)], 256),
}


def map_shape(block: str, stage: str, setting: Setting) -> tuple[int, int, int, int]:
    """Shape (B, C, H, W) of the map that a block gets in a stage of ResNet-50."""
    level = STAGES.index(stage)
    height, width = (-(-side // (4 << level)) for side in setting.size)
    return setting.batch, BLOCKS[block].width << level, height, width


def inputs(block: str, stage: str, setting: Setting) -> list[Tensor]:
    """Random features, then random parameters of a block, all with gradients."""
    shape = map_shape(block, stage, setting)
    x = torch.randn(shape, device=setting.device, dtype=setting.dtype)
    parameters = [
        # The division limits how large products of x with a matrix get. The added 0.1
        # keeps PRM's sigma, the width of its position encoding, away from 0.
        torch.rand(s, device=setting.device) / max(1, math.prod(s[1:])) ** 0.5 + 0.1
        for s in BLOCKS[block].shapes(shape[1])
    ]
    return [tensor.requires_grad_() for tensor in (x, *parameters)]


def forms(
    block: str, stage: str, setting: Setting, compiled: bool = True
) -> dict[tuple[str, str], Callable[[], Any]]:
    """The functions to measure, by form and pass. The passes are 'step' (forward and
    backward, with the gradients of x and of all parameters) and 'forward' (inference).

    Args:
        block: Name in :data:`BLOCKS`.
        stage: One of :data:`STAGES`.
        setting: Conditions of the measurement.
        compiled: Whether to add the forms under torch.compile. Default: True.
    """
    if compiled:
        # torch.compile accepts a limited number of shapes for each function, and then
        # runs it uncompiled. So forget the shapes of earlier calls.
        torch._dynamo.reset()
    x, *parameters = inputs(block, stage, setting)
    gradient = torch.randn_like(x)
    gate = torch.rand(*x.shape[:2], 1, 1, device=x.device, dtype=x.dtype)
    own: dict[str, Callable[..., Tensor]] = {OURS: BLOCKS[block].ours}
    plain = BLOCKS[block].plain
    if plain:
        own[PLAIN] = plain
        if compiled:
            for name in (OURS, PLAIN):
                own[name + COMPILED] = torch.compile(own[name], dynamic=False)
    calls: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
        LIMIT: (torch.mul, [x, gate]),
        LEARNT: (torch.mul, [x, gate.clone().requires_grad_()]),
        **{name: (function, [x, *parameters]) for name, function in own.items()},
    }
    return {
        (name, kind): _pass(*call, gradient, setting, kind)
        for name, call in calls.items()
        for kind in PASSES
    }


def _pass(
    function: Callable[..., Tensor],
    arguments: list[Tensor],
    gradient: Tensor,
    setting: Setting,
    kind: str,
) -> Callable[[], Any]:
    leaves = [tensor for tensor in arguments if tensor.requires_grad]

    def forward() -> None:
        with torch.no_grad(), setting.autocast():
            function(*arguments)

    def step() -> None:
        with setting.autocast():
            y = function(*arguments)
        torch.autograd.grad(y, leaves, gradient)

    return forward if kind == 'forward' else step


def measure_blocks(
    blocks: Sequence[str],
    stages: Sequence[str],
    setting: Setting,
    rounds: int,
    compiled: bool,
    progress: Callable[[str], Any],
) -> Iterator[dict[str, Any]]:
    """Measure blocks on the maps of ResNet-50's stages.

    Args:
        blocks: Names in :data:`BLOCKS`.
        stages: Some of :data:`STAGES`.
        setting: Conditions of the measurement.
        rounds: How often each function is timed, at least 2.
        compiled: Whether to measure the forms under torch.compile.
        progress: Called with one line of text for each block and stage.

    Yields:
        A record (dict) for each block, stage and pass. The keys ``block``, ``stage``
        and ``pass`` hold their names, and ``shape`` holds the shape of the map. Each
        ratio divides times of the same round. A record also has:

        - ``seconds``: by form, a time for each round;
        - ``ratios``: by form, the time of ``ours`` over the form's time;
        - ``both_compiled``: the time of ``ours, compiled`` over ``plain, compiled``;
        - ``floor``: the time of ``ours`` over the time to copy the bytes that the pass
          must read and write;
        - ``copy_bandwidth``: bytes per second;
        - ``memory``: by form, the peak in bytes.
    """
    for block in blocks:
        for stage in stages:
            functions = forms(block, stage, setting, compiled)
            shape = map_shape(block, stage, setting)
            progress(f'{block} on {stage} {shape}')
            source = torch.randn(shape, device=setting.device, dtype=setting.dtype)
            copy = partial(torch.empty_like(source).copy_, source)
            timed = dict(functions)
            timed[_COPY, 'forward'] = copy
            times = interleave(timed, setting.device, rounds)
            copy_times = times.pop((_COPY, 'forward'))
            copied = 2 * source.numel() * source.element_size()
            for kind in PASSES:
                seconds = {name: t for (name, k), t in times.items() if k == kind}
                yield dict(
                    block=block,
                    stage=stage,
                    shape=shape,
                    seconds=seconds,
                    **_comparison(seconds, [_FLOOR[kind] * t for t in copy_times]),
                    **{'pass': kind},
                    copy_bandwidth=copied / Spread.of(copy_times).median,
                    memory={
                        name: peak_memory(functions[name, kind], setting.device)
                        for name in seconds
                    },
                )


def _comparison(seconds: dict[str, list[float]], floor: list[float]) -> dict[str, Any]:
    ours = seconds[OURS]
    ratios = {n: asdict(ratio(ours, t)) for n, t in seconds.items() if n != OURS}
    both = None
    if PLAIN + COMPILED in seconds:
        both = asdict(ratio(seconds[OURS + COMPILED], seconds[PLAIN + COMPILED]))
    return dict(ratios=ratios, both_compiled=both, floor=asdict(ratio(ours, floor)))
