"""Put a block into any detector's config, at the place that its paper recommends."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from ..insertion import Plugged
from ..insertion.channels import run_as_in_inference, tensors
from ..insertion.specs import check_plugin
from ..plugins import SAC
from .blocks import Block

# Plugged is a wrapper that adds blocks to a network. In a config, its ``type`` is the
# registered name or the class.
_PLUGGED = ('prm_mmdet.Plugged', Plugged)
#: Places of blocks in backbones that have no ``plugins`` argument. A place is a pair.
#: The first part is a regular expression of module names. The second part says which of
#: the matching modules in a stage get the block. The digits of the chosen stages (1 for
#: c2 to 4 for c5) replace ``{}``. For c3, c4 and c5, the expression begins with
#: ``stage[234]``. This package's configs use the same places.
_KNOWN_PLACES = {
    'CSPNeXt': (r'stage[{}]\.\d+', 'last'),
    'CSPDarknet': (r'stage[{}]\.\d+', 'last'),
}
# In a ResNet of BasicBlocks, the block is placed behind ``bn2``, before the addition.
_BEFORE_ADDITION = (r'layer[{}]\.\d+\.bn2', None)
#: Options that must divide the number of channels. For each block, this dict has the
#: option's name, its default, and the smallest allowed quotient. The quotient is the
#: number of channels, divided by the option's value.
_DIVISORS = {
    'prm_mmdet.PRM': ('groups', 64, 1),
    'prm_mmdet.LCT': ('groups', 64, 2),
    'prm_mmdet.SGE': ('groups', 64, 1),
    'prm_mmdet.SE': ('reduction', 16, 1),
    'prm_mmdet.CBAM': ('reduction', 16, 1),
    'prm_mmdet.BAM': ('reduction', 16, 1),
    'prm_mmdet.DoubleAttention': ('reduction', 4, 1),
}
#: GC is MMCV's ContextBlock, whose ``ratio`` has no default. The papers use 1 / 16.
_REQUIRED = {'prm_mmdet.GC': dict(ratio=1 / 16)}
# To read the number of channels, ``place`` inserts a temporary SAC block. The name of
# the block's module has this postfix.
_POSTFIX = '_channels'


@dataclass(frozen=True)
class Placed:
    """A detector's config with a block in it."""

    model: dict  # the config of the whole detector
    where: str  # the place of the blocks, in words
    count: int  # number of blocks in the detector
    chosen: dict  # options whose default does not fit the channels, with fitting values


def place(model: dict, block: Block) -> Placed:
    """Put a block into a detector's config. ``model`` itself does not change.

    A backbone that takes ``plugins`` gets the block at ``block.position`` in c3 and all
    deeper stages. A ResNet of basic blocks gets the block behind ``bn2``, before the
    addition. CSPNeXt and CSPDarknet get the block at the end of each stage. In any
    other backbone, the block is applied to the output maps.

    Raises:
        ValueError: The detector has no backbone, or the block cannot be placed there.
    """
    whole = copy.deepcopy(model)
    # If a wrapper holds the detector, the backbone is in the inner config.
    holder = whole
    while 'backbone' not in holder and isinstance(holder.get('detector'), dict):
        holder = holder['detector']
    if not isinstance(holder.get('backbone'), dict):
        raise ValueError(
            "the config's model has no backbone, so that there is no place for a block"
        )
    backbone = holder['backbone']
    entry, where = _place_in(holder, block)
    # The block's options depend on the number of channels. To read this number, SAC is
    # inserted first, because SAC fits any number of channels.
    reader = dict(type='prm_mmdet.SAC', postfix=_POSTFIX)
    channels = [
        module.in_channels
        for name, module in _build(_with(backbone, reader, entry)).named_modules()
        if isinstance(module, SAC) and _POSTFIX in name
    ]
    options = {**_REQUIRED.get(block.type, {}), **block.options}
    chosen = _fitted(block, options, channels)
    cfg = dict(type=block.type, **options, **chosen)
    check_plugin(cfg, MODELS)
    holder['backbone'] = _with(backbone, cfg, entry)
    # If the options do not fit, this raises ValueError.
    _build(holder['backbone'])
    return Placed(whole, where, len(channels), chosen)


