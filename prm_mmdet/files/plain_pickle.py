"""Pickle and YAML files, read as data: nothing in them is executed."""

from __future__ import annotations

import _codecs
import collections
import io
import pickle
import re
from typing import Any, BinaryIO

import numpy as np
import torch
import yaml
from mmengine.fileio import PickleHandler, YamlHandler, register_handler
from mmengine.structures import InstanceData


def load_plain_pickle(file: BinaryIO) -> Any:
    """Read a pickle file that holds numbers, texts, arrays and tensors.

    Args:
        file: A file that is open for reading bytes.

    Returns:
        What the file holds.

    Raises:
        pickle.UnpicklingError: The file holds objects of other types, or is no pickle.
    """
    try:
        return _PlainUnpickler(file).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # Reading a damaged file may raise any exception.
        raise pickle.UnpicklingError(f'it is no pickle file: {error}') from error


def _load_storage(content: bytes) -> Any:
    """Replaces PyTorch's ``_load_from_bytes``, which would run code in a file."""
    return torch.load(io.BytesIO(content), weights_only=True)


class PlainDtype:
    """Replaces ``np.dtype`` while a file is unpickled. Only plain types are accepted.

    NumPy does not check a pickled dtype. If a file declares that an array of floats
    holds objects, NumPy uses the floats as addresses in memory.
    """

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r'b1|[iufcSU]\d{1,9}', code):
            raise pickle.UnpicklingError(f'it holds an array of the dtype {code!r:.40}')
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        own = self.dtype.__reduce__()[2]
        if repr((*state[:1], *state[2:])) != repr((*own[:1], *own[2:])):
            raise pickle.UnpicklingError('it holds an array of a changed dtype')
        self.dtype = self.dtype.newbyteorder(state[1])


class PlainArray(np.ndarray):
    """Replaces ``np.ndarray`` while a file is unpickled, and rejects arrays of objects.
    If you pickle this array again, the new pickle holds an ``np.ndarray``."""

    def __new__(cls, *args: Any) -> PlainArray:
        return super().__new__(cls, (0,), 'b')

    def __setstate__(self, state: tuple) -> None:  # type: ignore[override]
        _, shape, dtype, fortran, content = state
        if type(dtype) is not PlainDtype or type(content) is not bytes:
            raise pickle.UnpicklingError('it holds an array of objects')
        super().__setstate__((1, shape, dtype.dtype, fortran, content))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return np.asarray(self).__reduce_ex__(protocol)


def _array(*args: Any) -> PlainArray:
    return PlainArray()


def _scalar(dtype: PlainDtype, content: bytes) -> np.generic:
    if type(dtype) is not PlainDtype or type(content) is not bytes:
        raise pickle.UnpicklingError('it holds a scalar that is no number')
    return np.frombuffer(content, dtype.dtype)[0]


#: Replacements for the functions and classes of NumPy that pickle files refer to.
#: NumPy 2 moved two functions to another module. Files of older versions still refer to
#: the old module. So these functions are listed under both modules.
NUMPY = {
    ('numpy._core.multiarray', '_reconstruct'): _array,
    ('numpy.core.multiarray', '_reconstruct'): _array,
    ('numpy._core.multiarray', 'scalar'): _scalar,
    ('numpy.core.multiarray', 'scalar'): _scalar,
    ('numpy', 'ndarray'): PlainArray,
    ('numpy', 'dtype'): PlainDtype,
}
_ALLOWED = {
    **NUMPY,
    ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
    ('torch.storage', '_load_from_bytes'): _load_storage,
    ('torch', 'Size'): torch.Size,
    ('collections', 'OrderedDict'): collections.OrderedDict,
    # Pickle's protocol 2 stores bytes as a call of ``_codecs.encode``.
    ('_codecs', 'encode'): _codecs.encode,
    # Pickle's protocol 2 uses ``__builtin__``, the old name of ``builtins``.
    **{(m, t.__name__): t for m in ('builtins', '__builtin__') for t in (set, bytes)},
    # MMDetection's DumpProposals writes proposals as InstanceData.
    ('mmengine.structures.instance_data', 'InstanceData'): InstanceData,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f'it asks for {module}.{name}, and could run code with it'
            )
        return _ALLOWED[module, name]


class _PlainPickleHandler(PickleHandler):
    def load_from_fileobj(self, file: BinaryIO, **kwargs: Any) -> Any:
        return load_plain_pickle(file)


class _PlainYamlHandler(YamlHandler):
    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        # MMEngine reads MMDetection's long lists of models, which are YAML files. The
        # loader that is written in C saves time.
        return yaml.load(file, getattr(yaml, 'CSafeLoader', yaml.SafeLoader))


def read_for_mmengine() -> None:
    """In this process, let ``mmengine.load`` read pickle and YAML files as data only.
    By itself, MMEngine would execute code that such a file names."""
    register_handler(['pkl', 'pickle'])(_PlainPickleHandler)
    register_handler(['yaml', 'yml'])(_PlainYamlHandler)
