"""Checkpoint files: read weights-only, written whole or not at all."""

import contextlib
import functools
import os
import re
from pathlib import Path
from urllib.error import URLError

import torch
from mmengine.runner.checkpoint import CheckpointLoader

from ..compat import allow_mmengine_checkpoints
from .atomic import replacing


def read_checkpoint(path):
    """What a checkpoint holds, on the CPU; nothing in it is executed.

    Args:
        path (str | Path): A file, or what else ``init_cfg`` may name: an address, or
            weights such as ``torchvision://resnet50``. Those MMEngine reads, which
            asks for :func:`prm_mmdet.compat.load_weights_only` before.

    Raises:
        OSError: The file cannot be opened, or the address not be reached.
        ValueError: It is no checkpoint, is damaged, or holds more than numbers and
            plain objects.
    """
    allow_mmengine_checkpoints()
    with contextlib.ExitStack() as stack:
        if '://' in str(path):
            load, source = CheckpointLoader.load_checkpoint, path
        else:
            load = functools.partial(torch.load, weights_only=True)
            source = stack.enter_context(open(path, 'rb'))
        try:
            return load(source, map_location='cpu')
        except (URLError, FileNotFoundError):
            raise
        except Exception as error:  # what a damaged file may raise has no end
            raise ValueError(
                f'{path} is damaged, or holds more than weights: {_reason(error)} (of '
                'a file that you trust, save the state dict alone)'
            ) from error


def _reason(error):
    """What is wrong with a file, from what PyTorch says among its advice."""
    reason = re.sub(
        r'(?s).*(WeightsUnpickler error:|trusted source\.)\s*', '', str(error)
    )
    reason = re.split(r'\. |\n', reason)[0].rstrip('.')
    # A byte that stands for nothing, or nothing where one should be.
    if re.fullmatch(r'(Unsupported operand )?\d*', reason):
        return 'its content is not what torch.save writes'
    return reason


def read_state_dict(path):
    """The weights in a checkpoint file.

    Args:
        path (str | Path): A state dict, or a dict with one under ``state_dict``. If all
            of its keys begin with ``module.``, as DataParallel leaves them, they are
            read without.

    Returns:
        dict[str, Tensor]: The weights by name.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It cannot be read, see :func:`read_checkpoint`, or other things are
            where weights should be.
    """
    return weights_of(read_checkpoint(path), path)


def weights_of(checkpoint, path):
    """The weights in what :func:`read_checkpoint` returned, as
    :func:`read_state_dict` describes them."""
    state = checkpoint
    if isinstance(checkpoint, dict):
        state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict):
        raise ValueError(f'{path}: holds no state dict, but a {type(state).__name__}')
    if not state:
        raise ValueError(f'{path}: its state dict is empty, no weights are in it')
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f'{path}: {key!r} is no weight, but a {type(value).__name__}'
                + '; save what it holds under state_dict' * isinstance(value, dict)
            )
    if all(key.startswith('module.') for key in state):
        state = {key[len('module.') :]: value for key, value in state.items()}
    return dict(state)


def write_checkpoint(checkpoint, path, source=None):
    """Write a checkpoint, in place of an older one only when it is whole.

    Args:
        checkpoint (dict): What to write.
        path (str | Path): Where to; folders on the way are made.
        source (str | Path, optional): What it was made from: a file is not
            overwritten. Default: None, nothing.

    Raises:
        OSError: It cannot be written.
        ValueError: ``path`` is ``source``.
    """
    path = Path(path)
    if source and path.exists() and os.path.exists(source) and path.samefile(source):
        raise ValueError(f'{path} is the file to be read; name another one to write')
    try:
        with replacing(path) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        # PyTorch reports a full disk as 'unexpected pos', raised from the OSError.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
