"""Load checkpoints without blocks into a network with blocks, or rewrite such
checkpoints for the network. The network then computes the same as without blocks."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from torch import nn

from ..files.checkpoints import (
    compare_keys,
    noting_differences,
    read_state_dict,
    write_checkpoint,
)
from ..registry import WEIGHT_INITIALIZERS
from .attach import Plugged
from .preservation import preserve


@WEIGHT_INITIALIZERS.register_module('PreservedPretrained')
class PreservedPretrainedInit(PretrainedInit):
    """``Pretrained`` for weights that were trained before the network had blocks. The
    network computes the same as without blocks, see :func:`preserve`::

        init_cfg=dict(
            type='prm_mmdet.PreservedPretrained', checkpoint='x.pth', prefix='backbone.'
        )

    A line is logged for each block, as a warning if the block changes the network. If
    the checkpoint has the blocks' weights, it is loaded without scaling. A later
    ``load_from``, or a ``Pretrained`` of an outer model, overwrites these weights. Swin
    and PVT ignore the type in ``init_cfg`` and load their checkpoint themselves. For
    such networks, use :func:`adapt_checkpoint`.

    Args:
        checkpoint (str): File or address, as in ``Pretrained``.
        prefix (str | None): Load only the weights whose names begin with this prefix.
            Default: None, all weights.
        map_location (str): Device to load the weights to. Default: 'cpu'.

    Raises:
        ValueError: Another entry of ``init_cfg`` would overwrite the weights.
    """

    def __call__(self, module: nn.Module) -> None:
        cfgs = getattr(module, 'init_cfg', None)
        types = (
            [f'{c["type"]}' for c in cfgs] if isinstance(cfgs, (list, tuple)) else []
        )
        ours = [i for i, t in enumerate(types) if 'PreservedPretrained' in t]
        if ours and (ours != [len(types) - 1] or 'Pretrained' in types):
            raise ValueError(
                f'init_cfg of {type(module).__name__} has {", ".join(types)}, of which '
                'others overwrite what PreservedPretrained loads; put it last, without '
                'a Pretrained'
            )
        # For types other than Pretrained, MMEngine initialises submodules after this
        # call, and would overwrite the loaded weights. So initialise submodules here.
        child: Any
        for child in module.children():
            if hasattr(child, 'init_weights') and not getattr(child, 'is_init', False):
                child.init_weights()
                child.is_init = True
        with noting_differences(module) as found:
            super().__call__(module)
        missing = [*found.missing, *found.misshapen]
        for outcome in preserve(module, missing):
            level = logging.WARNING if outcome.left else logging.INFO
            print_log(f'{type(module).__name__}: {outcome}', 'current', level)


@dataclass(frozen=True)
class Adapted:
    """Result of :func:`adapt_checkpoint`.

    Attributes:
        outcomes (list[Outcome]): What was done about each block, see :func:`preserve`.
        part (str): What the checkpoint holds, 'network' or 'backbone'.
        others (list[str]): Keys of weights outside of this part. Such weights are
            copied unchecked.
        rounding (str): The type of the checkpoint's weights, such as 'float16', if
            scaled weights were rounded to this type. Else ''.
    """

    outcomes: list
    part: str
    others: list
    rounding: str

    def __str__(self) -> str:
        changed = sum(outcome.left for outcome in self.outcomes)
        claim = f'{len(self.outcomes)} blocks, '
        if changed:
            claim += f'{changed} of them change what the {self.part} computes'
        else:
            claim += f'the {self.part} computes what it did'
            claim += f', to the rounding of {self.rounding}' * bool(self.rounding)
        if self.part == 'backbone':
            claim += "; taken for a backbone's checkpoint"
            if self.others:
                claim += f', {_listed(self.others)} not looked at'
        return claim


def adapt_checkpoint(cfg: Config, source: str, out: str) -> Adapted:
    """Rewrite a checkpoint for a model with blocks. With the new weights, the model
    computes the same as without blocks. ``load_from`` and ``Pretrained`` take the file.

    Args:
        cfg (Config): A complete config, whose model has the blocks.
        source (str): The checkpoint: a file, address or name, as in ``init_cfg``. It
            holds the weights of the whole detector, or of the backbone alone. Keys of a
            backbone may begin with ``backbone.``. Weights of a classifier's head are
            copied unchanged.
        out (str): File to write, with the weights alone.

    Returns:
        Adapted: What was done. ``str(adapted)`` says whether the network computes the
        same as without blocks.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: The config has no model. Or the checkpoint is not of this model
            without its blocks, holds more than weights, or is ``out``. If keys do not
            fit, the message names some of them.
    """
    if 'model' not in cfg:
        raise ValueError('the config has no model; give that of a detector')
    weights = read_state_dict(source)
    register_all_modules()
    with torch.random.fork_rng([]):
        # PRM starts with a random theta. With a fixed seed, the file is the same each
        # time.
        torch.manual_seed(0)
        # Build from a copy, because DETR's constructor changes the config that it gets.
        model = MODELS.build(copy.deepcopy(cfg.model))
        plain = MODELS.build(_without_plugins(cfg.model))
    own, prefix = dict(weights), _backbone_prefix(weights, plain)
    if prefix is None:
        part, prefix = 'network', ''
    else:
        part, model, plain = 'backbone', model.backbone, plain.backbone
        known = {k.partition('.')[0] for k in model.state_dict()}
        own = {
            k.removeprefix(prefix): v
            for k, v in weights.items()
            if k.startswith(prefix) and k[len(prefix) :].partition('.')[0] in known
        }
    _check_keys(source, own, plain.state_dict(), model.state_dict())
    missing = model.load_state_dict(own, strict=False).missing_keys
    loaded = copy.deepcopy(model.state_dict())
    outcomes = preserve(model, missing)
    types = {v.dtype for v in own.values() if v.is_floating_point()}
    rounding = set()
    for key, value in model.state_dict().items():
        kept = value
        if key in own:
            if torch.equal(value, loaded[key]):
                continue
            kept = value.to(own[key].dtype)
            if not torch.equal(kept.to(value.dtype), value):
                rounding.add(f'{kept.dtype}'.removeprefix('torch.'))
        elif value.is_floating_point() and len(types) == 1:
            kept = value.to(*types)
        weights[f'{prefix}{key}'] = kept
    write_checkpoint(dict(state_dict=weights), out, source)
    others = [k for k in weights if k.removeprefix(prefix) not in model.state_dict()]
    return Adapted(outcomes, part, others, ', '.join(sorted(rounding)))


def _backbone_prefix(weights, plain):
    """Prefix of the weights' keys, 'backbone.' or '', if the weights belong to a
    backbone alone. Else None."""
    inside = [k for k in plain.state_dict() if k.startswith('backbone.')]
    others = set(plain.state_dict()) - set(inside)
    if not inside or any(k in others for k in weights):
        return None
    return 'backbone.' if any(k.startswith('backbone.') for k in weights) else ''


def _without_plugins(cfg):
    """A copy of a model's config, without the blocks."""
    if isinstance(cfg, dict):
        if cfg.get('type') in ('prm_mmdet.Plugged', Plugged):
            return _without_plugins(cfg['model'])
        return ConfigDict(
            (k, _without_plugins(v)) for k, v in cfg.items() if k != 'plugins'
        )
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(map(_without_plugins, cfg))
    return cfg


def _check_keys(source, weights, plain, with_blocks):
    """Raise ValueError unless the weights fit the model without its blocks."""
    found = compare_keys(weights, with_blocks)
    differences = replace(found, missing=compare_keys(weights, plain).missing)
    if differences:
        raise ValueError(
            f"{source} does not hold this model's weights without its blocks: "
            f'{differences}. Give a checkpoint and a config of the same network'
        )


def _listed(names):
    return ', '.join(names[:5]) + f', ... ({len(names)})' * (len(names) > 5)
