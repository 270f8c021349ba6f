"""Finding the package's configs, from a checkout or from an installed wheel."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from mmengine.config import Config

_PACKAGE = Path(__file__).parent


def _configs():
    installed = _PACKAGE / '.mim' / 'configs'
    return installed if installed.is_dir() else _PACKAGE.parent / 'configs'


def config_path(name: str) -> str:
    """Absolute path of one of the package's config files.

    With this path, a config of another project can inherit from the file::

        _base_ = __import__('prm_mmdet').config_path(
            'sac/mask-rcnn_r50-sac-c3-c5_fpn_1x_coco.py')

    The import is in the expression, because MMEngine evaluates ``_base_`` before it
    runs the file.

    Args:
        name (str): Path below ``configs/``, with ``.py``.

    Returns:
        str: The path.

    Raises:
        FileNotFoundError: There is no such config. The message lists similar names.
    """
    root = _configs()
    path = (root / name).resolve()
    if path.is_file() and path.is_relative_to(root.resolve()):
        return str(path)
    known = sorted(p.relative_to(root).as_posix() for p in root.rglob('*.py'))
    near = difflib.get_close_matches(name, known)
    hint = f'did you mean {" or ".join(near)}?' if near else f'they are in {root}'
    raise FileNotFoundError(f'prm_mmdet has no config {name!r}; {hint}')


def load_config(name: str) -> dict[str, Any]:
    """One of the package's configs, with all inherited values, as a plain dict.

    Args:
        name (str): Path below ``configs/``, with ``.py``.
    """
    return Config.fromfile(config_path(name)).to_dict()
