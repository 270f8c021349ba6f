"""Plugins behind any submodule of a model that is already built.

A plugin becomes a submodule of the module that it follows. A forward hook of that
module runs the plugin, so the model's classes and names do not change. If the model is
copied, pickled, traced, compiled or distributed, the plugin is included.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn import build_plugin_layer
from mmengine.model import ModuleList
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..plugins.checks import GroupsError
from ..registry import MODELS
from .channels import (
    Level,
    Levels,
    Probe,
    in_words,
    run_as_in_inference,
    training_flags_kept,
)
from .specs import Spec, chosen_levels, chosen_names, hint, read_specs, where

# These classes run or count all of their submodules. So a plugin must not become a
# submodule of an object of these classes.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def attach_plugins(
    module: nn.Module, specs: Sequence[dict], input_shape: Sequence | None = None
) -> nn.Module:
    """Attach plugins to a model. A plugin runs on the output of a submodule.

    The submodule then returns the plugin's output instead of its own output. Attach
    plugins before you build an optimizer, a moving average or a distributed wrapper,
    which would otherwise miss the plugins' parameters.

    Args:
        module: Any model, backbone or neck.
        specs: Dicts, each with a plugin and the submodules that get this plugin. If a
            submodule gets several plugins, they run in the order of the dicts. Keys:

            - cfg (dict): The plugin's ``type`` and arguments without ``in_channels``,
              and ``postfix`` for its name, as in MMDetection's ``plugins``.
            - at (str): Regular expression. Submodules match if their whole name in
              ``named_modules()`` matches. The name of the model itself is ''.
            - blocks (str | Sequence[int]): Which matches in each stage get a plugin:
              'last', or indices. Names that differ only in their last number form a
              stage. Names without a number form a stage if they have the same parent.
              Default: all.
            - levels (Sequence[int]): Indices of the maps that get a plugin, if the
              submodule returns several maps. If the model does not use a map, its
              plugin is not trained, and distributed training fails. Default: all.
        input_shape: The model is run on an input of this shape, and then on a larger
            input, to find the channels of its maps. (C, H, W), or a list of shapes if
            the model takes several maps. Default: None. A neck gets maps with the
            channels in its list ``in_channels``, any other model gets an image.

    Returns:
        ``module`` itself. A SAC behind ``layer3.1`` becomes a submodule of ``layer3.1``
        and gets the name that MMDetection would give, ``layer3.1.sac_block``. But a
        Sequential runs all of its submodules. So a SAC behind a Sequential ``layer3``
        is placed beside ``layer3``, under the name ``layer3_sac_block``. A module that
        returns a tuple or list of maps gets one plugin for each map. Plugins get maps
        (B, C, H, W). Maps (B, H, W, C), as in Swin, are permuted for the plugin.

    ``init_weights`` leaves the plugins' initial values as their classes set them, and
    loads the plugins' weights that a ``Pretrained`` checkpoint contains. If the model's
    ``train`` freezes a part or keeps it in evaluation mode, this includes the plugins
    in that part. If other code replaces a module that a plugin follows (to convert
    norms to SyncBN, or to fuse norms into convolutions), the plugin is lost.

    Raises:
        ValueError: A spec is wrong, matches nothing, or matches a module that returns
            no maps. Or its plugin cannot take the channels, or changes a map's shape.
            The message says where and why. Nothing is attached then.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f'module must be an nn.Module, got {module!r}')
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        raise ValueError(
            f'module must not be a {type(module).__name__}, which would not '
            'synchronise the plugins; attach them to the model before you wrap it'
        )
    # If torch.compile wrapped the model, ``_orig_mod`` is the model itself.
    model = getattr(module, '_orig_mod', module)
    read = read_specs(specs)
    probe = Probe(model, input_shape)
    plan = [planned for spec in read for planned in _planned(model, probe, spec)]
    _check_names(model, plan)
    _attach(model, plan)
    if 'torch._dynamo' in sys.modules:
        # Code that is already compiled would ignore the new hooks.
        torch._dynamo.reset()
    _keep_through_init_weights(model, {p.plugin: p.follows for p in plan})
    return module


