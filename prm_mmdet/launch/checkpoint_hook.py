"""MMEngine's CheckpointHook, but old checkpoints are removed only after a new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from ..files.checkpoints import not_finite
from ..registry import HOOKS
from .random_state import random_state
from .resuming import optimizer_name
from .run_errors import DivergedError


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, as :class:`.TrainRunner` uses it.

    The arguments are those of CheckpointHook. The differences are:

    - An older checkpoint is removed after the newer one is written. MMEngine removes
      the older one first. If the run is killed between the two steps, no checkpoint is
      left.
    - Weights that are not finite are not saved.
    - The file holds plain numbers, texts and tensors, which every weights-only loader
      reads, and the state of the random generators of each rank.
    - Only files in this run's folder are removed, even if a resumed checkpoint names
      files in other folders.
    """

    def before_train(self, runner: Runner) -> None:
        self._step: int | None = None
        # A resumed checkpoint may name best checkpoints in other folders, and MMEngine
        # would later remove these files. So replace their folder by this run's folder.
        info = runner.message_hub.runtime_info
        for key in [key for key in info if key.startswith('best_ckpt')]:
            name = os.path.basename(f'{info[key]}')
            folder = checkpoint_folder(self.out_dir, runner.work_dir)
            if name.startswith('best_'):
                info[key] = os.path.join(folder, name)
            else:
                del info[key]
        if 'keep_ckpt_ids' in info:
            info['keep_ckpt_ids'] = [
                step for step in info['keep_ckpt_ids'] if type(step) is int
            ]
        super().before_train(runner)
        resumed = getattr(runner, 'resumed_from', None)
        if resumed and os.path.dirname(os.path.abspath(resumed)) == os.path.abspath(
            self.out_dir
        ):
            self.last_ckpt = resumed

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        broken = not_finite(checkpoint['state_dict'])
        if broken:
            raise DivergedError(
                f'after iteration {runner.iter + 1} of the training {len(broken)} '
                f'weights are NaN or infinite, such as {broken[0]}: the training '
                'diverged. Nothing was saved. Lower the learning rate, lengthen its '
                'warm-up, or clip gradients, and resume from an earlier checkpoint'
            )
        checkpoint['random_states'] = self._random_states
        if getattr(runner, 'run_id', None):
            checkpoint['meta']['run_id'] = runner.run_id  # type: ignore[attr-defined]
        checkpoint['meta']['optimizer'] = optimizer_name(runner)
        for key in ('meta', 'message_hub', 'param_schedulers'):
            if key in checkpoint:
                checkpoint[key] = _plain(checkpoint[key])

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        # After validation, MMEngine may write the same step again. Validation changes
        # the random states, so the file keeps the states from before the validation.
        if step != self._step:
            self._step, self._random_states = step, all_gather_object(random_state())
        with self._removing_afterwards():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if self.save_best and not hasattr(self, '_random_states'):
            self._random_states = all_gather_object(random_state())
        with self._removing_afterwards():
            super()._save_best_checkpoint(runner, metrics)

    @contextlib.contextmanager
    def _removing_afterwards(self) -> Iterator[None]:
        """Delay the removal of older checkpoints to the end of the ``with`` block."""
        backend: Any = vars(self)['file_backend']
        if isinstance(backend, _RemovesLater):
            yield
            return
        self.file_backend = _RemovesLater(backend)
        try:
            yield
            current = {self.last_ckpt, getattr(self, 'best_ckpt_path', None)}
            current.update(getattr(self, 'best_ckpt_path_dict', {}).values())
            for remove, path in self.file_backend.doomed:
                if path not in current:
                    remove(path)
        finally:
            self.file_backend = backend


class _RemovesLater:
    """A file backend that removes no files, but records which files to remove later."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.doomed: list[tuple[Callable[[str], None], str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def isdir(self, path: str) -> bool:
        # MMEngine asks whether a checkpoint is a folder, because DeepSpeed writes
        # folders. Checkpoints of this runner are always files.
        return False

    def remove(self, path: str) -> None:
        self.doomed.append((self._backend.remove, path))


def _plain(value: Any) -> Any:
    """Copy a value into plain types, which every weights-only loader reads.

    NumPy's numbers become numbers of Python. A history of logged values (MMEngine's
    HistoryBuffer) becomes a dict of tensors. Objects of other types are left out of
    dicts. In lists, None replaces these objects.
    """
    if isinstance(value, HistoryBuffer):
        values, counts = (torch.from_numpy(np.array(part)) for part in value.data)
        return dict(history=values, counts=counts)
    if isinstance(value, dict):
        plain = {key: _plain(inner) for key, inner in value.items()}
        return {k: v for k, v in plain.items() if v is not None or value[k] is None}
    if isinstance(value, (list, tuple)):
        items = [_plain(inner) for inner in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    known = (str, bytes, int, float, bool, torch.Tensor, type(None))
    return value if type(value) in known or isinstance(value, torch.Tensor) else None


def restore_histories(message_hub: dict) -> None:
    """Turn histories of logged values, which :class:`SafeCheckpointHook` wrote as dicts
    of tensors, into MMEngine's HistoryBuffers again.

    Args:
        message_hub: The entry ``message_hub`` of a checkpoint. It is changed in place.
    """
    scalars = message_hub['log_scalars']
    for name, value in scalars.items():
        if isinstance(value, dict):
            history, counts = value['history'].numpy(), value['counts'].numpy()
            scalars[name] = HistoryBuffer(history, counts)


def checkpoint_folder(out_dir: str | None, work_dir: str) -> str:
    """The folder to which a CheckpointHook writes, from its ``out_dir`` argument."""
    if out_dir is None or out_dir == work_dir:
        return work_dir
    return os.path.join(out_dir, os.path.basename(work_dir.rstrip(os.sep)))


def random_state_of_rank(checkpoint: dict, world_size: int) -> dict[str, Any] | None:
    """This rank's random state in a checkpoint. None if the checkpoint has no random
    states, or if another number of ranks wrote it."""
    states = checkpoint.get('random_states')
    if isinstance(states, list) and len(states) == world_size:
        return states[get_rank()]
    return None
