"""Run a model to find what its submodules return."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import sys
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# All of MMDetection's backbones can run on an image of this size. At stride 32, the
# image's feature map has 4 x 4 positions.
_IMAGE = (3, 128, 128)
_SMALLEST_MAP = 4

Shape = Sequence[int]
Inputs = Union[torch.Tensor, tuple]


@dataclass(frozen=True)
class Level:
    """Channels, device, type and size of one map that a module returns."""

    channels: int
    device: torch.device
    dtype: torch.dtype
    # The axis of the channels: 1 for maps (B, C, H, W), 3 for maps (B, H, W, C).
    axis: int = 1
    # (H, W) of the map. The model is run on two inputs of different sizes. This is the
    # size of the map for the smaller input.
    size: tuple[int, int] = field(default=(_SMALLEST_MAP, _SMALLEST_MAP), compare=False)


Levels = Union[Level, tuple]


class Probe:
    """What every submodule of a model returns, from two runs in inference mode.

    The second input is larger, and its height grows by another factor than its width.
    An axis that keeps its size in both runs holds the channels. The model does not
    change, see :func:`run_as_in_inference`.

    Args:
        module: The model.
        input_shape: Shape of the first input: (C, H, W), or a sequence of such shapes
            for a model that takes a sequence of maps. Default: None. Then a model with
            a list ``in_channels`` gets one map for each entry of the list. Any other
            model gets an image (3, 128, 128).

    Raises:
        ValueError: ``input_shape`` is no shape and no sequence of shapes.
    """

    def __init__(self, module: nn.Module, input_shape: Sequence | None = None):
        self.name = type(module).__name__
        shapes = input_shapes(module, input_shape)
        self._calls, self.failure = self._run(module, shapes)
        self._calls_on_larger, _ = self._run(module, _larger(shapes))

    def _run(self, module: nn.Module, shapes: Sequence) -> tuple[dict, str | None]:
        """Run the model on an input of ``shapes``. Return descriptions of what each
        submodule returned, by the submodule's name. Also return the reason if the model
        failed, else None."""
        calls: dict[str, list] = {name: [] for name, _ in module.named_modules()}
        failure = None
        handles = [
            m.register_forward_hook(
                lambda _, __, output, name=name: calls[name].append(_described(output))
            )
            for name, m in module.named_modules()
        ]
        try:
            with torch.no_grad():
                run_as_in_inference(module, example_inputs(module, shapes))
        except Exception as error:
            # If the input does not fit, a model may raise any exception.
            lines = str(error).strip().splitlines()
            # An assertion may have no message. Then show the source line that failed.
            lines.append(traceback.extract_tb(error.__traceback__)[-1].line or '')
            failure = f'{self.name} on {shapes}: {type(error).__name__}: {lines[0]}'
        finally:
            for handle in handles:
                handle.remove()
        return {name: returned for name, returned in calls.items() if returned}, failure

    def names_of_maps(self) -> list[str]:
        """Names of the submodules that return maps."""
        return [name for name in self._calls if self._returns_maps(name)]

    def _returns_maps(self, name: str) -> bool:
        try:
            self._levels_of_calls(name)
        except ValueError:
            return False
        return True

    def levels(self, name: str, submodule: nn.Module) -> Levels:
        """The :class:`Level` of the map that a submodule returns.

        If the submodule returns several maps, the result is a tuple of levels.

        Raises:
            ValueError: The submodule returns no maps, is never called, or is called
                several times with different channels. Or the axis of the channels is
                uncertain.
        """
        if name not in self._calls:
            return self._certain(submodule)
        levels = self._levels_of_calls(name)
        if len(set(levels)) > 1:
            raise ValueError('it is called several times, with different channels')
        return levels[0]

    def _levels_of_calls(self, name: str) -> list[Levels]:
        calls = self._calls[name]
        larger = self._calls_on_larger.get(name, [])
        if len(larger) != len(calls):
            larger = [None] * len(calls)
        return [_levels(a, b) for a, b in zip(calls, larger)]

    def _certain(self, submodule: nn.Module) -> Level:
        if self.failure is None:
            raise ValueError(f'{self.name} never calls it')
        channels = None
        if isinstance(submodule, nn.Conv2d):
            channels = submodule.out_channels
        elif isinstance(submodule, _BatchNorm):
            channels = submodule.num_features
        weight = submodule.weight if channels else None
        if channels is None or not isinstance(weight, torch.Tensor):
            raise ValueError(
                'its channels are not known, since the model could not be run: '
                f'{self.failure}. Give input_shape=(C, H, W), or for a neck, which '
                'takes several maps, [(C, H, W), ...]'
            )
        return Level(channels, weight.device, weight.dtype)


@contextlib.contextmanager
def training_flags_kept(module: nn.Module) -> Iterator[None]:
    """At the end of a ``with`` block, restore ``training`` of every submodule."""
    flags = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for m, flag in flags:
            m.training = flag


def run_as_in_inference(module: nn.Module, inputs: Inputs) -> Any:
    """What a model returns for an input, in evaluation mode and without compiled code.

    After the run, the model's training flags, buffers and attributes (such as sizes
    that a model remembers) are as before. The states of Python's, NumPy's and PyTorch's
    random numbers are restored, too.
    """
    first = inputs if isinstance(inputs, torch.Tensor) else inputs[0]
    cuda = [first.device] if first.device.type == 'cuda' else []
    with _state_kept(module), torch.random.fork_rng(cuda), _without_compiled_code():
        for m in module.modules():
            # Do not call eval(): a model's own eval() may change more than this flag.
            m.training = False
        return module(inputs)


@contextlib.contextmanager
def _state_kept(module: nn.Module) -> Iterator[None]:
    """At the end of a ``with`` block, restore random states, buffers, and all
    attributes of every submodule."""
    python, arrays = random.getstate(), np.random.get_state()
    values = {buffer: buffer.clone() for buffer in module.buffers()}
    attributes = [(m.__dict__, dict(m.__dict__)) for m in module.modules()]
    containers = [
        (value, copy.copy(value))
        for _, before in attributes
        for value in before.values()
        if type(value) in (dict, OrderedDict, list)
    ]
    try:
        yield
    finally:
        for current, before in [*attributes, *containers]:
            current.clear()
            if isinstance(current, list):
                current.extend(before)
            else:
                current.update(before)
        with torch.no_grad():
            for buffer, value in values.items():
                buffer.copy_(value)
        random.setstate(python)
        np.random.set_state(arrays)


def _without_compiled_code() -> contextlib.AbstractContextManager:
    """In a ``with`` block, run compiled models uncompiled, because compiled code
    ignores new hooks."""
    compiler: Any = getattr(torch, 'compiler', None)
    if 'torch._dynamo' in sys.modules and hasattr(compiler, 'set_stance'):
        return compiler.set_stance('force_eager')
    return contextlib.nullcontext()


def input_shapes(module: nn.Module, input_shape: Sequence | None = None) -> Sequence:
    """The shape (C, H, W) of an input on which a model can be run, or a list of shapes
    if the model takes several maps. :class:`Probe` describes the default.

    Raises:
        ValueError: ``input_shape`` is no shape and no sequence of shapes.
    """
    if input_shape is None:
        channels = getattr(module, 'in_channels', None)
        if not isinstance(channels, (list, tuple)):
            return _IMAGE
        sizes = [_SMALLEST_MAP << i for i in reversed(range(len(channels)))]
        return [(c, size, size) for c, size in zip(channels, sizes)]
    several = is_list(input_shape) and input_shape and all(map(_is_shape, input_shape))
    if not (several or _is_shape(input_shape)):
        raise ValueError(
            'input_shape must be (C, H, W), or a sequence of such shapes, of positive '
            f'integers; got {input_shape!r}'
        )
    return input_shape


def example_inputs(module: nn.Module, shapes: Sequence) -> Inputs:
    """An example input for a model: normal random numbers, the same at every call. It
    is a tensor (1, C, H, W) of the model's type. If ``shapes`` is a list of shapes, it
    is a tuple of such tensors."""
    parameters = (p.detach() for p in module.parameters() if p.is_floating_point())
    like = next(parameters, torch.empty(0))
    generator = torch.Generator('cpu').manual_seed(0)

    def example(shape: Shape) -> torch.Tensor:
        return torch.randn(1, *shape, generator=generator, device='cpu').to(like)

    return example(shapes) if _is_shape(shapes) else tuple(map(example, shapes))


def _larger(shapes: Sequence) -> Sequence:
    """Enlarge shapes, and change their ratio of height to width. If one map is twice as
    high as another, it stays twice as high. A height or width that can be divided by 2,
    4, 8, 16 or 32 can still be divided by this number."""
    if _is_shape(shapes):
        return _larger([shapes])[0]
    channels, heights, widths = zip(*shapes)
    return list(zip(channels, _grown(heights, 1), _grown(widths, 2)))


def _grown(sizes: Sequence[int], steps: int) -> list[int]:
    common = math.gcd(*sizes)
    parts = common // math.gcd(common, 32)
    return [size + steps * size // parts for size in sizes]


def _is_shape(value: Any) -> bool:
    return (
        is_list(value)
        and len(value) == 3
        and all(isinstance(size, int) and size > 0 for size in value)
    )


def is_list(value: Any) -> bool:
    """Whether a value is a sequence other than a string."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def tensors(outputs: Any) -> Iterator[torch.Tensor]:
    """All floating-point tensors in nested sequences and dicts."""
    if isinstance(outputs, torch.Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, dict):
        for value in outputs.values():
            yield from tensors(value)
    elif isinstance(outputs, (list, tuple)):
        for value in outputs:
            yield from tensors(value)