@MODELS.register_module()
def Plugged(
    model: dict,
    plugins: Sequence[dict],
    input_shape: Sequence | None = None,
    **settings: Any,
) -> nn.Module:
    """A model, backbone or neck with plugins in it, built from a config::

        backbone=dict(
            type='prm_mmdet.Plugged',
            model=dict(type='mmdet.CSPNeXt', ...),
            plugins=[dict(cfg=dict(type='prm_mmdet.SAC'), at=r'stage[2-4]\\.1')],
        )

    Args:
        model: Config of the model.
        plugins: The plugins and their places, see ``specs`` of :func:`attach_plugins`.
        input_shape: Shape of an example input, see :func:`attach_plugins`.
            Default: None.
        settings: Defaults for settings that ``model`` does not have. A detector passes
            ``train_cfg`` and ``test_cfg`` to its heads in this way.

    Returns:
        The built model, not a wrapper around the model.

    Raises:
        ValueError: The plugins cannot be attached, see :func:`attach_plugins`. Or both
            ``settings`` and ``model`` have an ``init_cfg``.
    """
    if settings.get('init_cfg') and model.get('init_cfg'):
        raise ValueError(
            f'init_cfg={settings["init_cfg"]} is given beside model, which has '
            f'init_cfg={model["init_cfg"]}: set model.init_cfg alone'
        )
    built = MODELS.build(model, default_args=settings)
    return attach_plugins(built, plugins, input_shape)


@dataclass(frozen=True)
class _Planned:
    spec: Spec
    at: str  # name of the module whose output the plugin gets
    follows: nn.Module  # the module whose output the plugin gets
    holder: nn.Module  # the module that gets the plugin as a submodule
    name: str
    plugin: nn.Module
    channels_last: tuple[bool, ...]  # for each map: whether channels are its last axis


def _planned(model: nn.Module, probe: Probe, spec: Spec) -> Iterator[_Planned]:
    """Build the plugins of a spec (one dict of ``plugins``) without attaching them."""
    modules = dict(model.named_modules())
    found: dict[str, Levels] = {}
    for at in chosen_names(spec, modules, probe):
        try:
            found[at] = probe.levels(at, modules[at])
        except ValueError as error:
            advice = hint(spec, modules, probe)
            raise _refused(spec, at, probe, f'{error}{advice}') from error
    channels = sorted({level.channels for at in found for level in _listed(found[at])})
    for at, levels in found.items():
        try:
            holder, prefix = _holder(modules, at, probe)
            abbr, plugin = _build(spec, levels)
        except GroupsError as error:
            reason = f'{error.in_channels} channels: {error.for_all(channels)}'
            raise _refused(spec, at, probe, reason) from error
        except ValueError as error:
            raise _refused(spec, at, probe, f'{error}') from error
        last = tuple(level.axis == 3 for level in _listed(levels))
        name = '_'.join([*prefix, abbr])
        yield _Planned(spec, at, modules[at], holder, name, plugin, last)


def _refused(spec: Spec, at: str, probe: Probe, reason: str) -> ValueError:
    return ValueError(f'{spec.label}: {where(at)} of {probe.name}: {reason}')


def _listed(levels: Levels) -> tuple:
    return levels if isinstance(levels, tuple) else (levels,)


