"""PRM, LCT and SAC: backbone plugins for MMDetection."""

from . import compat  # noqa: F401  (makes checkpoints readable on torch >= 2.6)
from .config import config_path, load_config
from .models import Plugged, attach_plugins, preserve
from .plugins import LCT, PRM, SAC
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
