"""Insertion of plugins anywhere in a model that is already built.

A plugin becomes a submodule of the module that it follows, and a forward hook there
runs it. So neither class nor names of what was there change, and whatever copies,
pickles, traces, compiles or distributes the model takes the plugin along.
"""

from dataclasses import dataclass

import torch
from mmcv.cnn import build_plugin_layer
from mmengine.model import ModuleList
from torch import nn

from ..registry import MODELS
from .channels import Probe, training_flags_kept
from .specs import Spec, chosen_names, hint, read_specs, where

# These run or count all of their submodules: a plugin among them would be one more.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def attach_plugins(module, specs, input_shape=None):
    """Put plugins behind submodules of a model: each then returns its output as the
    plugin makes it.

    Args:
        module (nn.Module): Any model, backbone or neck.
        specs (Sequence[dict]): What goes where; where several follow one module, they
            run in this order. Keys of each:

            - cfg (dict): The plugin's ``type`` and arguments without ``in_channels``,
              and ``postfix`` for its name, as in MMDetection's ``plugins``.
            - at (str): Regular expression that matches the whole name of each submodule
              to follow, as ``named_modules()`` has it; '' is the model itself.
            - blocks (str | Sequence[int]): Which of the matches in a stage (those whose
              names differ in the last number only, or that have the same parent if
              there is no number): 'last', or indices. Default: all.
        input_shape (Sequence | None): What to run the model on once, to learn the
            channels: (C, H, W), or one for each of the maps that it takes. Default:
            None, an image, or maps of the channels that a neck's ``in_channels`` lists.

    Returns:
        nn.Module: The same module. The plugin behind ``layer3.1`` is its submodule,
        named as in MMDetection: ``layer3.1.sac_block``. Behind a Sequential, whose
        submodules all run in it, the plugin stands beside it: ``layer3_sac_block``.
        A module that returns a tuple or list of maps gets a plugin for each.

    ``init_weights`` leaves the plugins' initial values as their classes set them, and
    loads those that a ``Pretrained`` checkpoint contains. What the model's ``train``
    freezes or keeps in evaluation mode includes the plugins in it. Code that replaces
    the module that a plugin follows (a norm, when SyncBN is converted to or norms are
    fused into convolutions) drops the plugin.

    Raises:
        ValueError: A spec is wrong, matches nothing or something that returns no maps,
            or its plugin cannot take the channels; the message says where and why.
            Nothing is attached then.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f'module must be an nn.Module, got {module!r}')
    specs = read_specs(specs)
    probe = Probe(module, input_shape)
    plan = [planned for spec in specs for planned in _planned(module, probe, spec)]
    _check_names(module, plan)
    with training_flags_kept(module):
        for p in plan:
            p.holder.add_module(p.name, p.plugin)
            beside = None if p.holder is p.follows else p.plugin
            p.follows.register_forward_hook(_RunPlugin(p.name, beside))
        module.train(module.training)  # it may freeze parts: their plugins, too
    _keep_through_init_weights(module, {p.plugin: p.follows for p in plan})
    return module


@MODELS.register_module()
def Plugged(model, plugins, input_shape=None, **settings):
    """Build a model, backbone or neck with plugins in it, in a config::

        backbone=dict(
            type='prm_mmdet.Plugged',
            model=dict(type='mmdet.CSPNeXt', ...),
            plugins=[dict(cfg=dict(type='prm_mmdet.SAC'), at=r'stage[2-4]\\.1')],
        )

    Args:
        model (dict): Config of the model.
        plugins (Sequence[dict]): As the ``specs`` of :func:`attach_plugins`.
        input_shape (Sequence | None): As there. Default: None.
        settings: More of the model's, where ``model`` has none of the name: a detector
            gives its heads ``train_cfg`` and ``test_cfg`` so.

    Returns:
        nn.Module: The model itself.

    Raises:
        ValueError: As :func:`attach_plugins`; or ``init_cfg`` is given and ``model``
            has its own.
    """
    if settings.get('init_cfg') and model.get('init_cfg'):
        raise ValueError(
            f'init_cfg={settings["init_cfg"]} stands beside model, which has '
            f'init_cfg={model["init_cfg"]}: set model.init_cfg'
        )
    model = MODELS.build(model, default_args=settings)
    return attach_plugins(model, plugins, input_shape)


@dataclass(frozen=True)
class _Planned:
    spec: Spec
    at: str  # the name of the module that the plugin follows
    follows: nn.Module
    holder: nn.Module
    name: str
    plugin: nn.Module


def _planned(module, probe, spec):
    """Build the plugins of a spec."""
    modules = dict(module.named_modules())
    for at in chosen_names(spec, modules, probe):
        follows = modules[at]
        try:
            levels = probe.levels(at, follows)
            holder, prefix = _holder(modules, at)
            abbr, plugin = _build(spec, levels)
        except ValueError as error:
            raise ValueError(
                f'{spec.label}: {where(at)} of {probe.name}: {error}'
                + ('' if at in probe.names_of_maps() else hint(spec, modules, probe))
            ) from error
        name = '_'.join([*prefix, abbr])
        yield _Planned(spec, at, follows, holder, name, plugin)


def _holder(modules, name):
    """The module that a plugin becomes a submodule of: the one that it follows, or if
    that is a container the nearest around it, and names from there."""
    prefix = []
    while isinstance(modules[name], _CONTAINERS):
        if not name:
            raise ValueError(
                'a container has no place for a plugin beside it; append the plugin to '
                'it, or name a module in it'
            )
        name, _, last = name.rpartition('.')
        prefix.insert(0, last)
    return modules[name], prefix


def _build(spec, levels):
    if isinstance(levels, tuple):
        built = [_build(spec, level) for level in levels]
        return built[0][0], ModuleList(plugin for _, plugin in built)
    cfg = dict(spec.options, type=spec.plugin)
    try:
        name, plugin = build_plugin_layer(
            cfg, spec.postfix, in_channels=levels.channels
        )
    except Exception as error:  # whatever a plugin raises on unfit options
        reason = str(error)
        if spec.plugin.__name__ not in reason:
            reason = f'{spec.plugin.__name__}: {reason or type(error).__name__}'
        raise ValueError(f'{levels.channels} channels: {reason}') from error
    return name, plugin.to(levels.device, levels.dtype)


def _check_names(module, plan):
    taken = set()
    for p in plan:
        if hasattr(p.holder, p.name) or (p.holder, p.name) in taken:
            beside = '' if p.holder is p.follows else ' beside it'
            raise ValueError(
                f'{p.spec.label}: {where(p.at)} of {type(module).__name__} has a '
                f"{p.name!r}{beside} already; give the plugin's cfg a postfix, such as "
                "postfix='_2'"
            )
        taken.add((p.holder, p.name))


class _RunPlugin:
    """A forward hook that runs a plugin on a module's output.

    An object and not a function, so that it can be pickled, and a copy of the model
    runs the copy's plugin.

    Args:
        name (str): The module's submodule that is the plugin.
        beside (nn.Module | None): The plugin, if it is not in the module.
    """

    def __init__(self, name, beside):
        self.name = name
        self.beside = beside

    def __call__(self, module, inputs, output):
        plugin = getattr(module, self.name) if self.beside is None else self.beside
        if isinstance(output, torch.Tensor):
            return plugin(output)
        if len(output) != len(plugin):
            raise ValueError(
                f'{type(module).__name__} returned {len(output)} maps, but '
                f'{self.name!r} was attached when it returned {len(plugin)}; attach it '
                'to a module that returns as many in training as in inference'
            )
        return type(output)(p(x) for p, x in zip(plugin, output))


def has_plugins(module):
    """Whether :func:`attach_plugins` put one behind a module, or something in it."""
    hooks = (hook for m in module.modules() for hook in m._forward_hooks.values())
    return any(isinstance(hook, _RunPlugin) for hook in hooks)


def _keep_through_init_weights(module, plugins):
    if not hasattr(module, 'init_weights'):
        return
    if not isinstance(module.init_weights, _InitWeights):
        module.init_weights = _InitWeights(module)
    module.init_weights.plugins.update(plugins)


class _InitWeights:
    """A model's ``init_weights`` that leaves plugins as they were built.

    A model's ``init_cfg`` is for its own layers: Kaiming's numbers in every convolution
    would spoil the zeros with which a plugin starts. MMEngine asks only plugins in
    modules of its own to restore them.

    Raises:
        ValueError: A module that a plugin follows has been replaced since.
    """

    def __init__(self, module):
        self.module = module
        self.plugins = {}  # to the modules that they follow

    def __call__(self):
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

        def restore(plugin):
            state = built.pop(plugin, None)
            if state is None:
                return
            plugin.load_state_dict(state)
            if hasattr(plugin, 'init_weights'):
                for m in plugin.modules():
                    m._is_init = False  # MMEngine's, which may have been here before
                plugin.init_weights()

        # Before a Pretrained checkpoint is loaded, else after all.
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
