"""Add blocks to a trained network so that its outputs do not change.

A fresh PRM or LCT multiplies its input by a constant, sigmoid(bias) = 0.73. To cancel
this constant, the weight and bias of the last norm or convolution before the block are
divided by it, channel by channel. A ReLU or a pooling between this layer and the block
does not matter, because the factors are positive. A run of the network with the scaled
layer shows whether the factors reach the block, and whether anything else uses this
layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .attach import has_plugins
from .channels import Inputs, example_inputs, input_shapes, run_as_in_inference, tensors

_LAYERS = (_NormBase, nn.GroupNorm, nn.LayerNorm, _ConvNd, nn.Linear)
_NOT_CALLED = 'the model does not call it in inference'


@dataclass(frozen=True)
class Outcome:
    """What was done about one block.

    Attributes:
        block: The block's name in the module; '' is the module itself.
        text: What was done, or why nothing was done.
        scaled: Name of the layer that was scaled, or None.
        left: Whether the block was left as it is, although it may change what the
            network computes.
    """

    block: str
    text: str
    scaled: str | None = None
    left: bool = False

    def __str__(self) -> str:
        return f'{self.block or "the model itself"}, {self.text}'


def preserve(
    module: nn.Module, missing_keys: Sequence[str], input_shape: Sequence | None = None
) -> list[Outcome]:
    """Make a network with fresh blocks compute the same as it did without the blocks.

    Call it after you load weights that do not contain the blocks::

        missing = model.load_state_dict(weights, strict=False).missing_keys
        for outcome in preserve(model, missing):
            print(outcome)

    For blocks with a ``constant_gate()`` (PRM and LCT), the last norm or convolution
    before the block is scaled. The network is run on random numbers before and after
    each change. If an output then differs by more than a small tolerance, the change is
    undone. The tolerance is the output's largest absolute value times sqrt(eps), which
    is 0.00035 in float32.

    If the network cannot be run, or if no layer before a block can be scaled, the block
    is left as it is. A layer cannot be scaled if an addition, or an activation other
    than ReLU or LeakyReLU, is between the layer and the block. A layer cannot be scaled
    either if something else uses the layer, too. Blocks that start as the identity
    (SAC, GC) need no change. Blocks whose gate depends on the input (SE, CBAM, BAM)
    cannot be preserved.

    If you call it again, nothing changes, unless you loaded weights after the first
    call.

    Args:
        module: A detector, backbone, neck or any other module that can be run. If a
            detector cannot be run whole, its parts are run one by one.
        missing_keys: Names in ``module.state_dict()`` that the loaded weights did not
            contain, as ``load_state_dict`` returns them. If no name of a block is
            missing, the block's own weights were loaded, and the block does not change.
        input_shape: Shape of the input for these runs, see :func:`attach_plugins`.
            Default: None.

    Returns:
        One outcome for each block, and for each other submodule with missing weights.
        If the attribute ``left`` of every outcome is false, the network computes the
        same as without the blocks.

    Raises:
        ValueError: ``missing_keys`` is a string, or has names that the module lacks.
    """
    state = module.state_dict()
    _check_keys(type(module).__name__, state, missing_keys)
    keys = [key for key in state if not key.endswith('num_batches_tracked')]
    missing = set(keys).intersection(missing_keys)
    if missing and len(missing) == len(keys):
        text = 'no weights were loaded for it; do their names begin with a prefix?'
        return [_left('', module, text)]
    fresh, outcomes = _fresh_blocks(module, keys, missing)
    parts = [('', module, fresh)] if fresh else []
    for prefix, part, blocks in parts:
        try:
            preservation = _Preservation(module, missing, prefix, part, blocks)
            outcomes += preservation.run(input_shape)
        except _CannotRunError as error:
            # A whole detector may need annotations, which are missing here. Its parts,
            # such as the backbone, may run without them. So try the parts one by one.
            inside: dict[str, dict] = {}
            for name, block in blocks.items():
                child, dot, _ = name[len(prefix) :].partition('.')
                if dot and isinstance(part, BaseModel):
                    inside.setdefault(child, {})[name] = block
                else:
                    outcomes.append(_left(name, block, f'{error}'))
            parts += [(f'{prefix}{c}.', getattr(part, c), b) for c, b in inside.items()]
    return outcomes


def _check_keys(name: str, state: dict, missing_keys: Sequence[str]) -> None:
    if isinstance(missing_keys, str):
        raise ValueError(
            f'missing_keys must be a list of names, got the string {missing_keys!r}'
        )
    unknown = [key for key in missing_keys if key not in state]
    if unknown:
        raise ValueError(
            f'missing_keys has {len(unknown)} names that {name} does not have, such as '
            f'{unknown[0]!r}; give the missing_keys that load_state_dict of the same '
            f'module returned, without a prefix (a name of {name}: {next(iter(state))})'
        )


class _CannotRunError(Exception):
    """The model cannot be run on the example input."""


def _fresh_blocks(
    module: nn.Module, keys: list[str], missing: set[str]
) -> tuple[dict[str, nn.Module], list[Outcome]]:
    """Fresh blocks by name, and an outcome for each other block. Fresh blocks are:

    - outermost submodules that have weights, but for which no weight was loaded,
    - blocks with a ``constant_gate()`` inside such submodules,
    - plugins that have no weights at all.
    """
    loaded: set[str] = set()
    touched: set[str] = set()
    lacking: dict[str, list[str]] = {}
    for key in keys:
        around = [key[:i] for i, c in enumerate(key) if c == '.'] + ['']
        (touched if key in missing else loaded).update(around)
        if key in missing:
            owner, _, name = key.rpartition('.')
            lacking.setdefault(owner, []).append(name)
    fresh, outcomes, outer = {}, [], None
    for name, submodule in module.named_modules():
        gated = hasattr(submodule, 'constant_gate')
        inside = outer is not None and name.startswith(outer)
        if inside and not gated:
            continue
        if name in touched:
            # A ModuleList or ModuleDict is no block, nor is a module that has plugins.
            is_list = isinstance(submodule, (nn.ModuleList, nn.ModuleDict))
            whole = not is_list and not has_plugins(submodule)
        else:
            whole = hasattr(submodule, '_abbr_')
        layer = getattr(submodule, '_preserved_in', None)
        if gated and name not in loaded and layer is not None:
            text = f'an earlier call scaled {layer} for it: nothing to do'
            outcomes.append(_outcome(name, submodule, text))
        elif (whole or gated) and name not in loaded:
            fresh[name] = submodule
            outer = outer if inside else f'{name}.'
        elif name in lacking:
            text = f'no weights were loaded for its {", ".join(lacking[name])}'
            outcomes.append(_left(name, submodule, text))
        elif gated:
            text = 'its weights were loaded, too: nothing to do'
            outcomes.append(_outcome(name, submodule, text))
    return fresh, outcomes


@dataclass
class _Run:
    """What is recorded while a model runs once."""

    # Names of layers and blocks in the order in which their calls begin. A plugin is
    # listed after the layer that it follows, because the layer's hook calls the plugin.
    called: list[str] = field(default_factory=list)
    # For each block with a constant gate: its input at each call.
    inputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    outputs: list[torch.Tensor] = field(default_factory=list)


@dataclass
class _Step:
    """How to scale one layer so that the gates of blocks behind it are cancelled."""

    layer: str
    factor: torch.Tensor  # one factor for each output channel of the layer, (C,)
    blocks: list[str]  # names of the blocks whose gates the factors cancel


class _Preservation:
    """Scales layers so that they cancel the constant gates of the blocks behind them.

    An instance works on one part of a module that can be run alone, for example on a
    detector's backbone.
    """

    def __init__(
        self,
        module: nn.Module,
        missing: set[str],  # names of the module's weights that were not loaded
        prefix: str,  # prefix of the part's names in the module, such as 'backbone.'
        part: nn.Module,
        blocks: dict[str, nn.Module],  # the part's fresh blocks, by name
    ):
        self.part, self.prefix = part, prefix
        self.missing, self.blocks = missing, blocks
        self.gates: dict[str, torch.Tensor] = {}
        for name, block in blocks.items():
            gate = getattr(block, 'constant_gate', lambda: None)()
            if gate is not None:
                self.gates[name] = gate.to('cpu', torch.float64)
        self.layers: dict[str, nn.Module] = {
            f'{prefix}{name}': m
            for name, m in part.named_modules()
            if isinstance(m, _LAYERS)
        }
        self.owners: dict[nn.Parameter, list[str]] = {}
        for name, p in module.named_parameters(remove_duplicate=False):
            self.owners.setdefault(p, []).append(name)
        self.inputs: Inputs = ()
        # A run in which the identity replaces the blocks of ``self.gates``.
        self.plain = _Run()
        self.done: list[str] = []  # blocks whose gates are cancelled
        self._reached: dict[str, dict[str, bool | None]] = {}

    def run(self, input_shape: Sequence | None) -> list[Outcome]:
        """Scale layers, verify the outputs, and report what was done for each block."""
        shapes = input_shapes(self.part, input_shape)
        self.inputs = example_inputs(self.part, shapes)
        others = {n: b for n, b in self.blocks.items() if n not in self.gates}
        try:
            with _identities_noted(others) as identities:
                self.plain = self._run()
        except Exception as error:
            # If the input does not fit, a model may raise any exception.
            raise _CannotRunError(
                f'{type(self.part).__name__} cannot be run on {shapes} '
                f'({type(error).__name__}: {error})'
            ) from error
        outcomes = []
        for name, block in others.items():
            if not identities[name]:
                outcomes.append(_left(name, block, _NOT_CALLED))
            elif all(identities[name]):
                text = 'starts as the identity: nothing to do'
                outcomes.append(_outcome(name, block, text))
            else:
                outcomes.append(_left(name, block, 'its output depends on its input'))
        steps: dict[str, _Step] = {}
        reasons: dict[str, str] = {}
        for name, gate in self.gates.items():
            layer, reason = self._layer_before(name)
            if layer is None:
                reasons[name] = reason
            elif all(n in self.missing for n in self._names(layer)):
                text = f'no weights were loaded for {layer} before it: nothing to do'
                outcomes.append(_outcome(name, self.blocks[name], text))
            else:
                step = steps.setdefault(layer, _Step(layer, torch.ones(()), []))
                step.factor = step.factor / gate
                step.blocks.append(name)
        outcomes += self._apply_all(list(steps.values()))
        for step in steps.values():
            reason = f'when {step.layer} is scaled, the outputs change, since something'
            reason += f' else uses {step.layer}, too{self._not_finite()}'
            reasons |= {n: reason for n in step.blocks if n not in self.done}
        for name, reason in reasons.items():
            reason = f'{reason} (a factor of {_range(self.gates[name])})'
            outcomes.append(_left(name, self.blocks[name], reason))
        return outcomes

    def _run(self, active: Sequence[str] = ()) -> _Run:
        """Run this part of the module. Blocks with constant gates return their input
        unchanged, unless their names are in ``active``."""
        run = _Run()
        gated = {name: self.blocks[name] for name in self.gates}

        def note(name: str) -> Callable:
            return lambda module, args: run.called.append(name)

        def note_input(name: str) -> Callable:
            def hook(block: nn.Module, args: Any) -> None:
                run.called.append(name)
                run.inputs.setdefault(name, []).append(args[0].clone())

            return hook

        def skip(name: str) -> Callable:
            # The input is copied, because later layers may change it in place.
            return lambda module, args, output: args[0].clone()

        skipped = {name: block for name, block in gated.items() if name not in active}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_hooks_on(self.layers, before=note))
            stack.enter_context(_hooks_on(gated, before=note_input))
            stack.enter_context(_hooks_on(skipped, after=skip))
            run.outputs = list(tensors(run_as_in_inference(self.part, self.inputs)))
        if not run.outputs:
            raise ValueError('it returns no tensors')
        return run

    def _layer_before(self, block: str) -> tuple[str | None, str]:
        """Name of the layer to scale for a block, and ''. If no layer can be scaled,
        the result is None and the reason."""
        if block not in self.plain.inputs:
            return None, _NOT_CALLED
        width = len(self.gates[block])
        called = self.plain.called
        last = len(called) - called[::-1].index(block)
        for layer in dict.fromkeys(reversed(called[:last])):
            if layer not in self.layers or _width(self.layers[layer]) != width:
                continue
            parameters = self._parameters(layer)
            if not parameters:
                return None, f'{layer} before it has no weight that can be scaled'
            if layer not in self._reached:
                self._reached[layer] = self._reached_by(layer, parameters)
            reached = self._reached[layer][block]
            if reached is None:
                return None, (
                    f'its input does not scale with {layer} before it, as behind an '
                    'addition, or an activation other than ReLU and LeakyReLU'
                    f'{self._not_finite()}'
                )
            if reached:
                if any(not n.startswith(self.prefix) for n in self._names(layer)):
                    return None, f'{layer} before it is used elsewhere, too'
                return layer, ''
        return None, f'no norm or convolution of {width} channels comes before it'

    def _parameters(self, layer: str) -> list[nn.Parameter]:
        """A layer's weight and bias, or an empty list if one of them cannot be scaled.

        A parameter can be scaled if it has one row or number per output channel, and if
        it is not computed from other parameters.
        """
        module = self.layers[layer]
        both: list[Any] = [getattr(module, n, None) for n in ('weight', 'bias')]
        found = [p for p in both if p is not None]
        own = {id(p) for p in module.parameters(recurse=False)}
        if module._parameters.get('weight') is None:
            return []
        fit = all(id(p) in own and len(p) == _width(module) for p in found)
        return found if fit else []

    def _names(self, layer: str) -> list[str]:
        """Names of a layer's parameters in the module. If layers share a parameter, it
        has several names."""
        return [name for p in self._parameters(layer) for name in self.owners[p]]

    def _reached_by(
        self, layer: str, parameters: list[nn.Parameter]
    ) -> dict[str, bool | None]:
        """How each block's input changes if a layer is scaled: by the same factors
        (True), not at all (False), or in another way (None)."""
        # Multiplying by powers of two is exact. Some factors are so large that a ReLU6
        # would clip the values. So a ReLU6 behind the layer is noticed.
        width = _width(self.layers[layer])
        limit = 5 if parameters[0].dtype == torch.float16 else 16
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (width,), generator=generator) * 2 - 1
        signs[0] = 1
        factor = 2.0 ** (
            signs * torch.randint(limit // 2, limit + 1, (width,), generator=generator)
        )
        undo = _scale(parameters, factor)
        try:
            scaled = self._run()
        finally:
            undo()
        return {
            name: _scales(calls, scaled.inputs.get(name, []), factor)
            for name, calls in self.plain.inputs.items()
            if len(self.gates[name]) == width
        }

    def _apply_all(self, steps: list[_Step]) -> Iterator[Outcome]:
        """Scale all layers at once. If the network's outputs change, undo this and
        scale the layers one by one. Return an outcome for each preserved block."""
        if not self._apply(steps):
            for step in steps:
                if any(map(self._apply, self._ways(step))):
                    continue
                for name in step.blocks:
                    self._apply([_Step(step.layer, 1 / self.gates[name], [name])])
        for step in steps:
            for name in step.blocks:
                if name in self.done:
                    text = f'{step.layer} scaled by {_range(1 / self.gates[name])}'
                    yield _outcome(name, self.blocks[name], text, step.layer)

    def _ways(self, step: _Step) -> Iterator[list[_Step]]:
        """Ways to scale one layer for several blocks. If the blocks run one after the
        other, the factors of all gates are multiplied. If the blocks run side by side
        and their gates are equal, the factor of one gate is enough."""
        yield [step]
        gates = [self.gates[name] for name in step.blocks]
        if len(gates) > 1 and all(torch.equal(gate, gates[0]) for gate in gates):
            yield [_Step(step.layer, 1 / gates[0], step.blocks)]

    def _apply(self, steps: list[_Step]) -> bool:
        """Scale layers, and let the blocks behind these layers apply their gates. If
        the network's outputs change, undo the scaling. Return whether the layers stay
        scaled."""
        names = [name for step in steps for name in step.blocks]
        with contextlib.ExitStack() as undo:
            for step in steps:
                undo.callback(_scale(self._parameters(step.layer), step.factor))
            outputs = self._run([*self.done, *names]).outputs
            expected = self.plain.outputs
            if len(outputs) != len(expected) or not all(map(_close, expected, outputs)):
                return False
            undo.pop_all()
        self.done += names
        for step in steps:
            for name in step.blocks:
                block, layer = self.blocks[name], self.layers[step.layer]
                block._preserved_in = step.layer  # type: ignore[assignment]
                layer._register_load_state_dict_pre_hook(_Forget(block))
        return True

    def _not_finite(self) -> str:
        """A note for error messages if the outputs hold NaN or infinity, else ''."""
        if all(y.isfinite().all() for y in self.plain.outputs):
            return ''
        state = self.part.state_dict()
        names = [n for n, v in state.items() if not v.isfinite().all()]
        culprits = f', as {self.prefix}{names[0]} does' if names else ''
        return f' (the outputs hold NaN or infinity{culprits})'


class _Forget:
    """Hook of a layer that was scaled for a block. It runs when new weights are loaded
    into the layer. The new weights are not scaled. So the hook sets the block's
    ``_preserved_in`` to None, and a later ``preserve`` scales the layer again."""

    def __init__(self, block: nn.Module):
        self.block = block

    def __call__(self, state_dict: dict, prefix: str, *args: Any) -> None:
        if f'{prefix}weight' in state_dict:
            self.block._preserved_in = None  # type: ignore[assignment]


def _width(layer: nn.Module) -> int:
    """Number of output channels of a norm or convolution."""
    for name in ('out_channels', 'num_features', 'num_channels', 'out_features'):
        if hasattr(layer, name):
            return getattr(layer, name)
    return layer.normalized_shape[0]  # type: ignore[union-attr,index,return-value]


@torch.no_grad()
def _scale(parameters: list[nn.Parameter], factor: torch.Tensor) -> Callable:
    """Multiply a layer's weight and bias by one factor per output channel, (C,). Return
    a function that restores them."""
    saved = [p.detach().clone() for p in parameters]
    for p in parameters:
        shaped = factor.reshape(-1, *[1] * (p.dim() - 1))
        p.copy_(p.to('cpu', torch.float64) * shaped)

    @torch.no_grad()
    def undo() -> None:
        for p, value in zip(parameters, saved):
            p.copy_(value)

    return undo


def _scales(
    before: list[torch.Tensor], after: list[torch.Tensor], factor: torch.Tensor
) -> bool | None:
    """True if the maps (B, C, H, W) of all calls were multiplied by factors (C,), False
    if all maps stayed the same, else None."""
    pairs = list(zip(before, after))
    if len(before) != len(after) or any(x.shape != y.shape for x, y in pairs):
        return None
    divisor = factor.reshape(-1, 1, 1)
    if all(_close(x, y / divisor.to(y)) for x, y in pairs):
        return True
    return False if all(_close(x, y) for x, y in pairs) else None


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors differ by at most a tolerance. The tolerance is the largest
    absolute value of ``a`` times sqrt(eps) of its type."""
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    tolerance = torch.finfo(a.dtype).eps ** 0.5 * a.abs().max()
    return bool((a - b).abs().max() <= tolerance)


