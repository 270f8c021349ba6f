"""Read specs of :func:`prm_mmdet.attach_plugins`, and find the modules for plugins."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.registry import MODELS, Registry
from torch import nn

from ..registry import near_names
from .channels import Levels, Probe, is_list

_KEYS = ('cfg', 'at', 'blocks', 'levels')


@dataclass(frozen=True)
class Spec:
    """One dict of a config's ``plugins``, after its keys and values were checked."""

    label: str  # name in messages, such as 'plugins[0]'
    plugin: type
    options: dict  # arguments of the plugin, without ``in_channels``
    postfix: str  # end of the plugin's name, such as '_2' in 'sac_block_2'
    at: str  # regular expression for names of submodules
    # Which of the matching submodules in each stage get a plugin: indices. None: all.
    blocks: Sequence[int] | None
    # Which of the maps that a submodule returns get a plugin: indices. None: all.
    levels: Sequence[int] | None


def read_specs(specs: Sequence[dict]) -> list[Spec]:
    """Read the dicts in ``plugins``, and check what can be checked without a model.

    Raises:
        ValueError: An entry is wrong. The message names the entry and the key.
    """
    if isinstance(specs, dict):
        raise ValueError(f'plugins must be a list; put the dict into one: [{specs}]')
    if not is_list(specs):
        raise ValueError(
            f'plugins must be a list of dicts with cfg and at, got {specs!r}'
        )
    return [_read(f'plugins[{i}]', spec) for i, spec in enumerate(specs)]


def _read(label: str, spec: Any) -> Spec:
    if not isinstance(spec, dict) or not {'cfg', 'at'} <= set(spec):
        raise ValueError(f'{label}: must be a dict with cfg and at, got {spec!r}')
    if unknown := set(spec) - set(_KEYS):
        raise ValueError(
            f'{label}: unknown {", ".join(sorted(map(str, unknown)))}; the known keys '
            f'are {", ".join(_KEYS)}'
        )
    at, blocks, levels = spec['at'], spec.get('blocks'), spec.get('levels')
    if not isinstance(at, str):
        raise ValueError(
            f"{label}: at must be a regular expression, such as 'layer[23]', got {at!r}"
        )
    try:
        re.compile(at)
    except re.error as error:
        raise ValueError(
            f'{label}: at={at!r} is no regular expression: {error}'
        ) from None
    if blocks == 'last':
        blocks = [-1]
    if blocks is not None and not _is_indices(blocks):
        raise ValueError(
            f"{label}: blocks must be 'last' or a list of indices, got {blocks!r}"
        )
    if levels is not None and not _is_indices(levels):
        raise ValueError(f'{label}: levels must be a list of indices, got {levels!r}')
    try:
        return Spec(label, *_read_cfg(spec['cfg']), at, blocks, levels)
    except ValueError as error:
        raise ValueError(f'{label}, at={at!r}: {error}') from None


def _is_indices(value: Any) -> bool:
    return is_list(value) and bool(value) and all(type(i) is int for i in value)


def _read_cfg(cfg: Any) -> tuple[type, dict, str]:
    """A plugin's class, options and postfix."""
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise ValueError(
            f"cfg must be a dict with a type, such as dict(type='prm_mmdet.SAC'), got "
            f'{cfg!r}'
        )
    options = dict(cfg)
    plugin = _plugin_class(options.pop('type'))
    postfix = options.pop('postfix', None)
    postfix = '' if postfix is None else str(postfix)
    if '.' in postfix:
        raise ValueError(f'postfix={postfix!r} must not contain a dot')
    if 'in_channels' in options:
        raise ValueError('in_channels is found by itself; leave it out of cfg')
    _check_options(plugin, options)
    return plugin, options, postfix


def check_plugin(cfg: dict, registry: Registry) -> None:
    """Raise ValueError if a plugin's class does not take the options in its config.

    If the class is not in the registry, the options are not checked.
    """
    kind = cfg.get('type')
    if isinstance(kind, str):
        with contextlib.suppress(KeyError, RuntimeError, ImportError):
            kind = registry.get(kind)
    if inspect.isclass(kind):
        names = cfg.keys() - {'type', 'postfix'}
        _check_options(kind, {name: cfg[name] for name in names})


