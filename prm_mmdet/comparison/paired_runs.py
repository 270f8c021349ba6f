"""The hook that makes runs of one seed comparable: the same start and the same data."""

from __future__ import annotations

import copy
import json
import logging
import random
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..files.atomic import write_file
from ..insertion import preserve
from ..registry import HOOKS

# Checkpoints store a checksum of all images and boxes of the training under this key.
_SEEN = 'prm_mmdet_data_seen'
# The checksum includes every 16th row and every 16th column of an image's pixels.
_PIXELS = 16


@HOOKS.register_module()
class PairedRun(Hook):
    """Gives all runs of one seed the same start, data and random numbers.

    - Layers that the control also has start with the control's values. Otherwise the
      random values of a block would change all values that are drawn after them.
    - If the runs start from a checkpoint, :func:`prm_mmdet.preserve` makes the network
      compute the same as without a block. For some blocks, this is not possible.
    - Before each iteration, the random numbers of Python, NumPy and PyTorch are seeded
      from the seed, the rank and the iteration. At the start of an epoch, each data
      worker's random numbers are seeded from the seed, the rank, the epoch and the
      worker's number. If workers are not persistent, a run that was interrupted and
      continued draws the same numbers as an uninterrupted run.
    - A checksum of all images and boxes is kept, and written to ``measured.json`` in
      the work dir at the end. Runs that saw the same data in the same order have the
      same checksum. It covers the images' names, every 16th row and column of the
      pixels, and the boxes, on rank 0.

    Args:
        control: Config of the model without a block.
    """

    # This hook runs last. Otherwise a hook that restores random states would overwrite
    # the random states that this hook sets.
    priority = 'LOWEST'

    def __init__(self, control: dict):
        self.control = control
        self.loaded: set[str] = set()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        names = checkpoint.get('state_dict', checkpoint)
        self.loaded = {name.removeprefix('module.') for name in names}

    def before_train(self, runner: Runner) -> None:
        if runner.iter == 0:
            model = runner.model
            self._start(runner, model.module if is_model_wrapper(model) else model)
        self._seed(runner, runner.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        self._seed(runner, runner.iter)
        # If the training loop counts iterations, the epoch is always 0. If such a
        # training is interrupted and continued, MMEngine first loads all earlier
        # batches again. So the data workers draw the same numbers as without a break.
        numbers = [runner.seed, get_rank(), runner.epoch]
        runner.train_dataloader.worker_init_fn = partial(_seed_worker, numbers)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        hub = runner.message_hub
        seen = hub.get_info(_SEEN, 0)
        for part in _parts(data_batch):
            seen = zlib.crc32(part, seen)
        hub.update_info(_SEEN, seen)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        # Seed the next iteration here. In ``before_train_iter``, it would be too late,
        # because without data workers this process has then loaded the next batch.
        self._seed(runner, runner.iter + 1)

    def after_val(self, runner: Runner) -> None:
        self._seed(runner, runner.iter)

    def after_train(self, runner: Runner) -> None:
        if is_main_process():
            measured = dict(data_seen=runner.message_hub.get_info(_SEEN))
            write_file(Path(runner.work_dir, 'measured.json'), json.dumps(measured))

    def _start(self, runner: Runner, model: nn.Module) -> None:
        if self.loaded:
            missing = [name for name in model.state_dict() if name not in self.loaded]
            for outcome in preserve(model, missing) if missing else ():
                level = logging.WARNING if outcome.left else logging.INFO
                print_log(str(outcome), 'current', level)
            return
        set_random_states(runner.seed)
        control = MODELS.build(copy.deepcopy(self.control))
        control.init_weights()
        model.load_state_dict(control.state_dict(), strict=False)

    def _seed(self, runner: Runner, iteration: int) -> None:
        set_random_states(_mixed([runner.seed, get_rank(), iteration]))


def _seed_worker(numbers: list[int], worker: int) -> None:
    set_random_states(_mixed([*numbers, worker]))


def _mixed(numbers: list[int]) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def set_random_states(seed: int) -> None:
    """Seed the random numbers of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _parts(batch: Any) -> Iterator[bytes]:
    """The contents of a batch as bytes, in a fixed order. The checksum of the data is
    computed from these bytes."""
    if isinstance(batch, dict):
        for key in sorted(batch):
            yield from _parts(batch[key])
    elif isinstance(batch, torch.Tensor):
        array = batch.detach()
        if array.dim() >= 3:
            array = array[..., ::_PIXELS, ::_PIXELS]
        yield np.ascontiguousarray(array.cpu().float().numpy()).tobytes()
    elif isinstance(batch, (str, int, float)):
        yield str(batch).encode()
    elif isinstance(batch, Sequence):
        for item in batch:
            yield from _parts(item)
    elif hasattr(batch, 'metainfo'):
        yield str(batch.metainfo.get('img_id', '')).encode()
        for name in ('gt_instances', 'gt_label'):
            if name in batch:
                yield from _parts(dict(batch.get(name).items()))
    elif hasattr(batch, 'tensor'):
        # MMDetection's boxes, such as HorizontalBoxes, have their numbers in a tensor.
        yield from _parts(batch.tensor)
