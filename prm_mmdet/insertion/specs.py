"""What goes where: reading the specs of :func:`prm_mmdet.attach_plugins`, and finding
the modules that they name."""

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.registry import MODELS

from .channels import is_list


@dataclass(frozen=True)
class Spec:
    """One entry of ``plugins``, checked."""

    label: str  # 'plugins[0]'
    plugin: type
    options: dict
    postfix: str
    at: str
    blocks: Sequence  # of indices; None for all


def read_specs(specs):
    """Check all that can be checked without a model.

    Args:
        specs (Sequence[dict]): As :func:`prm_mmdet.attach_plugins` takes them.

    Returns:
        list[Spec]: The same, with each plugin's class in place of its name.

    Raises:
        ValueError: Something in them is wrong; the message says in which and where.
    """
    if isinstance(specs, dict):
        raise ValueError(f'plugins must be a list; put the dict into one: [{specs}]')
    if not is_list(specs):
        raise ValueError(
            f'plugins must be a list of dicts with cfg and at, got {specs!r}'
        )
    return [_read(f'plugins[{i}]', spec) for i, spec in enumerate(specs)]


def _read(label, spec):
    if not isinstance(spec, dict) or not {'cfg', 'at'} <= set(spec):
        raise ValueError(f'{label}: must be a dict with cfg and at, got {spec!r}')
    if unknown := set(spec) - {'cfg', 'at', 'blocks'}:
        raise ValueError(
            f'{label}: unknown {", ".join(sorted(map(str, unknown)))}; cfg, at and '
            'blocks are known'
        )
    at, blocks = spec['at'], spec.get('blocks')
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
    indices = is_list(blocks) and all(type(i) is int for i in blocks)
    if blocks is not None and not (indices and blocks):
        raise ValueError(
            f"{label}: blocks must be 'last' or a list of indices, got {blocks!r}"
        )
    try:
        return Spec(label, *_read_cfg(spec['cfg']), at, blocks)
    except ValueError as error:
        raise ValueError(f'{label}, at={at!r}: {error}') from None


def _read_cfg(cfg):
    """A plugin's class, options and postfix."""
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise ValueError(
            f"cfg must be a dict with a type, such as dict(type='prm_mmdet.SAC'), got "
            f'{cfg!r}'
        )
    options = dict(cfg)
    plugin = _plugin_class(options.pop('type'))
    postfix = str(options.pop('postfix', ''))
    if '.' in postfix:
        raise ValueError(f'postfix={postfix!r} must not contain a dot')
    if 'in_channels' in options:
        raise ValueError('in_channels is found by itself; leave it out of cfg')
    signature = inspect.signature(plugin)
    try:
        signature.bind(in_channels=0, **options)
    except TypeError as error:
        accepted = [n for n in signature.parameters if n not in ('self', 'in_channels')]
        raise ValueError(
            f'{plugin.__name__}: {error}; its options are '
            f'{", ".join([*accepted, "postfix"])}'
        ) from None
    return plugin, options, postfix


def _plugin_class(kind):
    """A plugin's class, from its name in the registry or itself."""
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(None) as registry:
            try:
                plugin = registry.get(kind)
            except RuntimeError:  # what it raises for most names that it has not
                plugin = None
            near = [] if plugin else _near_types(kind, registry)
        if plugin is None:
            hint = f'; near it: {", ".join(near)}' if near else ''
            raise ValueError(f'type={kind!r} is not in the registry{hint}')
        kind = plugin
    if not inspect.isclass(kind):
        raise ValueError(f'type must be a class or the name of one, got {kind!r}')
    return kind


def _near_types(kind, registry):
    """Registered names like a wrong one; those of its scope if there are any."""
    names = [*registry.module_dict, *registry.root.module_dict]
    for scope, child in registry.root.children.items():
        names += [f'{scope}.{name}' for name in child.module_dict]
    scope, dot, last = kind.rpartition('.')
    if own := [name for name in names if dot and name.startswith(scope + dot)]:
        names = own
    lasts = {}
    for name in dict.fromkeys(names):
        lasts.setdefault(name.rpartition('.')[2].lower(), []).append(name)
    near = difflib.get_close_matches(last.lower(), lasts, n=3)
    return [name for last in near for name in lasts[last]]


def chosen_names(spec, modules, probe):
    """Names of the submodules that a spec matches and picks.

    Args:
        spec (Spec): The spec.
        modules (dict[str, nn.Module]): The model's ``named_modules()``.
        probe (Probe): What they return.

    Raises:
        ValueError: There are none, or one is in another, or ``blocks`` is out of range.
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
                r'match one level, with [^.]+ or \d+ for .* (if both are meant, in a '
                'spec each)'
            )
    if blocks is None:
        return names
    stages = {}
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


def _stage(name):
    """'layer2.*.bn2' for 'layer2.0.bn2'; the parent's name where there is no number."""
    parts = name.split('.')
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return name.rpartition('.')[0]
    parts[numbers[-1]] = '*'
    return '.'.join(parts)


def where(name):
    """A submodule's name, for a message."""
    return repr(name) if name else "'' (the model itself)"


def hint(spec, modules, probe):
    """Names that exist, near to what a spec asked for. Of the modules that return maps
    those with weights: nobody looks for the padding or a dropout."""
    known = [
        name
        for name in probe.names_of_maps()
        if next(modules[name].parameters(), None) is not None
    ]
    near = difflib.get_close_matches(spec.at.replace('\\', ''), known, n=5, cutoff=0.4)
    near = near or [name for name in known if name.count('.') < 1][:8]
    near = ['', *near] if '' in known and '' not in near else near
    return f'; maps are returned by {", ".join(map(where, near))}' if near else ''