@dataclass(frozen=True)
class _Map:
    """Shape, device and type of a tensor that may be a feature map."""

    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype


def _described(output: Any) -> Any:
    """Describe what a module returned. A feature map gives a _Map. A list or tuple of
    feature maps gives a tuple. Anything else gives a text with its type and shapes."""
    if _is_map(output):
        return _Map(tuple(output.shape), output.device, output.dtype)
    if type(output) in (list, tuple) and output and all(map(_is_map, output)):
        return tuple(map(_described, output))
    return in_words(output)


def _is_map(output: Any) -> bool:
    return (
        isinstance(output, torch.Tensor)
        and output.dim() == 4
        # Leave out attention windows, which make the batch axis longer than 1.
        and output.shape[0] == 1
        and output.is_floating_point()
    )


def _levels(call: Any, on_larger: Any) -> Levels:
    """A Level for each map that a call returned. ``on_larger`` is the output of the
    same call in the run with the larger input."""
    if isinstance(call, str):
        raise ValueError(
            f'it returns {call}, not maps (B, C, H, W) or (B, H, W, C), which plugins '
            'require'
        )
    if isinstance(call, tuple):
        same = isinstance(on_larger, tuple) and len(on_larger) == len(call)
        others = on_larger if same else [None] * len(call)
        return tuple(_level(a, b) for a, b in zip(call, others))
    return _level(call, on_larger)


