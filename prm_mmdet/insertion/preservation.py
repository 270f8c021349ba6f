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

from .attach import has_plugins
from .channels import example_inputs, input_shapes, run_as_in_inference, tensors
from .trace import USED_ELSEWHERE, CannotScaleError, Effects, Trace, hooks_on, skip


@dataclass(frozen=True)
class Outcome:
    """What was done about one block.

    Attributes:
        block (str): Its name in the module; '' is the module itself.
        text (str): What was done, or why nothing was.
        scaled (str | None): Name of the layer that was scaled, if one was.
        left (bool): Whether the block changes the network, and nothing was done.
    """

    block: str
    text: str
    scaled: Optional[str] = None
    left: bool = False

    def __str__(self):
        return f'{self.block or "the model itself"}, {self.text}'


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
    positively homogeneous, or something else uses what the block takes, or it cannot be
    run), nothing is changed. Blocks that start as the identity (SAC, GC) need nothing;
    for others (SE, CBAM, BAM) nothing can be done. If no outcome is ``left``, the
    network computes what it did.

    Args:
        module (nn.Module): A detector, backbone, neck or anything that can be run. If a
            detector cannot be run whole, its parts are, one by one.
        missing_keys (Sequence[str]): Names in ``module.state_dict()`` that the loaded
            weights did not contain, as ``load_state_dict`` returns them. Blocks with
            none of these came with the weights, and are left as they are.
        input_shape (Sequence | None): As in :func:`attach_plugins`. Default: None.

    Returns:
        list[Outcome]: What was done about each block, and each other submodule for
        which weights are missing.
    """
    keys = [k for k in module.state_dict() if not k.endswith('num_batches_tracked')]
    missing = set(keys).intersection(missing_keys)
    if missing and len(missing) == len(keys):
        text = 'no weights were loaded for it; do their names begin with a prefix?'
        return [_left('', module, text)]
    fresh, outcomes = _fresh_blocks(module, keys, missing)
    parts = [('', module, fresh)] if fresh else []
    for prefix, part, blocks in parts:
        try:
            outcomes += _preserved(module, missing, prefix, part, blocks, input_shape)
        except _CannotRunError as error:
            inside = {}  # a detector, which may want annotations: child by child
            for name, block in blocks.items():
                child, dot, _ = name[len(prefix) :].partition('.')
                if dot and isinstance(part, BaseModel):
                    inside.setdefault(child, {})[name] = block
                else:
                    outcomes.append(_left(name, block, f'{error}'))
            parts += [(f'{prefix}{c}.', getattr(part, c), b) for c, b in inside.items()]
    return outcomes


class _CannotRunError(Exception):
    """The model cannot be run on the input that was made up for it."""


def _fresh_blocks(module, keys, missing):
    """By name: the outermost submodules that no weights came for, those with a constant
    gate in them, and plugins that have no weights; and outcomes of others."""
    loaded, touched, lacking = set(), set(), {}
    for key in keys:
        around = [key[:i] for i, c in enumerate(key) if c == '.'] + ['']
        (touched if key in missing else loaded).update(around)
        if key in missing:
            owner, _, name = key.rpartition('.')
            lacking.setdefault(owner, []).append(name)
    fresh, outcomes, outer = {}, [], None
    for name, submodule in module.named_modules():
        gated = _is_gated(submodule)
        inside = outer is not None and name.startswith(outer)
        if inside and not gated:
            continue
        if name in touched:  # and not only because it holds blocks
            is_list = isinstance(submodule, (nn.ModuleList, nn.ModuleDict))
            whole = not is_list and not has_plugins(submodule)
        else:
            whole = hasattr(submodule, '_abbr_')
        if (whole or gated) and name not in loaded:
            fresh[name] = submodule
            outer = outer if inside else f'{name}.'
        elif name in lacking:
            text = f'no weights were loaded for its {", ".join(lacking[name])}'
            outcomes.append(_left(name, submodule, text))
        elif gated:
            text = 'its weights were loaded, too: nothing to do'
            outcomes.append(_outcome(name, submodule, text))
    return fresh, outcomes


def _preserved(module, missing, prefix, part, blocks, input_shape):
    """Outcomes of the blocks in a part of a module that can be run by itself."""
    gates, others = {}, {}
    for name, block in blocks.items():
        gate = block.constant_gate() if _is_gated(block) else None
        if gate is None:
            others[name] = block
        else:
            gates[name] = gate.to('cpu', torch.float64)
    shapes = input_shapes(part, input_shape)
    inputs = example_inputs(part, shapes)
    effects = Effects()
    try:
        with hooks_on(others, effects.before, effects.after):
            trace = Trace(part, inputs, {name: blocks[name] for name in gates})
    except Exception as error:  # whatever a model raises on an unfit input
        raise _CannotRunError(
            f'{type(part).__name__} cannot be run on {shapes} ({type(error).__name__}: '
            f'{error})'
        ) from error
    outcomes = list(_outcomes_without_gate(others, effects))
    steps, idle, refused = _planned(module, missing, prefix, trace, gates)
    for name, layer in idle.items():
        text = f'no weights were loaded for {layer} before it: nothing to do'
        outcomes.append(_outcome(name, blocks[name], text))

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
                    + _not_finite(part, prefix, trace.outputs)
                )
    for name, reason in refused.items():
        reason = f'{reason} (a factor of {_range(gates[name])})'
        outcomes.append(_left(name, blocks[name], reason))
    return outcomes


@dataclass(frozen=True, eq=False)
class _Step:
    """A layer to scale: its name, its parameters, by what, (C,), for which blocks."""

    layer: str
    parameters: list
    factor: torch.Tensor
    blocks: list


def _planned(module, missing, prefix, trace, gates):
    """Layers to scale; blocks behind layers that no weights came for, to those; and the
    other blocks, to reasons."""
    owners = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        owners.setdefault(p, []).append(name)
    ways, idle, refused = {}, {}, {}
    for name, gate in gates.items():
        try:
            way = trace.way_to_affine(name)
            weight = way.parameters[0]
            if missing.issuperset(owners[weight]):
                idle[name] = owners[weight][0].rpartition('.')[0]
                continue
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
            return list(steps.values()), idle, refused


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


def _not_finite(part, prefix, outputs):
    """In words, if the outputs are not, for a message."""
    if all(y.isfinite().all() for y in outputs):
        return ''
    names = [n for n, v in part.state_dict().items() if not v.isfinite().all()]
    culprits = f', as {prefix}{names[0]} does' if names else ''
    return f' (they hold NaN or infinity{culprits})'


def _outcomes_without_gate(blocks, effects):
    for name, block in blocks.items():
        calls = effects.identity.get(name, [])
        if not calls:
            yield _left(name, block, 'the model does not call it in inference')
        elif all(calls):
            yield _outcome(name, block, 'starts as the identity: nothing to do')
        else:
            yield _left(name, block, 'what it does depends on its input')


def _is_gated(block):
    return hasattr(block, 'constant_gate')


def _outcome(name, block, text, scaled=None):
    return Outcome(name, f'{type(block).__name__}: {text}', scaled)


def _left(name, block, reason):
    text = f'{type(block).__name__}: left as it is: {reason}'
    return Outcome(name, text, left=True)


def _range(values):
    low, high = (f'{v:.4g}' for v in (values.min(), values.max()))
    return low if low == high else f'{low} to {high}'
