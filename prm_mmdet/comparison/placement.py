"""Putting a block into any detector's config, where its paper recommends it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import nn

from ..insertion import Plugged
from ..insertion.channels import run_as_in_inference, tensors
from ..plugins import SAC
from .blocks import Block

_PLUGGED = ('prm_mmdet.Plugged', Plugged)  # the type as text, and as a class
#: Places in backbones that take no ``plugins``: the same places that this package's own
#: configs use. ``{}`` stands for the digits of the stages, of which 1 is c2.
_KNOWN_PLACES = {
    'CSPNeXt': (r'stage[{}]\.\d+', 'last'),
    'CSPDarknet': (r'stage[{}]\.\d+', 'last'),
}
_BEFORE_ADDITION = (r'layer[{}]\.\d+\.bn2', None)  # of a ResNet of basic blocks
#: Options that must divide the channels: name, the block's default, and the smallest
#: allowed quotient.
_DIVISORS = {
    'prm_mmdet.PRM': ('groups', 64, 1),
    'prm_mmdet.LCT': ('groups', 64, 2),
    'prm_mmdet.SGE': ('groups', 64, 1),
    'prm_mmdet.SE': ('reduction', 16, 1),
    'prm_mmdet.CBAM': ('reduction', 16, 1),
    'prm_mmdet.BAM': ('reduction', 16, 1),
    'prm_mmdet.DoubleAttention': ('reduction', 4, 1),
}
#: MMCV's class has no default for this argument. The papers' tables use 1 / 16.
_REQUIRED = {'prm_mmdet.GC': dict(ratio=1 / 16)}
_POSTFIX = '_channels'  # of the SAC that only reads channels


@dataclass(frozen=True)
class Placed:
    """A detector's config with a block in it.

    Args:
        model: The config of the whole detector.
        where: The place in words.
        channels: Channels of each inserted block, by the name of its module.
        chosen: Options that were fitted to the channels, other than the block's
            defaults.
    """

    model: dict
    where: str
    channels: dict[str, int]
    chosen: dict


def place(model: dict, block: Block) -> Placed:
    """Put a block into a detector's config. The config that is given stays as it is.

    A backbone that takes ``plugins`` gets the block at ``block.position`` in c3 and all
    deeper stages. A ResNet of basic blocks gets the block behind ``bn2``, before the
    addition. CSPNeXt and CSPDarknet get the block at the end of each stage. Any other
    backbone gets the block behind its output maps.

    Args:
        model: Config of a detector, with a ``backbone``.
        block: What to insert, and where if the user chose.

    Raises:
        ValueError: The detector has no backbone, or the block cannot be placed there.
            The message names the block and the reason.
    """
    try:
        return _placed(model, block)
    except ValueError as error:
        raise ValueError(f'{block.label}: {error}') from error


def _placed(model: dict, block: Block) -> Placed:
    backbone = _backbone(model)
    insert, where = _way(model, backbone, block)
    before = dict(_build(backbone).named_modules())
    reader = dict(type='prm_mmdet.SAC', postfix=_POSTFIX)  # takes any channels
    with_reader = _build(insert(reader)).named_modules()
    sizes = [
        module.in_channels
        for name, module in with_reader
        if isinstance(module, SAC) and _POSTFIX in name
    ]
    options = {**_REQUIRED.get(block.type, {}), **block.options}
    chosen = _fitted(block, options, sizes)
    changed = insert(dict(type=block.type, **options, **chosen))
    built = dict(_build(changed).named_modules())
    names = _outermost([name for name in built if name not in before], built)
    whole = copy.deepcopy(model)
    _replace_backbone(whole, changed)
    return Placed(whole, where, dict(zip(names, sizes)), chosen)


def _backbone(model: dict) -> dict:
    """Config of the backbone, of a detector or of one that another model wraps."""
    backbone = model.get('backbone')
    if isinstance(backbone, dict):
        return backbone
    if isinstance(model.get('detector'), dict):
        return _backbone(model['detector'])
    raise ValueError(
        "the config's model has no backbone, so that there is no place for a block"
    )


def _replace_backbone(model: dict, backbone: dict) -> None:
    if isinstance(model.get('backbone'), dict):
        model['backbone'] = backbone
    else:
        _replace_backbone(model['detector'], backbone)


def _build(backbone: dict) -> Any:
    """A backbone without trained weights; random numbers outside stay as they are."""
    cfg = ConfigDict(copy.deepcopy(dict(backbone)))
    with torch.random.fork_rng([]):
        try:
            return MODELS.build(cfg)
        except Exception as error:  # whatever a backbone raises on unfit plugins
            raise ValueError(str(error) or type(error).__name__) from error


def _way(
    model: dict, backbone: dict, block: Block
) -> tuple[Callable[[dict], dict], str]:
    """How to put a plugin's config into the backbone's config, and where in words."""
    plain = _build(backbone)
    name = type(plain).__name__
    if block.at is not None:
        return _plugged(backbone, dict(at=block.at)), f'behind {block.at!r} of {name}'
    layers = getattr(plain, 'block', None)
    if isinstance(layers, type) and issubclass(layers, BasicBlock):
        return _at_known_place(backbone, name, _BEFORE_ADDITION, block.stages)
    if _takes_plugins(plain):
        stages = _chosen_stages(block.stages, plain.num_stages)
        entry = dict(
            stages=tuple(stage in stages for stage in _stage_names(plain.num_stages)),
            position=block.position,
        )
        words = f'plugins of {name}: {block.position}, {_span(stages)}'
        return _plugins(backbone, entry), words
    if name in _KNOWN_PLACES:
        return _at_known_place(backbone, name, _KNOWN_PLACES[name], block.stages)
    return _behind_output_maps(model, backbone, plain, block.stages)


def _takes_plugins(backbone: nn.Module) -> bool:
    return hasattr(backbone, 'plugins') and hasattr(backbone, 'make_stage_plugins')


def _plugins(backbone: dict, entry: dict) -> Callable[[dict], dict]:
    def insert(cfg: dict) -> dict:
        changed = copy.deepcopy(backbone)
        inner = changed['model'] if changed['type'] in _PLUGGED else changed
        inner['plugins'] = [*(inner.get('plugins') or []), dict(cfg=cfg, **entry)]
        return changed

    return insert


def _plugged(backbone: dict, entry: dict) -> Callable[[dict], dict]:
    def insert(cfg: dict) -> dict:
        changed = copy.deepcopy(backbone)
        if changed['type'] not in _PLUGGED:
            changed = dict(type=_PLUGGED[0], model=changed, plugins=[])
        changed['plugins'] = [*changed['plugins'], dict(cfg=cfg, **entry)]
        return changed

    return insert


def _at_known_place(
    backbone: dict,
    name: str,
    place: tuple[str, str | None],
    chosen: Sequence[str] | None,
) -> tuple[Callable[[dict], dict], str]:
    pattern, blocks = place
    stages = _chosen_stages(chosen, 4)
    at = pattern.format(''.join(str(int(stage[1:]) - 1) for stage in stages))
    entry = dict(at=at) if blocks is None else dict(at=at, blocks=blocks)
    which = f'the {blocks} of {at!r}' if blocks else repr(at)
    return _plugged(backbone, entry), f'behind {which} of {name}: {_span(stages)}'


def _behind_output_maps(
    model: dict, backbone: dict, plain: Any, chosen: Sequence[str] | None
) -> tuple[Callable[[dict], dict], str]:
    name = type(plain).__name__
    size = 256
    try:
        with torch.no_grad():
            output = run_as_in_inference(plain, torch.rand(1, 3, size, size))
    except Exception as error:  # whatever a model raises on an unfit input
        raise ValueError(
            f'{name} cannot be run on an image of {size} x {size} pixels ({error}), so '
            'that its output maps are not known; name a module with --at'
        ) from error
    maps = list(tensors(output))
    strides = [size // max(1, m.shape[-2]) for m in maps]
    stages = [f'c{stride.bit_length() - 1}' for stride in strides]
    neck = model.get('neck') or {}
    first = neck.get('start_level', 0) if isinstance(neck, dict) else 0
    used = list(range(first, len(maps)))
    if chosen is not None:
        unknown = [stage for stage in chosen if stage not in stages]
        if unknown:
            raise ValueError(_no_stage(unknown[0], stages))
        levels = [level for level in used if stages[level] in chosen]
    else:
        levels = [level for level in used if strides[level] >= 8] or used
    entry: dict = dict(at='')
    if len(maps) > 1 and levels != list(range(len(maps))):
        entry['levels'] = levels
    span = _span([stages[level] for level in levels])
    return _plugged(backbone, entry), f'behind the output maps of {name}: {span}'


def _stage_names(count: int) -> list[str]:
    return [f'c{i + 2}' for i in range(count)]


def _chosen_stages(chosen: Sequence[str] | None, count: int) -> list[str]:
    names = _stage_names(count)
    if chosen is None:
        return names[1:] or names
    for stage in chosen:
        if stage not in names:
            raise ValueError(_no_stage(stage, names))
    return [name for name in names if name in chosen]


def _no_stage(stage: str, names: Sequence[str]) -> str:
    return f'there is no stage {stage!r}. Choose from {", ".join(names)}'


def _span(stages: Sequence[str]) -> str:
    return ', '.join(stages)


def _fitted(block: Block, options: dict, channels: Sequence[int]) -> dict:
    """A divisor of all channels where the block's default is none."""
    if block.type not in _DIVISORS or not channels:
        return {}
    name, default, quotient = _DIVISORS[block.type]
    if name in options:
        return {}
    common = math.gcd(*channels)
    fits = [
        d
        for d in range(1, default + 1)
        if common % d == 0 and min(channels) // d >= quotient
    ]
    return {name: fits[-1]} if fits and fits[-1] != default else {}


def _outermost(names: Sequence[str], modules: dict[str, nn.Module]) -> list[str]:
    """The names that are in no other, where lists of modules do not count."""
    lists = (nn.ModuleList, nn.Identity)
    own = [name for name in names if not isinstance(modules[name], lists)]
    return [
        name for name in own if not any(name.startswith(f'{other}.') for other in own)
    ]