def _holder(
    modules: dict[str, nn.Module], name: str, probe: Probe
) -> tuple[nn.Module, list[str]]:
    """The module that gets a plugin as a submodule, and prefixes of the plugin's name.

    This is the module ``name``. If it is a container, such as Sequential, the nearest
    module around it that is no container gets the plugin. The names of the containers
    are then the prefixes.
    """
    prefix: list[str] = []
    outer, around = name, f'{name}.' if name else ''
    while isinstance(modules[outer], _CONTAINERS):
        if not outer:
            maps = [
                inner
                for inner in _last_in_containers(modules, '')
                if inner in probe.names_of_maps() and f'{inner}.'.startswith(around)
            ]
            instead = f', such as {", ".join(map(repr, maps[-4:]))}' if maps else ''
            raise ValueError(
                f'{type(modules[""]).__name__} runs all of its submodules, so a plugin '
                'cannot become one of them; name a module that is no container'
                f'{instead}'
            )
        outer, _, last = outer.rpartition('.')
        prefix.insert(0, last)
    return modules[outer], prefix


def _last_in_containers(modules: dict[str, nn.Module], name: str) -> Iterator[str]:
    """Names of a container's submodules. If a submodule is a Sequential, its own last
    submodule is named instead, which returns the same output. Other containers are
    left out."""
    for child, _ in modules[name].named_children():
        inner = f'{name}.{child}' if name else child
        if not isinstance(modules.get(inner), _CONTAINERS):
            yield inner
        elif isinstance(modules[inner], nn.Sequential):
            yield from list(_last_in_containers(modules, inner))[-1:]


def _build(spec: Spec, levels: Levels) -> tuple[str, nn.Module]:
    """A plugin's name, and the plugin. If the module returns several maps, the second
    item is a ModuleList with a plugin, or an Identity, for each map."""
    chosen = chosen_levels(spec, levels)
    if not isinstance(levels, tuple):
        return _build_one(spec, levels)
    built = {i: _build_one(spec, levels[i]) for i in chosen}
    name = built[chosen[0]][0]
    plugins = [built[i][1] if i in built else nn.Identity() for i in range(len(levels))]
    return name, ModuleList(plugins)


def _build_one(spec: Spec, level: Level) -> tuple[str, nn.Module]:
    cfg = dict(spec.options, type=spec.plugin)
    x = torch.zeros(
        1, level.channels, *level.size, device=level.device, dtype=level.dtype
    )
    try:
        name, plugin = build_plugin_layer(cfg, spec.postfix, in_channels=level.channels)
        plugin.to(level.device, level.dtype)
        with torch.no_grad():
            y = run_as_in_inference(plugin, x)
        if not isinstance(y, torch.Tensor) or y.shape != x.shape:
            raise ValueError(
                f'a plugin has to keep the shape of its map, but it returns '
                f'{in_words(y)} for {in_words(x)}'
            )
    except GroupsError:
        raise
    except Exception as error:
        # If options do not fit, a plugin may raise any exception.
        reason = str(error)
        if spec.plugin.__name__ not in reason:
            reason = f'{spec.plugin.__name__}: {reason or type(error).__name__}'
        raise ValueError(f'{level.channels} channels: {reason}') from error
    return name, plugin


def _check_names(model: nn.Module, plan: list[_Planned]) -> None:
    taken = set()
    for p in plan:
        if hasattr(p.holder, p.name) or (p.holder, p.name) in taken:
            beside = '' if p.holder is p.follows else ' beside it'
            raise ValueError(
                f'{p.spec.label}: {where(p.at)} of {type(model).__name__} has a '
                f"{p.name!r}{beside} already; give the plugin's cfg a postfix, such as "
                "postfix='_2'"
            )
        taken.add((p.holder, p.name))


def _attach(model: nn.Module, plan: list[_Planned]) -> None:
    """Add the plugins. If the model's ``train`` raises, remove them again."""
    handles = []
    try:
        with training_flags_kept(model):
            for p in plan:
                p.holder.add_module(p.name, p.plugin)
                beside = None if p.holder is p.follows else p.plugin
                hook = _RunPlugin(p.name, beside, p.channels_last)
                handles.append(p.follows.register_forward_hook(hook))
            # If the model's ``train`` freezes a part of the model, this call also
            # freezes the new plugins in that part.
            model.train(model.training)
    except BaseException:
        for handle in handles:
            handle.remove()
        for p in plan:
            p.holder._modules.pop(p.name, None)
        raise


