"""The compiled CPU kernels of PRM and LCT: found, checked and called.

``setup.py`` compiles ``kernels.cpp`` if there is a C++ compiler. The library takes
plain pointers, so it fits every version of torch. Without the library, the operators
run in plain PyTorch.
"""

from __future__ import annotations

import ctypes
import hashlib
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from .common import accumulation_dtype, memory_format

_SOURCE = Path(__file__).with_name('kernels.cpp')
_REBUILD = 'compile them with "python setup.py build_ext --inplace" in a checkout, or '
_REBUILD += 'install the package again where a C++ compiler is available'


def _load() -> tuple[ctypes.CDLL | None, str]:
    """Returns the library, or None and the reason."""
    for suffix in EXTENSION_SUFFIXES:
        path = _SOURCE.with_name(f'_kernels{suffix}')
        if path.is_file():
            break
    else:
        return None, f'the CPU kernels were not compiled: {_REBUILD}'
    try:
        # OpenMP's functions come from the library that torch has loaded: a second one
        # would keep threads of its own.
        library = ctypes.CDLL(str(path))
        library.source.restype = ctypes.c_char_p
        library.prm_scratch.restype = ctypes.c_int64
        source = library.source().decode()
    except (OSError, AttributeError) as error:
        return None, f'{path} cannot be loaded ({error}): {_REBUILD}'
    if _SOURCE.is_file() and source != source_hash(_SOURCE):
        reason = f'{path} was compiled from another {_SOURCE.name}: {_REBUILD}'
        warnings.warn(f'prm_mmdet runs without CPU kernels. {reason}', stacklevel=2)
        return None, reason
    return library, ''


def source_hash(path: Path) -> str:
    """Sixteen digits that change with the file; setup.py computes the same."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


LIBRARY, UNAVAILABLE = _load()


class Arguments(ctypes.Structure):
    """A structure of kernels.cpp. Tensors become pointers, None becomes null."""

    def __init__(self, **values: Tensor | float | None) -> None:
        self.tensors = [v for v in values.values() if isinstance(v, Tensor)]
        for name, value in values.items():
            if isinstance(value, Tensor):
                value = value.data_ptr()
            setattr(self, name, value)

    def call(self, name: str, dtype: torch.dtype) -> None:
        """Run a function of the library for float32 or float64."""
        suffix = str(dtype).removeprefix('torch.')
        getattr(LIBRARY, f'{name}_{suffix}')(ctypes.byref(self))


def to_kernel(x: Tensor) -> Tensor:
    """The features as kernels take them: contiguous, float32 or float64."""
    return x.to(accumulation_dtype(x)).contiguous()


def from_kernel(result: Tensor, x: Tensor) -> Tensor:
    """A kernel's result in the dtype and memory format of the features."""
    return result.to(x.dtype).contiguous(memory_format=memory_format(x))