def _level(seen: _Map, on_larger: Any) -> Level:
    larger = on_larger.shape if isinstance(on_larger, _Map) else None
    axis = _channel_axis(seen.shape, larger)
    sizes = list(seen.shape[1:])
    channels = sizes.pop(axis - 1)
    return Level(channels, seen.device, seen.dtype, axis, (sizes[0], sizes[1]))


def _channel_axis(shape: tuple[int, ...], larger: tuple[int, ...] | None) -> int:
    """The axis of the channels: 1 for (B, C, H, W), 3 for (B, H, W, C). ``larger`` is
    the map's shape for the larger input, or None if it is not known."""
    if larger is not None:
        kept = [axis for axis in (1, 2, 3) if shape[axis] == larger[axis]]
        if kept in ([1], [3]):
            return kept[0]
        if not kept or kept == [2]:
            raise ValueError(
                f'it returns {shape}, and {larger} for a larger input: neither axis 1 '
                'nor axis 3 holds the channels alone'
            )
    # The shape for a larger input is unknown, or several axes kept their size. Then
    # assume a square map, whose two equal sizes are height and width.
    _, first, second, third = shape
    if first != second == third:
        return 1
    if first == second != third:
        return 3
    raise ValueError(
        f'it returns {shape}, which does not show whether axis 1 or axis 3 holds the '
        'channels; give an input_shape with which height and width of this map are '
        'equal, and differ from its channels'
    )


def in_words(output: Any) -> str:
    """Type and shapes of an output, for a message."""
    kind = type(output).__name__
    if isinstance(output, torch.Tensor):
        return f'{kind}{tuple(output.shape)}'
    if isinstance(output, (list, tuple)):
        return f'{kind}({", ".join(map(in_words, output))})'
    return kind
