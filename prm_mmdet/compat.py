"""Workarounds for the packages that this package uses. Each docstring gives the reason,
and the version that makes the workaround unnecessary."""

import contextlib
import functools
import importlib.util
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import mmengine
import numpy as np
import torch
from mmengine.config import config as config_module
from mmengine.config import utils as config_utils
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import CheckpointLoader, load_from_http
from mmengine.utils import digit_version

from .files.plain_pickle import NUMPY


def allow_mmengine_checkpoints() -> None:
    """Let weights-only loading read the checkpoints that MMEngine writes.

    torch >= 2.6 loads weights-only by default. It then refuses the training history in
    an MMEngine checkpoint: ``HistoryBuffer``, NumPy arrays and scalars. This function
    allows these types, which hold plain numbers. It can be removed when the oldest
    supported MMEngine allows them itself. MMEngine 0.10.7 does not. onedl-mmengine
    0.10.12 allows them only while its own loading functions run, and then forbids them
    again. Therefore call this function before each load.
    """
    if digit_version(torch.__version__) < digit_version('2.6'):
        return
    # ``plain_pickle.NUMPY`` has replacements for NumPy's functions that rebuild arrays.
    # But onedl-mmengine allows NumPy's own functions while it loads a checkpoint, and
    # torch cannot allow two functions of one name. So if onedl-mmengine is installed,
    # allow NumPy's functions instead of the replacements.
    own = hasattr(checkpoint, '_safe_torch_load')
    torch.serialization.add_safe_globals(_numpy_types() if own else _PLAIN_TYPES)


@contextlib.contextmanager
def plain_types_only() -> Iterator[None]:
    """Context manager in which weights-only loading accepts only the types that are in
    MMEngine's checkpoints. It also rejects NumPy arrays of Python objects."""
    if digit_version(torch.__version__) < digit_version('2.6'):
        yield
        return
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_PLAIN_TYPES)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _numpy_types() -> list:
    # NumPy 2 moved the functions that rebuild pickled arrays and scalars to another
    # module. So get both functions from ``__reduce__``, which works in every version.
    rebuild_array = np.zeros(1).__reduce__()[0]
    rebuild_scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in '?bhilqBHILQefd'}
    numpy = [np.ndarray, np.dtype, rebuild_array, rebuild_scalar, *dtypes]
    return [*_HISTORY, *numpy]


def load_weights_only() -> None:
    """Let no checkpoint, pickle or YAML file run code in this process.

    A pickle that is loaded without restrictions can run code. MMEngine 0.10.7 loads
    downloads without restrictions, and so do ``mmengine.load`` and onedl-mmengine
    0.10.12. After this call, :mod:`prm_mmdet.files` loads the files instead. If a file
    is damaged, the error names the file. If you set
    ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD``, MMEngine loads checkpoints as before. With
    torch < 2.6, checkpoints are loaded without restrictions.
    """
    # ``checkpoints`` imports this module. So an import at the top of this file would be
    # circular.
    from .files import checkpoints, plain_pickle

    plain_pickle.read_for_mmengine()
    if digit_version(torch.__version__) < digit_version('2.6'):
        return
    if hasattr(checkpoint, '_safe_torch_load'):
        checkpoint._safe_torch_load = torch.load
    if 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in os.environ:
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
        checkpoints.read_for_mmengine()


def hide_known_warnings() -> None:
    """Hide warnings that the user of a command line can do nothing about.

    For every config that it reads, MMEngine 0.10.7 asks pkg_resources for the path of
    MMDetection. Each time, pkg_resources warns that it is deprecated.
    """
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')


def _history_statistic(owner: object, name: str) -> Any:
    """Replaces ``getattr`` while a checkpoint is loaded. A pickled ``HistoryBuffer``
    (MMEngine's training history) calls ``getattr`` to get statistics such as ``mean``.

    The real ``getattr`` would let a checkpoint reach far more than numbers.
    """
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'a checkpoint asks for {owner!r}.{name}: refused')


def _find_torchvision_weights_without_torchvision() -> None:
    """Let MMEngine download weights such as ``torchvision://resnet50`` if torchvision
    is not installed.

    MMEngine imports torchvision to get the addresses, although MMEngine's own list has
    them. This function can be removed when MMEngine reads its own list.
    """
    if importlib.util.find_spec('torchvision'):
        return

    @CheckpointLoader.register_scheme(prefixes='torchvision://', force=True)
    def load_from_torchvision(filename, map_location=None):
        url = weights_url(filename)
        if url is None:
            raise FileNotFoundError(f'MMEngine knows no weights by the name {filename}')
        return load_from_http(url, map_location=map_location)


def _look_up_configs_once() -> None:
    """Let a process look up MMDetection and its metafiles (YAML lists of models) once.

    For each ``mmdet::`` config in ``_base_``, MMEngine 0.10.7 parses 102 YAML files and
    loads pkg_resources again. The parsing alone takes 0.3 s. This function can be
    removed when MMEngine keeps the results.
    """
    for module, name in ((config_utils, 'load'), (config_module, 'is_installed')):
        if hasattr(module, name):
            setattr(module, name, functools.cache(getattr(module, name)))


def weights_url(name: str) -> Optional[str]:
    """Address of the weights that a checkpoint's name stands for, or None.

    Args:
        name (str): Name of a checkpoint, as ``init_cfg`` has it. For example,
            ``torchvision://resnet50``.
    """
    scheme, _, rest = name.partition('://')
    if scheme in ('http', 'https'):
        return name
    lists = {'torchvision': 'torchvision_0.12.json', 'open-mmlab': 'openmmlab.json'}
    if scheme not in lists:
        return None
    known = mmengine.load(Path(mmengine.__file__).parent / 'hub' / lists[scheme])
    return known.get(rest)


_HISTORY = [HistoryBuffer, (_history_statistic, 'builtins.getattr')]
_PLAIN_TYPES = [*_HISTORY, *((own, '.'.join(name)) for name, own in NUMPY.items())]

allow_mmengine_checkpoints()
_find_torchvision_weights_without_torchvision()
_look_up_configs_once()
