"""Find the checkpoint that a training resumes from, and check that it fits."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.logging import print_log

from ..files.atomic import write_file
from ..files.checkpoints import CheckpointError, read_checkpoint
from .run_errors import RunError

_NUMBERED = re.compile(r'(?:epoch|iter)_(\d+)\.pth')
_RUN_ID = re.compile('[0-9a-f]{32}')


def find_checkpoint(work_dir: str, folder: str, rename: bool = True) -> str | None:
    """Find the newest undamaged checkpoint of a work dir.

    The file ``last_checkpoint`` contains the path of the newest checkpoint. Because the
    work dir may be a copy, only the file name in this path is used, and the checkpoint
    is read from ``folder``. If the checkpoint is damaged or missing, the newest
    undamaged checkpoint with a lower number is used, and the log reports this.

    Args:
        work_dir: Folder with ``last_checkpoint``.
        folder: Folder of the checkpoints. It is usually ``work_dir``.
        rename: Whether to rename damaged files to ``<name>.damaged`` after an undamaged
            checkpoint is found. Default: True.

    Returns:
        Path of the checkpoint. If there is no checkpoint to resume from, None.

    Raises:
        RunError: All checkpoints are damaged, or all belong to an earlier training in
            this folder. Or ``last_checkpoint`` names a file in another folder, and
            ``folder`` has no checkpoint.
    """
    pointer = os.path.join(work_dir, 'last_checkpoint')
    named, why = _read_pointer(pointer)
    if '://' in named:
        # The checkpoint has an address (URL). Only local files are checked here.
        return named
    own = os.path.join(folder, os.path.basename(named)) if named else ''
    older = _numbered(folder)
    if named and not os.path.exists(own):
        if os.path.exists(named) and not older:
            raise RunError(
                f'{pointer} names {named}, which is in another folder. If this work '
                f'dir should continue from it, give it: --resume {named}'
            )
        why = f'{own}, which last_checkpoint names, is missing'
    run = read_run_id(work_dir)
    damaged, foreign = [], []
    candidates = [own] if own and os.path.exists(own) else []
    # A checkpoint with a higher number is left out: an earlier training in this folder
    # wrote it.
    candidates += [p for p in older if p != own and _number(p) < _number(own)]
    for path in candidates:
        try:
            checkpoint = read_checkpoint(path)
            check_training_state(checkpoint, path)
        except (CheckpointError, OSError, RunError) as error:
            damaged.append(path)
            why = f'{error}'
            continue
        if run and run_id_of(checkpoint) != run:
            foreign.append(path)
            continue
        if damaged or path != own:
            kept = ''
            if damaged and rename:
                for old in damaged:
                    os.rename(old, f'{old}.damaged')
                kept = f' Kept as {", ".join(f"{old}.damaged" for old in damaged)}.'
            print_log(f'{why}.{kept} Resuming from {path}, the newest whole checkpoint')
        return path
    if foreign and not damaged:
        raise RunError(
            f'the last training in {work_dir} saved no checkpoint, and {foreign[0]} is '
            'of an earlier training. To continue the earlier training, run with '
            f'--resume {foreign[0]}. To start again, run without --resume'
        )
    if damaged or named:
        raise RunError(
            f'{folder} has no whole checkpoint to resume from: {why}. Train without '
            '--resume to start from the beginning, or restore a checkpoint'
        )
    return None


def read_run_id(work_dir: str) -> str | None:
    """Return the id of the training that was last started in a work dir. None if the
    work dir has no readable id."""
    try:
        with open(_run_id_file(work_dir), encoding='ascii') as file:
            found = file.read(100).strip()
    except (OSError, UnicodeDecodeError):
        return None
    return found if _RUN_ID.fullmatch(found) else None


def write_run_id(work_dir: str, run_id: str | None) -> None:
    """Record the id of the training in a work dir. Checkpoints with another id belong
    to an earlier training.

    Args:
        work_dir: The folder.
        run_id: Id of the training. None means that the id is not known. All checkpoints
            in the folder then count as checkpoints of this training.
    """
    if run_id is not None:
        write_file(_run_id_file(work_dir), f'{run_id}\n')
    elif os.path.exists(_run_id_file(work_dir)):
        os.remove(_run_id_file(work_dir))


def run_id_of(checkpoint: dict) -> str | None:
    """Return the id of the training that wrote a checkpoint. None if there is no id."""
    found = checkpoint['meta'].get('run_id')
    return found if isinstance(found, str) and _RUN_ID.fullmatch(found) else None


def _run_id_file(work_dir: str) -> str:
    return os.path.join(work_dir, '.run_id')


def _read_pointer(path: str) -> tuple[str, str]:
    """Return the path in the file ``last_checkpoint``, and ''. If the file is missing
    or damaged, return '' and the reason."""
    try:
        with open(path, encoding='utf-8') as file:
            named = file.read(4096).strip()
    except FileNotFoundError:
        return '', f'{path} is missing'
    except (OSError, UnicodeDecodeError):
        return '', f'{path} is damaged'
    if not named.endswith('.pth') or '\0' in named or '\n' in named:
        return '', f'{path} is damaged'
    return named, ''


def _number(path: str) -> float:
    """Number of the epoch or iteration in a checkpoint's file name. Infinity if the
    name has no such number."""
    match = _NUMBERED.fullmatch(os.path.basename(path))
    return int(match[1]) if match else math.inf


def _numbered(folder: str) -> list[str]:
    """Paths of the ``epoch_<n>.pth`` or ``iter_<n>.pth`` files in a folder. The highest
    number is first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = sorted(filter(_NUMBERED.fullmatch, names), key=_number, reverse=True)
    return [os.path.join(folder, name) for name in found]


