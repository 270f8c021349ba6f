"""Blocks into trained weights, so that the network computes what it did.

A fresh PRM or LCT multiplies its input by a constant, sigmoid(bias) = 0.73. The affine
layer before it (a norm, or a convolution) takes the inverse: channel by channel, since
what may stand between, a ReLU or a pooling, lets positive factors through.
"""

from dataclasses import dataclass
from typing import Optional

import torch
from mmengine.model import BaseModel
from torch import nn

from .probe import example_inputs, run_as_in_inference
from .trace import USED_ELSEWHERE, CannotScaleError, Trace, hooks_on, skip, tensors


@dataclass(frozen=True)
class Outcome:
    """What was done about one block.

    Attributes:
        block (str): Its name in the module.
        text (str): What was done, or why nothing was.
        scaled (str | None): Name of the layer that was scaled, if one was.
        left (bool): Whether the block changes the network, and nothing was done.
    """

    block: str
    text: str
    scaled: Optional[str] = None
    left: bool = False

    def __str__(self):
        return f'{self.block}, {self.text}'


def preserve(module, missing_keys, input_shape=None):
    """Let a network with fresh blocks compute what it did without them.

    To be called once, after weights were loaded that know nothing of the blocks::

        missing = model.load_state_dict(weights, strict=False).missing_keys
        for outcome in preserve(model, missing):
            print(outcome)

    Blocks with a ``constant_gate()`` (PRM and LCT) are made up for in the norm or
    convolution before them. That layer is found by running the network on random
    numbers, and every change is checked by running it again: where outputs are not what
    they were, to half of the digits of their type, the change is undone. Where nothing
    before a block can be scaled (after an addition, or an activation that is not
    positively homogeneous, or where something else uses what the block takes), nothing
    is changed. Blocks that start as the identity (SAC, GC) need nothing; for others
    (SE, CBAM, BAM) nothing can be done.

    Args:
        module (nn.Module): A detector, backbone, neck or anything that can be run. If a
            detector cannot be run whole, its parts are, one by one.
        missing_keys (Sequence[str]): Names in ``module.state_dict()`` that the loaded
            weights did not contain, as ``load_state_dict`` returns them. Blocks with
            others came with the weights, and are left as they are.
        input_shape (Sequence | None): As in :func:`attach_plugins`. Default: None.

    Returns:
        list[Outcome]: What was done, a block each.
    """
    fresh, outcomes = _fresh_blocks(module, missing_keys)
    parts = [('', module, fresh)] if fresh else []
    for prefix, part, blocks in parts:
        try:
            outcomes += _preserved(module, prefix, part, blocks, input_shape)
        except _CannotRunError as error:
            if isinstance(part, BaseModel):  # a detector, which may want annotations
                parts += [
                    (f'{child}.', getattr(module, child), inside)
                    for child, inside in _by_child(blocks)
                ]
            else:
                outcomes += [
                    _outcome(name, block, f'left as it is: {error}', left=True)
                    for name, block in blocks.items()
                    if _is_gated(block)
                ]
    return outcomes


class _CannotRunError(Exception):
    """The model cannot be run on the input that was made up for it."""


def _fresh_blocks(module, missing_keys):
    """Submodules, by name, that no weights came for and that stand among such that some
    came for; and what can be said of other blocks at once."""
    missing = set(missing_keys)
    stateful, loaded = set(), set()
    for key in module.state_dict():
        if not key.endswith('num_batches_tracked'):
            around = [key[:i] for i, c in enumerate(key) if c == '.'] + ['']
            stateful.update(around)
            if key not in missing:
                loaded.update(around)
    fresh, outcomes, outer = {}, [], None
    for name, submodule in module.named_modules():
        text = None
        if name in loaded:
            text = 'its weights were loaded, too: nothing to do'
        elif outer is not None and name.startswith(outer):
            text = 'no weights were loaded around it: nothing to do'
        elif isinstance(submodule, (nn.ModuleList, nn.ModuleDict)):
            continue
        elif _is_gated(submodule) or name in stateful:
            fresh[name] = submodule
            outer = f'{name}.' if name else ''
        if text and _is_gated(submodule):
            outcomes.append(_outcome(name, submodule, text))
    fresh.pop('', None)
    return fresh, outcomes


def _by_child(blocks):
    """Blocks in each of a model's children; those that are children are left out."""
    children = {}
    for name, block in blocks.items():
        child, _, rest = name.partition('.')
        if rest:
            children.setdefault(child, {})[name] = block
    return children.items()


