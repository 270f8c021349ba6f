"""PRM, LCT and SAC: backbone plugins for MMDetection.

Without MMEngine, MMCV and MMDetection, only :mod:`prm_mmdet.ops` can be used.
"""

from importlib.util import find_spec
from typing import Any

from .version import __version__

__all__ = [
    'LCT',
    'PRM',
    'SAC',
    'Plugged',
    '__version__',
    'attach_plugins',
    'config_path',
    'load_config',
    'preserve',
]
_MISSING = [name for name in ('mmengine', 'mmcv', 'mmdet') if find_spec(name) is None]

if not _MISSING:
    # These imports register the package's classes in MMDetection's registry. They also
    # let torch >= 2.6 read MMEngine's checkpoints.
    from . import compat  # noqa: F401
    from .config import config_path, load_config
    from .insertion import Plugged, attach_plugins, preserve
    from .plugins import LCT, PRM, SAC


def __getattr__(name: str) -> Any:
    if name in __all__ and _MISSING:
        raise ModuleNotFoundError(
            f'prm_mmdet.{name} requires {", ".join(_MISSING)}, which cannot be '
            'imported. Install MMDetection 3 with MMCV and MMEngine (README, '
            '"Install"). Without these packages, only prm_mmdet.ops can be used'
        )
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
