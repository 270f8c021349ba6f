"""Find, check and call the compiled CPU kernels.

``setup.py`` compiles the files in ``csrc`` if there is a C++ compiler. The library
takes plain pointers, so it fits every version of torch. Without the library, the
operators run in plain PyTorch.
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

_FOLDER = Path(__file__).parent
_REBUILD = 'compile them with "python setup.py build_ext --inplace" in a checkout, or '
_REBUILD += 'install the package again where a C++ compiler is available'


def _load() -> tuple[ctypes.CDLL | None, str]:
    """Load the compiled library. Returns ``(library, '')``. If loading fails, returns
    ``(None, reason)``."""
    for suffix in EXTENSION_SUFFIXES:
        path = _FOLDER / f'_kernels{suffix}'
        if path.is_file():
            break
    else:
        return None, f'the CPU kernels were not compiled: {_REBUILD}'
    try:
        # The library uses the OpenMP that torch has loaded. A second OpenMP would start
        # threads of its own.
        library = ctypes.CDLL(str(path))
        library.source.restype = ctypes.c_char_p
        for name in ('prm_scratch', 'sac_scratch', 'sac_thread_scratch'):
            getattr(library, name).restype = ctypes.c_int64
        source = library.source().decode()
    except (OSError, AttributeError) as error:
        return None, f'{path} cannot be loaded ({error}): {_REBUILD}'
    if source != source_hash(_FOLDER / 'csrc'):
        reason = f'{path} was compiled from other sources than csrc has: {_REBUILD}'
        warnings.warn(f'prm_mmdet runs without CPU kernels. {reason}', stacklevel=2)
        return None, reason
    return library, ''


def source_hash(folder: Path) -> str:
    """Hash of the C++ sources, 16 hexadecimal digits. ``setup.py`` stores the same hash
    in the library, which shows whether the library is up to date."""
    content = b''.join(path.read_bytes() for path in sorted(folder.iterdir()))
    return hashlib.sha256(content).hexdigest()[:16]


LIBRARY, UNAVAILABLE = _load()


def integers(names: str) -> list[tuple[str, type]]:
    """Fields of a C structure that hold whole numbers and switches."""
    return [(name, ctypes.c_int64) for name in names.split()]


def pointers(names: str) -> list[tuple[str, type]]:
    """Fields of a C structure that hold pointers to tensors."""
    return [(name, ctypes.c_void_p) for name in names.split()]


class Arguments(ctypes.Structure):
    """The arguments of a C++ function, which takes them as one C structure. Tensors
    must be contiguous and become pointers. A pointer that is None or not set becomes
    null."""

    def __init__(self, **values: Tensor | float | None) -> None:
        self.tensors: list[Tensor] = []
        self.set(**values)

    def set(self, **values: Tensor | float | None) -> None:
        """Set fields. A reference to each tensor is kept, so that its memory is not
        freed."""
        for name, value in values.items():
            if isinstance(value, Tensor):
                self.tensors.append(value)
                value = value.data_ptr()
            setattr(self, name, value)

    def call(self, name: str, dtype: torch.dtype) -> None:
        """Run the library's function ``<name>_float32`` or ``<name>_float64``."""
        suffix = str(dtype).removeprefix('torch.')
        getattr(LIBRARY, f'{name}_{suffix}')(ctypes.byref(self))


def to_kernel(x: Tensor) -> Tensor:
    """The features as kernels require them: contiguous, and in float32 or float64."""
    return x.to(accumulation_dtype(x)).contiguous()


def from_kernel(result: Tensor, x: Tensor) -> Tensor:
    """A kernel's result in the dtype and memory format of the features."""
    return result.to(x.dtype).contiguous(memory_format=memory_format(x))
