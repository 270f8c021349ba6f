"""Insertion of plugins anywhere in a model that is already built.

A plugin becomes a submodule of the module that it follows, and a forward hook there
runs it. So neither class nor names of what was there change, and whatever copies,
pickles, traces, compiles or distributes the model takes the plugin along.
"""

import difflib
import re

import torch
from mmcv.cnn import build_plugin_layer
from mmengine.model import ModuleList
from torch import nn

from ..registry import MODELS
from .probe import Probe, training_flags_kept

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
    probe = Probe(module, input_shape)
    plan = []
    for index, spec in enumerate(specs):
        plan += _planned(module, probe, f'plugins[{index}]', spec)
    _check_names(module, plan)
    with training_flags_kept(module):
        for follows, holder, name, plugin in plan:
            holder.add_module(name, plugin)
            beside = None if holder is follows else plugin
            follows.register_forward_hook(_RunPlugin(name, beside))
        module.train(module.training)  # it may freeze parts: their plugins, too
    _keep_through_init_weights(module, {plugin: m for m, *_, plugin in plan})
    return module


@MODELS.register_module()
def Plugged(model, plugins, input_shape=None):
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

    Returns:
        nn.Module: The model itself.

    Raises:
        ValueError: As :func:`attach_plugins`.
    """
    return attach_plugins(MODELS.build(model), plugins, input_shape)


def _planned(module, probe, label, spec):
    """Build the plugins of a spec: (module it follows, its holder, name, plugin)."""
    if not isinstance(spec, dict) or not {'cfg', 'at'} <= set(spec):
        raise ValueError(f'{label}: must be a dict with cfg and at, got {spec!r}')
    if unknown := set(spec) - {'cfg', 'at', 'blocks'}:
        raise ValueError(
            f'{label}: unknown {", ".join(sorted(unknown))}; cfg, at and blocks are '
            'known'
        )
    modules = dict(module.named_modules())
    for name in _chosen(modules, probe, label, spec['at'], spec.get('blocks')):
        follows = modules[name]
        try:
            levels = probe.levels(name, follows)
            holder, prefix = _holder(modules, name)
            abbr, plugin = _build(spec['cfg'], levels)
        except ValueError as error:
            raise ValueError(
                f'{label}: {_where(name)} of {probe.name}: {error}'
                + ('' if name in probe.names_of_maps() else _hint(probe, spec['at']))
            ) from error
        yield follows, holder, '_'.join([*prefix, abbr]), plugin


def _chosen(modules, probe, label, at, blocks):
    """Names that a spec matches and picks."""
    try:
        names = [name for name in modules if re.fullmatch(at, name)]
    except re.error as error:
        raise ValueError(
            f'{label}: at={at!r} is no regular expression: {error}'
        ) from None
    if not names:
        raise ValueError(
            f'{label}: at={at!r} matches no submodule of {probe.name}; it has to match '
            f'a whole name{_hint(probe, at)}'
        )
    for outer in names:
        inner = [n for n in names if n != outer and n.startswith(outer and outer + '.')]
        if inner:
            raise ValueError(
                f'{label}: at={at!r} matches {_where(outer)} and {inner[0]!r} in it; '
                r'match one level, with [^.]+ or \d+ for .* (if both are meant, in a '
                'spec each)'
            )
    if blocks is None:
        return names
    stages = {}
    for name in names:
        stages.setdefault(_stage(name), []).append(name)
    if blocks == 'last':
        blocks = [-1]
    if isinstance(blocks, str) or not all(isinstance(i, int) for i in blocks):
        raise ValueError(
            f"{label}: blocks must be 'last' or a list of indices, got {blocks!r}"
        )
    try:
        return [n for s in stages.values() for n in dict.fromkeys(s[i] for i in blocks)]
    except IndexError:
        shortest = min(stages.values(), key=len)
        raise ValueError(
            f'{label}: blocks={list(blocks)} is out of range: a stage has '
            f'{len(shortest)} {"match" if len(shortest) == 1 else "matches"}, '
            f'{", ".join(shortest)}'
        ) from None


def _stage(name):
    """'layer2.*.bn2' for 'layer2.0.bn2'; the parent's name where there is no number."""
    parts = name.split('.')
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return name.rpartition('.')[0]
    parts[numbers[-1]] = '*'
    return '.'.join(parts)


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


def _build(cfg, levels):
    if isinstance(levels, tuple):
        built = [_build(cfg, level) for level in levels]
        return built[0][0], ModuleList(plugin for _, plugin in built)
    cfg = dict(cfg)
    postfix = cfg.pop('postfix', '')
    if '.' in f'{postfix}':
        raise ValueError(f'postfix={postfix!r} must not contain a dot')
    try:
        name, plugin = build_plugin_layer(cfg, postfix, in_channels=levels.channels)
    except ValueError as error:
        raise ValueError(f'{levels.channels} channels: {error}') from error
    return name, plugin.to(levels.device, levels.dtype)


def _check_names(module, plan):
    names = {m: name for name, m in module.named_modules()}
    taken = set()
    for _, holder, name, _ in plan:
        if hasattr(holder, name) or (holder, name) in taken:
            raise ValueError(
                f'{_where(names[holder])} of {type(module).__name__} has a {name!r} '
                "already; give the plugin's cfg a postfix, such as postfix='_2'"
            )
        taken.add((holder, name))


def _where(name):
    return repr(name) if name else "'' (the model itself)"


def _hint(probe, at):
    """Names that exist, near to what was asked for."""
    known = probe.names_of_maps()
    near = difflib.get_close_matches(at.replace('\\', ''), known, n=5, cutoff=0.4)
    near = near or [name for name in known if name.count('.') < 1][:8]
    near = ['', *near] if '' in known and '' not in near else near
    return f'; maps are returned by {", ".join(map(_where, near))}' if near else ''


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