@contextlib.contextmanager
def _hooks_on(
    modules: dict[str, nn.Module],
    before: Callable | None = None,
    after: Callable | None = None,
) -> Iterator[None]:
    """Add forward hooks inside a ``with`` statement. The functions ``before`` and
    ``after`` take a module's name. They return the hook that runs before or after the
    module."""
    handles = []
    for name, module in modules.items():
        if before is not None:
            handles.append(module.register_forward_pre_hook(before(name)))
        if after is not None:
            handles.append(module.register_forward_hook(after(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _identities_noted(blocks: dict[str, nn.Module]) -> Iterator[dict[str, list[bool]]]:
    """Inside the ``with`` statement, note whether attention blocks return their input
    unchanged. Yields a dict: the block's name, and one bool for each of its calls."""
    inputs: dict[str, Any] = {}
    found: dict[str, list[bool]] = {name: [] for name in blocks}

    def before(name: str) -> Callable:
        def hook(block: nn.Module, args: Any) -> None:
            is_map = len(args) == 1 and isinstance(args[0], torch.Tensor)
            inputs[name] = args[0].detach().clone() if is_map else None

        return hook

    def after(name: str) -> Callable:
        def hook(block: nn.Module, args: Any, output: Any) -> None:
            are_maps = torch.is_tensor(inputs[name]) and torch.is_tensor(output)
            found[name].append(are_maps and torch.equal(inputs[name], output))

        return hook

    with _hooks_on(blocks, before, after):
        yield found


def _outcome(
    name: str, block: nn.Module, text: str, scaled: str | None = None
) -> Outcome:
    return Outcome(name, f'{type(block).__name__}: {text}', scaled)


def _left(name: str, block: nn.Module, reason: str) -> Outcome:
    text = f'{type(block).__name__}: left as it is: {reason}'
    return Outcome(name, text, left=True)


def _range(values: torch.Tensor) -> str:
    low, high = (f'{v:.4g}' for v in (values.min(), values.max()))
    return low if low == high else f'{low} to {high}'
