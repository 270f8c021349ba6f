"""Read checkpoint files weights-only, and write them whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from .. import compat
from .atomic import replacing

_load_with_mmengine = CheckpointLoader.load_checkpoint


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message gives the file, the reason and a fix."""


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Read a checkpoint onto the CPU. Nothing in the file is executed.

    Args:
        path: A file, an address, or a name such as ``torchvision://resnet50``. Before
            you pass an address or a name, call
            :func:`prm_mmdet.compat.load_weights_only`. Otherwise, MMEngine may load
            the downloaded file in full, which can run code in the file.

    Returns:
        What the file holds.

    Raises:
        OSError: The file is missing or cannot be opened, or the address cannot be
            reached.
        CheckpointError: The file is no checkpoint, is damaged (for example, a checksum
            stored in the file is wrong), or holds more than numbers and plain objects.
    """
    source: Any
    cached: Any
    with contextlib.ExitStack() as stack:
        stack.enter_context(compat.plain_types_only())
        # Reject sparse tensors with indices out of range. For such indices, PyTorch
        # would write outside of the tensor's memory.
        stack.enter_context(torch.sparse.check_sparse_tensor_invariants())
        if '://' in str(path):
            load, source, cached = _load_with_mmengine, str(path), _download(str(path))
            cure = f'delete {cached}, so that it is downloaded again'
        else:
            if not os.path.isfile(path):
                raise FileNotFoundError(f'{path} is no file; name a checkpoint file')
            load, cached = functools.partial(torch.load, weights_only=True), path
            source = stack.enter_context(open(path, 'rb'))
            cure = 'use another copy of it, or an earlier checkpoint'
        try:
            checkpoint = load(source, map_location='cpu')
        except (URLError, FileNotFoundError):
            raise
        except Exception as error:  # Reading a damaged file may raise any exception.
            raise CheckpointError(
                f'{path} is damaged, or holds more than weights: {_reason(error)}. If '
                f'the file is damaged, {cure}; if you trust the file, save its state '
                'dict alone'
            ) from error
        if os.path.isfile(cached):
            status = os.stat(cached)
            damage = _damage(str(cached), status.st_mtime_ns, status.st_size)
            if damage:
                raise CheckpointError(f'{path} is damaged: {damage}; {cure}')
        return checkpoint


@functools.lru_cache(maxsize=256)
def _damage(path: str, mtime: int, size: int) -> str:
    """A message if a checksum stored in a checkpoint file is wrong, else ''. The result
    is cached: a file is checked again only if its modification time or size changed."""
    if not zipfile.is_zipfile(path):
        # PyTorch before 1.6 wrote another format, which has no checksums.
        return ''
    try:
        with zipfile.ZipFile(path) as file:
            name = file.testzip()
    except Exception as error:  # Damaged headers of a zip file may raise anything.
        return f'{error}'
    return f'the checksum of {name} in it is wrong' if name else ''


def _download(name: str) -> str:
    """Where PyTorch stores the file that it downloads for an address or a name."""
    url = compat.weights_url(name) or name
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    return os.path.join(folder, url.rpartition('/')[2])


def _reason(error: Exception) -> str:
    """Why a file cannot be loaded: PyTorch's error message without its advice."""
    reason = re.sub(
        r'(?s).*(WeightsUnpickler error:|trusted source\.)\s*', '', str(error)
    )
    reason = re.split(r'\. |\n', reason)[0].rstrip('.')
    # For a file that torch.save did not write, PyTorch's message gives no reason, or
    # only the number of an unknown byte. Replace such a message by a helpful one.
    if re.fullmatch(r'(Unsupported operand )?\d*', reason):
        return 'its content is not what torch.save writes'
    return reason