@dataclass(eq=False)
class _RunPlugin:
    """A forward hook that runs a plugin on a module's output.

    This is an object and not a nested function, which could not be pickled. In a copy
    of the model, a nested function would run the original plugin, not the copied one.
    """

    name: str  # name of the plugin as a submodule
    # The plugin, or None if the plugin is a submodule of the module that it follows.
    beside: nn.Module | None
    # For each map: whether channels are its last axis.
    channels_last: tuple[bool, ...]

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        plugin: Any = self.beside
        if plugin is None:
            plugin = getattr(module, self.name)
        if isinstance(output, torch.Tensor):
            return _run(plugin, output, self.channels_last[0])
        if len(output) != len(plugin):
            raise ValueError(
                f'{type(module).__name__} returned {len(output)} maps, but '
                f'{self.name!r} was attached when it returned {len(plugin)}; attach it '
                'to a module that returns as many in training as in inference'
            )
        each = zip(plugin, output, self.channels_last)
        return type(output)(_run(p, x, last) for p, x, last in each)


def _run(plugin: Callable, x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    if not channels_last:
        return plugin(x)
    # The result is contiguous, because modules after the plugin may call view().
    return plugin(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


def has_plugins(module: nn.Module) -> bool:
    """Whether :func:`attach_plugins` put a plugin behind a module or inside it."""
    hooks = (hook for m in module.modules() for hook in m._forward_hooks.values())
    return any(isinstance(hook, _RunPlugin) for hook in hooks)


def _keep_through_init_weights(
    module: Any, plugins: dict[nn.Module, nn.Module]
) -> None:
    if not hasattr(module, 'init_weights'):
        return
    if not isinstance(module.init_weights, _InitWeights):
        module.init_weights = _InitWeights(module)
    module.init_weights.plugins.update(plugins)


class _InitWeights:
    """A model's ``init_weights`` that leaves plugins as they were built.

    A model's ``init_cfg`` is for its own layers. For example, Kaiming initialisation of
    all convolutions would overwrite the zeros with which a plugin starts. MMEngine
    calls a plugin's ``init_weights`` only inside an MMEngine module, so this class
    calls the plugin's ``init_weights`` itself.
    """

    def __init__(self, module: Any):
        self.module = module
        # Maps each plugin to the module that it follows.
        self.plugins: dict[nn.Module, nn.Module] = {}

    def __call__(self) -> None:
        present = set(self.module.modules())
        for plugin, follows in self.plugins.items():
            if follows not in present:
                raise ValueError(
                    f'{type(self.module).__name__} has lost a plugin: the '
                    f'{type(follows).__name__} before a {type(plugin).__name__} was '
                    "replaced; for SyncBN, set norm_cfg=dict(type='SyncBN') instead of "
                    'converting the model'
                )
        built = {
            plugin: {k: v.clone() for k, v in plugin.state_dict().items()}
            for plugin in self.plugins
        }

        def restore(plugin: Any) -> None:
            state = built.pop(plugin, None)
            if state is None:
                return
            plugin.load_state_dict(state)
            if hasattr(plugin, 'init_weights'):
                for m in plugin.modules():
                    # If this flag is true, MMEngine skips init_weights.
                    m._is_init = False
                plugin.init_weights()

        # Restore a plugin's values just before a Pretrained checkpoint is loaded, so
        # that the checkpoint can overwrite these values. Without a checkpoint, restore
        # the values at the end.
        handles = [
            plugin._register_load_state_dict_pre_hook(
                lambda *_, plugin=plugin: restore(plugin)
            )
            for plugin in self.plugins
        ]
        try:
            type(self.module).init_weights(self.module)
        finally:
            for handle in handles:
                handle.remove()
        for plugin in self.plugins:
            restore(plugin)
