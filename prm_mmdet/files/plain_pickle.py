"""Pickle and YAML files, read as data: nothing in them is executed."""

from __future__ import annotations

import _codecs
import collections
import io
import pickle
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
    except Exception as error:  # a damaged file may raise any exception
        raise pickle.UnpicklingError(f'it is no pickle file: {error}') from error


def _load_storage(content: bytes) -> Any:
    """Replaces PyTorch's function of this purpose, which executes what it reads."""
    return torch.load(io.BytesIO(content), weights_only=True)


# NumPy 2 moved its two functions to another module; files of both versions exist.
_rebuild_array = np.zeros(1).__reduce__()[0]
_rebuild_scalar = np.float64(0).__reduce__()[0]
_ALLOWED = {
    ('numpy._core.multiarray', '_reconstruct'): _rebuild_array,
    ('numpy.core.multiarray', '_reconstruct'): _rebuild_array,
    ('numpy._core.multiarray', 'scalar'): _rebuild_scalar,
    ('numpy.core.multiarray', 'scalar'): _rebuild_scalar,
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
    ('torch.storage', '_load_from_bytes'): _load_storage,
    ('torch', 'Size'): torch.Size,
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('_codecs', 'encode'): _codecs.encode,  # bytes, in pickle's protocol 2
    # Protocol 2 names the built-in types as Python 2 did.
    **{(m, t.__name__): t for m in ('builtins', '__builtin__') for t in (set, bytes)},
    # Proposals that MMDetection's DumpProposals wrote.
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
        # The loader in C: MMEngine reads MMDetection's long lists of models with it.
        return yaml.load(file, getattr(yaml, 'CSafeLoader', yaml.SafeLoader))


def read_for_mmengine() -> None:
    """Let ``mmengine.load`` read annotations, proposals and results in this process as
    data. MMEngine would execute what a pickle or YAML file asks for."""
    register_handler(['pkl', 'pickle'])(_PlainPickleHandler)
    register_handler(['yaml', 'yml'])(_PlainYamlHandler)