def _check_options(plugin: type, options: dict) -> None:
    signature = inspect.signature(plugin)
    try:
        signature.bind(in_channels=0, **options)
    except TypeError as error:
        # This text is a part of Python's error message.
        unexpected = 'got an unexpected keyword argument'
        reason = str(error).replace(unexpected, 'has no option')
        accepted = [n for n in signature.parameters if n not in ('self', 'in_channels')]
        raise ValueError(
            f'{plugin.__name__} {reason}; its options are '
            f'{", ".join([*accepted, "postfix"])}'
        ) from None


def _plugin_class(kind: Any) -> type:
    """A plugin's class, from its name in the registry or from the class itself."""
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(None) as registry:
            try:
                plugin = registry.get(kind)
            except (KeyError, RuntimeError):  # The name is unknown.
                plugin = None
            near = [] if plugin else near_names(kind, registry)
        if plugin is None:
            hint = f'; near it: {", ".join(near)}' if near else ''
            raise ValueError(f'type={kind!r} is not in the registry{hint}')
        kind = plugin
    if not inspect.isclass(kind):
        raise ValueError(f'type must be a class or the name of one, got {kind!r}')
    return kind


def chosen_names(spec: Spec, modules: dict[str, nn.Module], probe: Probe) -> list[str]:
    """Names of the submodules that get a plugin, by ``at`` and ``blocks`` of a spec.

    Raises:
        ValueError: No name matches ``at``, or one matching submodule is inside another,
            or ``blocks`` is out of range.
    """
    label, at, blocks = spec.label, spec.at, spec.blocks
    names = [name for name in modules if re.fullmatch(at, name)]
    if not names:
        raise ValueError(
            f'{label}: at={at!r} matches no submodule of {probe.name}; it has to match '
            f'a whole name{hint(spec, modules, probe)}'
        )
    for outer in names:
        inner = [n for n in names if n != outer and n.startswith(outer and outer + '.')]
        if inner:
            raise ValueError(
                f'{label}: at={at!r} matches {where(outer)} and {inner[0]!r} in it; '
                r'match one level, with [^.]+ or \d+ for .* (if you mean both, write a '
                'spec for each)'
            )
    if blocks is None:
        return names
    stages: dict[str, list[str]] = {}
    for name in names:
        stages.setdefault(_stage(name), []).append(name)
    try:
        return [n for s in stages.values() for n in dict.fromkeys(s[i] for i in blocks)]
    except IndexError:
        shortest = min(stages.values(), key=len)
        raise ValueError(
            f'{label}: blocks={list(blocks)} is out of range: a stage has '
            f'{len(shortest)} {"match" if len(shortest) == 1 else "matches"}, '
            f'{", ".join(shortest)}'
        ) from None


def chosen_levels(spec: Spec, levels: Levels) -> Sequence[int]:
    """Indices of the maps that get a plugin.

    Raises:
        ValueError: ``levels`` of the spec is out of range, or the module returns a
            single map instead of a list.
    """
    if spec.levels is None:
        return range(len(levels)) if isinstance(levels, tuple) else [0]
    if not isinstance(levels, tuple):
        raise ValueError('levels chooses among several maps, but it returns one map')
    try:
        return [range(len(levels))[i] for i in spec.levels]
    except IndexError:
        raise ValueError(
            f'levels={list(spec.levels)} is out of range: it returns {len(levels)} '
            f'maps, 0 to {len(levels) - 1}'
        ) from None


def _stage(name: str) -> str:
    """The stage of a submodule, such as 'layer2.*.bn2' for 'layer2.0.bn2'. For a name
    without a number, the stage is the parent's name."""
    parts = name.split('.')
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return name.rpartition('.')[0]
    parts[numbers[-1]] = '*'
    return '.'.join(parts)


def where(name: str) -> str:
    """A submodule's name, for a message."""
    return repr(name) if name else "'' (the model itself)"


def hint(spec: Spec, modules: dict[str, nn.Module], probe: Probe) -> str:
    """The end of an error message: other modules that the user may have meant.

    These modules return feature maps, and their names are similar to the name in the
    spec. If no name is similar, top-level modules are listed. Modules without weights,
    such as dropout, are left out: few users look for them.
    """
    known = [
        name
        for name in probe.names_of_maps()
        if next(modules[name].parameters(), None) is not None
    ]
    near = difflib.get_close_matches(spec.at.replace('\\', ''), known, n=5, cutoff=0.4)
    near = near or [name for name in known if name.count('.') < 1][:8]
    near = ['', *near] if '' in known and '' not in near else near
    return f'; maps are returned by {", ".join(map(where, near))}' if near else ''
