"""The registries of this package, in the scope ``prm_mmdet``.

If a config names ``prm_mmdet.X``, MMEngine imports this module. The registry then
imports its ``locations``, the modules that register classes. So a config requires no
``custom_imports``.
"""

from __future__ import annotations

import difflib

from mmengine import registry as mmengine
from mmengine.registry import Registry


class _Registry(Registry):
    """A registry that raises KeyError for an unknown name, and lists similar names.

    MMEngine's registries return None instead. Then MMCV only reports 'Cannot find None
    in registry'. For an unknown name that contains a module, this registry returns
    None, too.
    """

    def get(self, key: str) -> type | None:
        found = super().get(key)
        # A dumped config names a class with its module, such as 'insertion.Plugged'. If
        # no registry knows such a name, MMEngine imports the module. So return None.
        is_path = '.' in key.removeprefix(f'{self.scope}.')
        if found is None and not is_path:
            name = f'{self.scope}.{key.rpartition(".")[2]}'
            near = near_names(name, self)
            raise KeyError(
                f'{name} is not in the registry of {self.name}s'
                + (f'; near it: {", ".join(near)}' if near else '')
            )
        return found


def near_names(kind: str, registry: Registry) -> list[str]:
    """Registered names similar to an unknown name. If the name has a known scope, only
    names of this scope are returned."""
    names = [*registry.module_dict, *registry.root.module_dict]
    for scope, child in registry.root.children.items():
        names += [f'{scope}.{name}' for name in child.module_dict]
    scope, dot, last = kind.rpartition('.')
    if own := [name for name in names if dot and name.startswith(scope + dot)]:
        names = own
    lasts: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        lasts.setdefault(name.rpartition('.')[2].lower(), []).append(name)
    near = difflib.get_close_matches(last.lower(), lasts, n=3)
    return [name for last in near for name in lasts[last]]


def _registry(parent: Registry, *locations: str) -> _Registry:
    """This package's registry below ``parent``, a registry of MMEngine. ``locations``
    are the modules of this package whose classes belong to the registry."""
    modules = [f'prm_mmdet.{location}' for location in locations]
    return _Registry(parent.name, parent=parent, scope='prm_mmdet', locations=modules)


MODELS = _registry(mmengine.MODELS, 'plugins', 'insertion', 'pretraining')
WEIGHT_INITIALIZERS = _registry(mmengine.WEIGHT_INITIALIZERS, 'insertion')
DATASETS = _registry(mmengine.DATASETS, 'pretraining.imagenet')
TRANSFORMS = _registry(mmengine.TRANSFORMS, 'pretraining.transforms')
HOOKS = _registry(
    mmengine.HOOKS,
    'launch.checkpoint_hook',
    'launch.guard_hook',
    'pretraining.imagenet',
    'inspection.hook',
    'comparison.paired_runs',
)
METRICS = _registry(mmengine.METRICS, 'pretraining.accuracy')