def check_training_state(checkpoint: Any, path: str) -> None:
    """Raise RunError unless a checkpoint contains what a training needs to resume."""
    held = checkpoint if isinstance(checkpoint, dict) else {}
    meta, hub = held.get('meta'), held.get('message_hub')
    counted = isinstance(meta, dict) and all(
        type(meta.get(key)) is int and 0 <= meta[key] < 2**53
        for key in ('epoch', 'iter')
    )
    keys = ('log_scalars', 'runtime_info', 'resumed_keys')
    logged = isinstance(hub, dict) and all(isinstance(hub.get(k), dict) for k in keys)
    if isinstance(meta, dict) and 'iter' in meta and logged and not counted:
        raise RunError(
            f'{path} is damaged: its epoch is {meta.get("epoch")!r:.40}, and its '
            f'iteration {meta["iter"]!r:.40}. Use another checkpoint, or start from '
            f'its weights: --cfg-options load_from={path}'
        )
    if not counted or not logged or 'optimizer' not in held:
        raise RunError(
            f'{path} holds no state of a training to resume from; to start from its '
            f'weights, use --cfg-options load_from={path}'
        )


@contextlib.contextmanager
def naming_misfits(filename: str) -> Iterator[None]:
    """In a ``with`` block, replace any error by a RunError that names the checkpoint.
    Code in the block fails if the checkpoint does not fit this training."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:  # A wrong state can raise an error of any type.
        raise RunError(
            f'{filename} cannot be resumed from: {type(error).__name__}: {error}. Use '
            'the config that it was trained with, or start from its weights: '
            f'--cfg-options load_from={filename}'
        ) from error


def check_states(runner: Any, checkpoint: dict) -> None:
    """Raise ValueError unless the optimizer and scheduler states in a checkpoint fit
    this training. MMEngine would load the states without a check."""
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    # Adam, for example, would take the state of AdamW without an error.
    kinds = checkpoint['meta'].get('optimizer'), optimizer_name(runner)
    if None not in kinds and kinds[0] != kinds[1]:
        raise ValueError(
            f'the optimizer is {kinds[0]}, and {kinds[1]} in this training'
        )
    own = runner.optim_wrapper.state_dict()
    _check_form('optimizer', checkpoint['optimizer'], own)
    if runner.param_schedulers is None or 'param_schedulers' not in checkpoint:
        return
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    if isinstance(runner.param_schedulers, list):
        found = checkpoint['param_schedulers']
        states = [scheduler.state_dict() for scheduler in runner.param_schedulers]
        _check_form('param_schedulers', found, states)
        for i, (state, own) in enumerate(zip(found, states)):
            if unknown := state.keys() - own.keys():
                kind = f'param_schedulers.{i} is of another type'
                raise ValueError(f'{kind}: it has {min(unknown)}')


def optimizer_name(runner: Any) -> str | None:
    """Name of the class of a training's optimizer. None if there are several."""
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
    return optimizer and type(optimizer).__name__


def _check_form(name: str, found: Any, own: Any) -> None:
    """Raise ValueError unless a value in a checkpoint can replace this training's
    value. Finite numbers replace finite numbers, and lists replace lists of the same
    length. Of two dicts, only the values of shared keys are compared."""
    alike: tuple = ((int, float, torch.Tensor), (str,), (list, tuple), (dict,))
    kinds = [kind for kind in alike if isinstance(own, kind)]
    finite = isinstance(own, (int, float)) and math.isfinite(own)
    broken = finite and isinstance(found, float) and not math.isfinite(found)
    if broken or (kinds and not isinstance(found, kinds[0])):
        raise ValueError(f'{name} is {found!r:.60}, and {own!r:.60} in this training')
    if isinstance(own, dict):
        for key in own.keys() & found.keys():
            _check_form(f'{name}.{key}', found[key], own[key])
    elif isinstance(own, (list, tuple)):
        if len(found) != len(own):
            raise ValueError(f'{name} has {len(found)} entries, and not {len(own)}')
        for i, pair in enumerate(zip(found, own)):
            _check_form(f'{name}.{i}', *pair)
