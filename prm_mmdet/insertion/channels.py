"""What the submodules of a model return: found by running it once."""

import contextlib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# Stride 32 leaves 4 x 4, and all of MMDetection's backbones can be run.
_IMAGE = (3, 128, 128)
_SMALLEST_MAP = 4


@dataclass(frozen=True)
class Level:
    """One map, as far as a plugin must know it."""

    channels: int
    device: torch.device
    dtype: torch.dtype


class Probe:
    """Run a model once, as in inference and with gradients off, and note what every
    submodule returned. The model stays as it was: training flags, buffers, the state of
    random numbers.

    Args:
        module (nn.Module): The model.
        input_shape (Sequence | None): Its input: (C, H, W), or a sequence of those for
            a model that takes a sequence of maps. None stands for an image, or, for a
            model whose ``in_channels`` is a sequence (a neck), for a map of each.
    """

    def __init__(self, module, input_shape=None):
        self.name = type(module).__name__
        self.returned = {}  # names to what each call returned
        self.failure = None
        self._run(module, input_shape)

    def _run(self, module, input_shape):
        shapes, inputs = example_inputs(module, input_shape)
        handles = [
            m.register_forward_hook(self._recorder(name))
            for name, m in module.named_modules()
        ]
        try:
            with torch.no_grad():
                run_as_in_inference(module, inputs)
        except Exception as error:  # whatever a model raises on an unfit input
            # An assertion often has no words of its own: its line says more.
            reason = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
            self.failure = f'{self.name} on {shapes}: {type(error).__name__}: {reason}'
        finally:
            for handle in handles:
                handle.remove()

    def _recorder(self, name):
        def record(module, inputs, output):
            self.returned.setdefault(name, []).append(_described(output))

        return record

    def names_of_maps(self):
        """Submodules that returned maps."""
        return [
            n for n, calls in self.returned.items() if not isinstance(calls[0], str)
        ]

    def levels(self, name, submodule):
        """What a submodule returns.

        Returns:
            Level | tuple[Level]: A tuple if it returns a list or tuple of maps.

        Raises:
            ValueError: It returns no maps, or not always the same, or was not called.
        """
        calls = self.returned.get(name)
        if calls is None:
            return self._certain(submodule)
        for call in calls:
            if isinstance(call, str):
                raise ValueError(f'it returns {call}, not maps (B, C, H, W)')
        if len(set(calls)) > 1:
            raise ValueError('it is called several times, with different channels')
        return calls[0]

    def _certain(self, submodule):
        if self.failure is None:
            raise ValueError(f'{self.name} never calls it')
        channels = None
        if isinstance(submodule, nn.Conv2d):
            channels = submodule.out_channels
        elif isinstance(submodule, _BatchNorm):
            channels = submodule.num_features
        if channels is None or submodule.weight is None:
            raise ValueError(
                'its channels are not known, since the model could not be run: '
                f'{self.failure}. Give input_shape=(C, H, W), or for a neck, which '
                'takes several maps, [(C, H, W), ...]'
            )
        return Level(channels, submodule.weight.device, submodule.weight.dtype)


@contextlib.contextmanager
def training_flags_kept(module):
    """Restore every submodule's ``training`` at the end."""
    flags = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for m, flag in flags:
            m.training = flag


def run_as_in_inference(module, inputs):
    """What a model returns for an input. It stays as it was: training flags, buffers,
    the state of random numbers."""
    device = inputs.device if isinstance(inputs, torch.Tensor) else inputs[0].device
    cuda = [device] if device.type == 'cuda' else []
    with training_flags_kept(module), torch.random.fork_rng(cuda):
        for m in module.modules():
            m.training = False  # .eval() could be overridden and do more
        return module(inputs)


def example_inputs(module, shapes=None):
    """Something that a model can be run on: normal random numbers, the same each time.

    Args:
        module (nn.Module): The model.
        shapes (Sequence | None): As the ``input_shape`` of :class:`Probe`.

    Returns:
        tuple: The shapes, and the input itself, one tensor or a tuple of them.

    Raises:
        ValueError: ``shapes`` is no shape, and no sequence of them.
    """
    if not (shapes is None or _is_shape(shapes) or _is_list_of_shapes(shapes)):
        raise ValueError(
            'input_shape must be (C, H, W), or a sequence of those, of positive '
            f'integers; got {shapes!r}'
        )
    if shapes is None:
        shapes, channels = _IMAGE, getattr(module, 'in_channels', None)
        if isinstance(channels, (list, tuple)):
            sizes = [_SMALLEST_MAP << i for i in reversed(range(len(channels)))]
            shapes = [(c, size, size) for c, size in zip(channels, sizes)]
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    like = torch.empty(0) if like is None else like.detach()
    generator = torch.Generator('cpu').manual_seed(0)

    def example(shape):
        return torch.randn(1, *shape, generator=generator, device='cpu').to(like)

    if _is_shape(shapes):
        return shapes, example(shapes)
    return shapes, tuple(map(example, shapes))


def _is_shape(value):
    return (
        is_list(value)
        and len(value) == 3
        and all(isinstance(size, int) and size > 0 for size in value)
    )


def _is_list_of_shapes(value):
    return is_list(value) and len(value) > 0 and all(map(_is_shape, value))


def is_list(value):
    """Whether a value is a sequence other than a string."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def tensors(outputs):
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


def _described(output):
    """A Level, a tuple of them, or in words what the output is instead."""
    if _is_map(output):
        return Level(output.shape[1], output.device, output.dtype)
    if type(output) in (list, tuple) and output and all(map(_is_map, output)):
        return tuple(map(_described, output))
    return _in_words(output)


def _is_map(output):
    return (
        isinstance(output, torch.Tensor)
        and output.dim() == 4
        and output.shape[0] == 1  # not attention's windows
        and output.is_floating_point()
    )


def _in_words(output):
    kind = type(output).__name__
    if isinstance(output, torch.Tensor):
        return f'{kind}{tuple(output.shape)}'
    if isinstance(output, (list, tuple)):
        return f'{kind}({", ".join(map(_in_words, output))})'
    return kind