def _build(backbone: dict) -> Any:
    """Build a backbone without trained weights. PyTorch's random state does not
    change."""
    cfg = ConfigDict(copy.deepcopy(dict(backbone)))
    with torch.random.fork_rng([]):
        try:
            return MODELS.build(cfg)
        # If plugins do not fit, a backbone may raise any error. So catch all errors.
        except Exception as error:
            reason = str(error) or type(error).__name__
            if 'duplicate plugin' in reason:
                reason += (
                    '. The config has this block already; remove it from the config'
                )
            raise ValueError(reason) from error


def _with(backbone: dict, cfg: dict, entry: dict) -> dict:
    """A backbone's config with a block. ``cfg`` is the config of the block, and
    ``entry`` is its place. If ``entry`` has a position, the block is in the ``plugins``
    of the backbone. Otherwise it is in the ``plugins`` of the wrapper Plugged."""
    changed = holder = copy.deepcopy(dict(backbone))
    plugged = changed['type'] in _PLUGGED
    if 'position' in entry and plugged:
        holder = changed['model']
    elif 'position' not in entry and not plugged:
        changed = holder = dict(type=_PLUGGED[0], model=changed)
    holder['plugins'] = [*(holder.get('plugins') or []), dict(cfg=cfg, **entry)]
    return changed


def _place_in(detector: dict, block: Block) -> tuple[dict, str]:
    """The place of a block in a backbone, in two forms. The first is an entry of
    ``plugins`` without its ``cfg``. The second is a text for the user."""
    plain = _build(detector['backbone'])
    name = type(plain).__name__
    if block.at is not None:
        return dict(at=block.at), f'behind {block.at or "the output maps"} of {name}'
    layers = getattr(plain, 'block', None)
    if isinstance(layers, type) and issubclass(layers, BasicBlock):
        pattern, last = _BEFORE_ADDITION
    elif hasattr(plain, 'plugins') and hasattr(plain, 'make_stage_plugins'):
        names = [f'c{i + 2}' for i in range(plain.num_stages)]
        stages = _chosen(block.stages, names, names[1:] or names)
        flags = tuple(stage in stages for stage in names)
        words = f'plugins of {name}: {block.position}, {", ".join(stages)}'
        return dict(stages=flags, position=block.position), words
    elif name in _KNOWN_PLACES:
        pattern, last = _KNOWN_PLACES[name]
    else:
        return _behind_output_maps(detector, plain, block)
    stages = _chosen(block.stages, ['c2', 'c3', 'c4', 'c5'], ['c3', 'c4', 'c5'])
    at = pattern.format(''.join(str(int(stage[1:]) - 1) for stage in stages))
    entry = dict(at=at, blocks=last) if last else dict(at=at)
    which = f'the {last} of {at}' if last else at
    return entry, f'behind {which} of {name}: {", ".join(stages)}'


def _behind_output_maps(detector: dict, plain: Any, block: Block) -> tuple[dict, str]:
    name = type(plain).__name__
    size = 256
    try:
        with torch.no_grad():
            output = run_as_in_inference(plain, torch.rand(1, 3, size, size))
    # If the input does not fit, a model may raise any error. So catch all errors.
    except Exception as error:
        raise ValueError(
            f'{name} cannot be run on an image of {size} x {size} pixels ({error}), so '
            'that its output maps are not known; name a module with --at'
        ) from error
    strides = [size // max(1, m.shape[-2]) for m in tensors(output)]
    names = [f'c{stride.bit_length() - 1}' for stride in strides]
    neck = detector.get('neck') or {}
    first = neck.get('start_level', 0) if isinstance(neck, dict) else 0
    used = range(first, len(names))
    usual = [level for level in used if strides[level] >= 8] or used
    stages = _chosen(block.stages, names, [names[level] for level in usual])
    levels = [level for level in used if names[level] in stages]
    entry: dict = dict(at='')
    if len(levels) < len(names):
        entry['levels'] = levels
    words = ', '.join(names[level] for level in levels)
    return entry, f'behind the output maps of {name}: {words}'


def _chosen(
    stages: Sequence[str] | None, names: Sequence[str], default: Sequence[str]
) -> Sequence[str]:
    """The stages that a user chose, in the network's order, or else the default."""
    for stage in stages or ():
        if stage not in names:
            raise ValueError(
                f'there is no stage {stage!r}. Choose from {", ".join(names)}'
            )
    return [name for name in names if name in stages] if stages else default


def _fitted(block: Block, options: dict, channels: Sequence[int]) -> dict:
    """A value for the option that must divide the number of channels, as {name: value}.

    The result is empty if the block's default value fits, or if the user chose a value.
    """
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