def _preserved(module, prefix, part, blocks, input_shape):
    """Outcomes of the blocks in a part of a module that can be run by itself."""
    gates, others = {}, {}
    for name, block in blocks.items():
        gate = block.constant_gate() if _is_gated(block) else None
        if gate is None:
            others[name] = block
        else:
            gates[name] = gate.to('cpu', torch.float64)
    shapes, inputs = example_inputs(part, input_shape)
    effects = _Effects()
    try:
        with hooks_on(others, effects.before, effects.after):
            trace = Trace(part, inputs, {name: blocks[name] for name in gates})
    except Exception as error:  # whatever a model raises on an unfit input
        raise _CannotRunError(
            f'{type(part).__name__} cannot be run on {shapes} ({type(error).__name__}: '
            f'{error})'
        ) from error
    outcomes = list(effects.outcomes(others))
    steps, refused = _planned(module, prefix, trace, gates)

    def holds(steps):
        names = [name for step in steps for name in step.blocks]
        return _scaled(steps, part, inputs, {name: blocks[name] for name in names})

    done = steps
    if steps and not holds(steps):
        done = [step for step in steps if holds([step])]
    for step in steps:
        for name in step.blocks:
            if step in done:
                text = f'{step.layer} scaled by {_range(1 / gates[name])}'
                outcomes.append(_outcome(name, blocks[name], text, step.layer))
            else:
                refused[name] = (
                    f'with {step.layer} scaled, the outputs are not what they were'
                )
    for name, reason in refused.items():
        text = f'left as it is, a factor of {_range(gates[name])}: {reason}'
        outcomes.append(_outcome(name, blocks[name], text, left=True))
    return outcomes


@dataclass(frozen=True, eq=False)
class _Step:
    """A layer to scale: its name, its parameters, by what, (C,), for which blocks."""

    layer: str
    parameters: list
    factor: torch.Tensor
    blocks: list


def _planned(module, prefix, trace, gates):
    """Layers to scale, and reasons for the blocks for which none can be."""
    owners = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        owners.setdefault(p, []).append(name)
    ways, refused = {}, {}
    for name, gate in gates.items():
        try:
            way = trace.way_to_affine(name)
            weight = way.parameters[0]
            if len(weight) != len(gate):
                raise CannotScaleError(
                    f'the layer before it has {len(weight)} channels'
                )
            if not all(n.startswith(prefix) for n in owners[weight]):
                raise CannotScaleError(USED_ELSEWHERE)
            ways[name] = way
        except CannotScaleError as error:
            refused[name] = str(error)
    while True:
        accepted = {name: gates[name] for name in ways}
        steps = {}
        try:
            for name, way in ways.items():
                key = way.weight
                if key not in steps:
                    layer = owners[way.parameters[0]][0].rpartition('.')[0]
                    factor = trace.factor(key, accepted)
                    steps[key] = _Step(layer, way.parameters, factor, [])
                steps[key].blocks.append(name)
        except CannotScaleError as error:
            # Without the blocks that cannot have it, the others may.
            for other, w in list(ways.items()):
                if w.weight is key and error.node in (None, *w.nodes):
                    refused[other] = str(error)
                    del ways[other]
        else:
            return list(steps.values()), refused


def _scaled(steps, part, inputs, blocks):
    """Scale layers, and leave them so if the model's outputs with the blocks are what
    they were without; else undo it. Whether they are."""
    with torch.no_grad(), hooks_on(blocks, after=skip):
        before = list(tensors(run_as_in_inference(part, inputs)))
    saved = [(p, p.detach().clone()) for step in steps for p in step.parameters]
    same = False
    with torch.no_grad():
        try:
            for step in steps:
                for p in step.parameters:
                    factor = step.factor.reshape(-1, *[1] * (p.dim() - 1))
                    p.copy_(p.to('cpu', torch.float64) * factor)
            after = list(tensors(run_as_in_inference(part, inputs)))
            same = len(before) == len(after) and all(map(_close, before, after))
        finally:
            if not same:
                for p, value in saved:
                    p.copy_(value)
    return same


def _close(a, b):
    """Whether two tensors agree to half of the digits of their type."""
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    tolerance = torch.finfo(a.dtype).eps ** 0.5 * a.abs().max()
    return bool((a - b).abs().max() <= tolerance)


class _Effects:
    """What blocks without a constant gate do to their input."""

    def __init__(self):
        self.inputs = {}
        self.identity = {}  # names to whether each call returned its input

    def before(self, name):
        def hook(block, args):
            is_map = len(args) == 1 and isinstance(args[0], torch.Tensor)
            self.inputs[name] = args[0].detach().clone() if is_map else None

        return hook

    def after(self, name):
        def hook(block, args, output):
            x, y = self.inputs[name], output
            is_map = x is not None and isinstance(y, torch.Tensor)
            if is_map and x.shape == y.shape:  # else it is no block
                self.identity.setdefault(name, []).append(torch.equal(x, y))

        return hook

    def outcomes(self, blocks):
        for name, block in blocks.items():
            calls = self.identity.get(name)
            if calls and all(calls):
                yield _outcome(name, block, 'starts as the identity: nothing to do')
            elif calls or _is_gated(block):
                text = 'left as it is: what it does depends on its input'
                yield _outcome(name, block, text, left=True)


def _is_gated(block):
    return hasattr(block, 'constant_gate')


def _outcome(name, block, text, scaled=None, left=False):
    return Outcome(name, f'{type(block).__name__}: {text}', scaled, left)


def _range(values):
    low, high = (f'{v:.4g}' for v in (values.min(), values.max()))
    return low if low == high else f'{low} to {high}'
