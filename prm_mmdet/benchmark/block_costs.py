"""Time and memory of one block, beside the forms that it is compared with.

The forms of a block are:

- ``ours``: the operator of this package, and ``ours, compiled`` under torch.compile;
- ``plain``: the block in vectorised PyTorch (:mod:`.opponents`), and
  ``plain, compiled``;
- ``x * gate``: x times one fixed number for each channel. No gate can be cheaper;
- ``x * learnt gate``: the same product, but backward also computes the gradient of
  these numbers.

SE and GC have no operator in this package. Their ``ours`` is in plain PyTorch. This
module requires torch only.
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
# The shortest possible time of a pass, divided by the time to copy a map. The shortest
# time is the time to read and write maps. A copy reads one map and writes one map. A
# forward also has two maps: it reads x and writes the output y. A step (forward and
# backward) has five maps, because backward reads x and the gradient of y, and writes
# the gradient of x.
_FLOOR = {'step': 5 / 2, 'forward': 2 / 2}
_GROUPS = 64


class Block(NamedTuple):
    """The functions of a block that is measured without a network."""

    # This package's function. Its arguments are x and the block's parameters.
    ours: Callable[..., Tensor]
    # The same function in plain PyTorch. None if ``ours`` is already in plain PyTorch.
    plain: Callable[..., Tensor] | None
    # Takes the number of channels, and returns the shapes of the parameters.
    shapes: Callable[[int], list[tuple[int, ...]]]
    # Number of channels of the block's input in c2 (ResNet's ``layer1``). The block is
    # at the place in a bottleneck that the papers use.
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
    """Random arguments for a block: first its input x, then its parameters. All
    arguments require gradients."""
    shape = map_shape(block, stage, setting)
    x = torch.randn(shape, device=setting.device, dtype=setting.dtype)
    parameters = [
        # A weight matrix is divided by the square root of its number of columns, so
        # that its products with x do not become large. The added 0.1 keeps PRM's sigma
        # (the width of its position encoding) above 0.
        torch.rand(s, device=setting.device) / max(1, math.prod(s[1:])) ** 0.5 + 0.1
        for s in BLOCKS[block].shapes(shape[1])
    ]
    return [tensor.requires_grad_() for tensor in (x, *parameters)]


def forms(
    block: str, stage: str, setting: Setting, compiled: bool = True
) -> dict[tuple[str, str], Callable[[], Any]]:
    """The functions to measure, by pairs such as ('ours', 'step').

    The first text of a pair is a form of the block, the second is a pass. The pass
    'step' is forward and backward, with the gradients of x and of all parameters. The
    pass 'forward' is inference.

    Args:
        block: Name in :data:`BLOCKS`.
        stage: One of :data:`STAGES`.
        setting: Conditions of the measurement.
        compiled: Whether to add the forms under torch.compile. Default: True.
    """
    if compiled:
        # torch.compile compiles a function for a limited number of shapes. For more
        # shapes, the function runs uncompiled. So forget the shapes of earlier calls.
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
        ratio divides two times of the same round. A record also has:

        - ``seconds``: for each form, one time for each round;
        - ``ratios``: for each other form, the time of ``ours`` divided by its time;
        - ``both_compiled``: the time of ``ours, compiled`` divided by the time of
          ``plain, compiled``, or None if no form was compiled;
        - ``floor``: the time of ``ours`` divided by the time to copy the bytes that the
          pass must read and write;
        - ``copy_bandwidth``: bytes per second that a copy reads and writes;
        - ``memory``: for each form, the peak of the allocated memory in bytes.
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
