"""Check a model's plugin blocks: their options in the config, and their gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from mmcv.cnn import ConvModule
from mmdet.models import ResNet
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..insertion.specs import check_plugin
from .data_files import class_of, dicts_in
from .run_errors import RunError


def plugin_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the plugin blocks in a model, as a dict from module names to blocks."""
    # Plugin classes have the attribute ``_abbr_``. MMCV's ConvModule has it, too, but
    # is no plugin.
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, '_abbr_') and not isinstance(module, ConvModule)
    }


_POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')


def check_stages(cfg: Config) -> None:
    """Check the ``plugins`` of each ResNet in a config.

    If a plugin has ``stages``, it must have one entry for each stage of the ResNet. Its
    ``position`` must exist. The plugin's class must take all options of the plugin.

    Args:
        cfg: A complete config.

    Raises:
        RunError: The number of entries in ``stages`` or the position is wrong, or a
            plugin's class does not take the options.
    """
    for name, node in dicts_in('model', cfg.get('model')):
        kind = class_of(node, MODELS)
        if not isinstance(kind, type) or not issubclass(kind, ResNet):
            continue
        number = node.get('num_stages', 4)  # By default, a ResNet has 4 stages.
        for plugin in node.get('plugins') or ():
            stages = plugin.get('stages')
            if stages is not None and len(stages) != number:
                raise RunError(
                    f'{name}.plugins: stages={tuple(stages)} has {len(stages)} '
                    f'entries, but this {kind.__name__} has {number} stages. Give one '
                    'entry for each stage'
                )
            if plugin.get('position') not in _POSITIONS:
                raise RunError(
                    f'{name}.plugins: the position is {plugin.get("position")!r}, and '
                    f'must be one of {", ".join(_POSITIONS)}'
                )
            try:
                check_plugin(plugin.get('cfg') or {}, MODELS)
            except ValueError as error:
                raise RunError(f'{name}.plugins: {error}') from None


class GradientWatch:
    """Records which plugin blocks of a model get a gradient.

    Args:
        model: The model, or its wrapper for distributed training.
    """

    def __init__(self, model: Any) -> None:
        self._waiting: set[str] = set()
        self._frozen: list[str] = []
        self._handles = []
        wrapped = is_model_wrapper(model)
        for name, block in plugin_blocks(model.module if wrapped else model).items():
            parameters = list(block.parameters())
            trained = [p for p in parameters if p.requires_grad]
            if trained:
                self._waiting.add(name)
            elif parameters:
                self._frozen.append(name)
            for parameter in trained:
                note = functools.partial(self._note, name)
                self._handles.append(parameter.register_hook(note))

    def _note(self, name: str, gradient: Tensor) -> None:
        self._waiting.discard(name)

    def finish(self) -> Iterator[str]:
        """Stop recording gradients, and report the blocks that are not trained.

        Yields:
            A warning if blocks got no gradient, and a warning if blocks are frozen.
        """
        for handle in self._handles:
            handle.remove()
        if self._waiting:
            yield (
                f'{_some(self._waiting)} got no gradient in the first iteration: the '
                'loss does not depend on these blocks, so they are not trained, and '
                'distributed training stops with "Expected to have finished '
                'reduction". Leave their stages out of stages, or their maps out of '
                'levels (prm_mmdet.Plugged)'
            )
        if self._frozen:
            yield (
                f'{_some(self._frozen)} are frozen and keep their weights: start from '
                'weights that were trained with these blocks, lower frozen_stages, or '
                'leave their stages out of stages'
            )


def _some(names: Any) -> str:
    names = sorted(names)
    listed = ', '.join(names[:4]) + (', ...' if len(names) > 4 else '')
    return f'{len(names)} plugin blocks ({listed})'