def read_for_mmengine() -> None:
    """Let MMEngine use :func:`read_checkpoint` for every checkpoint that this process
    loads, also for the checkpoints of ``Pretrained`` in ``init_cfg``."""

    def load(
        cls: type, filename: str, map_location: Any = None, logger: Any = 'current'
    ) -> Any:
        print_log(f'Loads checkpoint from {filename}', logger)
        return read_checkpoint(filename)

    CheckpointLoader.load_checkpoint = classmethod(load)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read the weights in a checkpoint file.

    Args:
        path: As for :func:`read_checkpoint`. The file holds a state dict, or a dict
            with a state dict under the key ``state_dict``. If all keys of the weights
            begin with ``module.``, as DataParallel writes them, this prefix is removed.

    Returns:
        The weights by name.

    Raises:
        OSError: The file cannot be opened.
        CheckpointError: The file cannot be read, see :func:`read_checkpoint`, or does
            not hold weights, or a weight is not finite.
    """
    return weights_of(read_checkpoint(path), path)


def weights_of(
    checkpoint: Any, path: str | os.PathLike[str]
) -> dict[str, torch.Tensor]:
    """The weights in ``checkpoint``, which :func:`read_checkpoint` read from ``path``.
    The result and the errors are those of :func:`read_state_dict`."""
    state = checkpoint
    if isinstance(checkpoint, dict):
        state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict):
        raise CheckpointError(
            f'{path}: holds no state dict, but a {type(state).__name__}; give a file '
            'that a training wrote'
        )
    if not state:
        raise CheckpointError(
            f'{path}: its state dict is empty, no weights are in it; give a file that '
            'a training wrote'
        )
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            inside = isinstance(value, dict)
            cure = 'save what it holds under state_dict' if inside else 'remove it'
            raise CheckpointError(
                f'{path}: {key!r} is no weight, but a {type(value).__name__}; {cure}'
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(
                f'{path}: {key!r} is a sparse, quantized or meta tensor; save a dense '
                'tensor'
            )
    broken = not_finite(state)
    if broken:
        raise CheckpointError(
            f'{path} has weights that are not finite, such as {broken[0]}: the '
            'training diverged; take an earlier checkpoint'
        )
    if all(key.startswith('module.') for key in state):
        state = {key[len('module.') :]: value for key, value in state.items()}
    return dict(state)


def not_finite(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the weights that hold NaN or infinity."""
    return [
        key
        for key, value in state.items()
        if value.is_floating_point()
        # Skip 8-bit floats, which isfinite does not support.
        and value.element_size() > 1
        and not value.isfinite().all()
    ]


@dataclass(frozen=True)
class KeyDifferences:
    """How weights differ from a model's weights in their names and shapes.

    Attributes:
        missing: Names that the model has and the weights lack.
        unknown: Names that the weights have and the model lacks.
        misshapen: Names of weights whose shape is not the model's.
    """

    missing: Sequence[str]
    unknown: Sequence[str]
    misshapen: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unknown or self.misshapen)

    def __str__(self) -> str:
        kinds = (
            (self.missing, 'missing'),
            (self.unknown, 'unknown to the model'),
            (self.misshapen, 'of another shape'),
        )
        return '; '.join(
            f'{len(names)} {what} ({names[0]}{", ..." if len(names) > 1 else ""})'
            for names, what in kinds
            if names
        )


def compare_keys(
    weights: Mapping[str, torch.Tensor], model: Mapping[str, torch.Tensor]
) -> KeyDifferences:
    """Compare weights with the weights of a model, by name and by shape.

    Args:
        weights: A state dict from a file.
        model: The model's own ``state_dict()``.

    Returns:
        The differences, as an object that is false if there are none. If
        ``num_batches_tracked`` of a batch norm is missing, this is no difference,
        because old files lack it.
    """
    return KeyDifferences(
        missing=[
            name
            for name in model
            if name not in weights and not name.endswith('num_batches_tracked')
        ],
        unknown=[name for name in weights if name not in model],
        misshapen=[
            name
            for name, value in weights.items()
            if name in model and model[name].shape != value.shape
        ],
    )


@contextlib.contextmanager
def noting_differences(model: nn.Module) -> Iterator[KeyDifferences]:
    """While MMEngine loads weights into a model, record which weights do not fit.

    Models may rename keys while they load, so the keys cannot be compared earlier.
    MMEngine's lists of missing and unexpected keys do not contain weights whose shape
    is wrong, so this function records these weights, too.

    Yields:
        The differences between weights and model, empty until the weights are loaded.
    """
    found: tuple[list[str], list[str], list[str]] = ([], [], [])
    missing, unknown, misshapen = found

    def note_shapes(weights: dict, *_: Any) -> None:
        own = model.state_dict()
        misshapen.extend(
            k for k, v in weights.items() if k in own and own[k].shape != v.shape
        )

    def note_keys(_: nn.Module, keys: Any) -> None:
        missing.extend(keys.missing_keys)
        unknown.extend(keys.unexpected_keys)

    handles = [
        model._register_load_state_dict_pre_hook(note_shapes),
        model.register_load_state_dict_post_hook(note_keys),
    ]
    try:
        yield KeyDifferences(*found)
    finally:
        for handle in handles:
            handle.remove()


def write_checkpoint(
    checkpoint: Any,
    path: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Write a checkpoint. A file at ``path`` is replaced when the new one is complete.

    Args:
        checkpoint: What to write.
        path: The file to write. Folders on the way to it are made.
        source: The file that the checkpoint was made from, which must not be
            overwritten. Default: None, there is no such file.

    Raises:
        OSError: ``path`` cannot be written.
        ValueError: ``path`` is ``source``.
    """
    path = Path(path)
    if source and path.exists() and os.path.exists(source) and path.samefile(source):
        raise ValueError(f'{path} is the file to be read; name another one to write')
    try:
        with replacing(path) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        # If the disk is full, writing raises an OSError. PyTorch then raises a
        # RuntimeError 'unexpected pos'. Raise the OSError, which tells the user more.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
