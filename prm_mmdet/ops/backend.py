"""Choose the backend that runs an operator. An environment variable can force one.

The environment variable ``PRM_MMDET_BACKEND`` is read at every call. Its values are:

- unset or empty: the kernels for the tensor's device and dtype (``cpp`` or ``triton``)
  if they are available, else ``torch``;
- ``cpp``: the compiled CPU kernels (``csrc``);
- ``triton``: the CUDA kernels of PRM and LCT. With ``TRITON_INTERPRET=1``, Triton's
  interpreter runs them on the CPU. The interpreter is slow and meant for tests;
- ``torch``: plain PyTorch operators, on any device;
- ``reference``: the equations line by line (``reference.py``), slow.

SAC has no Triton kernels. On CUDA, SAC runs in plain PyTorch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re

import torch
from torch import Tensor

from .kernels import LIBRARY, UNAVAILABLE

VARIABLE = 'PRM_MMDET_BACKEND'
BACKENDS = ('cpp', 'triton', 'torch', 'reference')
_HALF = (torch.float16, torch.bfloat16)
_DTYPES = {
    'cpp': (torch.float32, torch.float64, *_HALF),
    # float64 is left out: on a GPU, it runs in plain PyTorch. Only
    # PRM_MMDET_BACKEND=triton selects Triton for float64.
    'triton': (torch.float32, *_HALF),
}


def _has_triton() -> bool:
    """Whether Triton is 3.3 or later. Older versions cannot compile the kernels, which
    take named tuples as arguments."""
    try:
        if importlib.util.find_spec('triton') is None:
            return False
        version = importlib.metadata.version('triton')
    except ValueError:  # another package has put a fake triton into sys.modules
        return False
    except importlib.metadata.PackageNotFoundError:
        # Triton was installed under another package name, so its version is not known.
        return True
    return tuple(int(n) for n in re.findall(r'\d+', version)[:2]) >= (3, 3)


_HAS_TRITON = _has_triton()


def backend(x: Tensor, kernels: tuple[str, ...] = ('cpp', 'triton')) -> str:
    """Return the name of the backend that runs an operator for a tensor.

    Args:
        x: The operator's input. Only its device and dtype matter.
        kernels: The backends for which the operator has kernels: ``('cpp', 'triton')``
            for PRM and LCT, ``('cpp',)`` for SAC. Default: ``('cpp', 'triton')``.

    Returns:
        'cpp', 'triton', 'torch' or 'reference'.

    Raises:
        ValueError: The value of ``PRM_MMDET_BACKEND`` is unknown.
        RuntimeError: ``PRM_MMDET_BACKEND`` forces kernels that are not available, or
            that do not support the tensor's device or dtype.
    """
    forced = os.environ.get(VARIABLE, '')
    if forced and forced not in BACKENDS:
        raise ValueError(
            f'{VARIABLE}={forced!r} names no backend. Set one of '
            f'{", ".join(BACKENDS)}, or unset the variable'
        )
    if forced == 'reference' and not x.is_meta:
        return 'reference'
    # A meta tensor has a shape, but no values that kernels could read. So it always
    # runs in plain PyTorch.
    if forced == 'torch' or x.is_meta:
        return 'torch'
    if forced:
        _check(forced, x)
        return forced if forced in kernels else 'torch'
    form = kernels_for(x)
    available = LIBRARY is not None if form == 'cpp' else _HAS_TRITON and x.is_cuda
    usable = form in kernels and available and x.dtype in _DTYPES[form]
    return form if usable else 'torch'


def kernels_for(x: Tensor) -> str:
    """Return the name of the kernels for a tensor: 'cpp' on the CPU, else 'triton'. If
    PRM_MMDET_BACKEND forces kernels, return their name. Whether they exist is not
    checked."""
    forced = os.environ.get(VARIABLE, '')
    if forced in _DTYPES:
        return forced
    return 'cpp' if x.device.type == 'cpu' else 'triton'


def _check(form: str, x: Tensor) -> None:
    """Raise RuntimeError if the kernels that PRM_MMDET_BACKEND forces cannot run."""
    if form == 'cpp':
        if LIBRARY is None:
            raise RuntimeError(f'{VARIABLE}=cpp, but {UNAVAILABLE}')
        if x.device.type != 'cpu' or x.dtype not in _DTYPES['cpp']:
            raise RuntimeError(
                f'{VARIABLE}=cpp, but the input is {x.dtype} on {x.device.type}. The '
                f'kernels run on the CPU, in float64 at most. Unset the variable'
            )
    elif not _HAS_TRITON:
        raise RuntimeError(
            f'{VARIABLE}=triton, but Triton 3.3 or later is missing. Install it with '
            f'"pip install triton", or unset the variable'
        )
    elif not x.is_cuda and os.environ.get('TRITON_INTERPRET') != '1':
        raise RuntimeError(
            f'{VARIABLE}=triton, but the input is on {x.device.type}. Triton runs on '
            f'CUDA. Elsewhere, only its interpreter runs (TRITON_INTERPRET=1)'
        )
