"""Stop diverged trainings, and make resumed trainings equal to uninterrupted ones."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..files.atomic import write_file
from ..registry import HOOKS
from .plugin_blocks import GradientWatch
from .random_state import calling, random_state, set_random_state, worker_seed
from .run_errors import DivergedError

#: In mixed precision, a step whose gradients overflow is skipped, and the loss scale is
#: halved. If this many steps in a row are skipped, the loss scale is too small to be
#: the cause of the overflow. The training then stops.
MAX_SKIPPED_STEPS = 50


@HOOKS.register_module()
class TrainingGuard(Hook):
    """Watch a training. :class:`.TrainRunner` adds this hook automatically.

    - If the loss is NaN or infinite, the training stops. In mixed precision, it stops
      after 50 steps in a row with such a loss, because mixed precision first lowers a
      loss scale that is too large.
    - A resumed training equals an uninterrupted one. For this purpose, the seeds of
      data workers depend only on the run's seed, the rank and the epoch. Validation
      does not change the random state of the training.
    - If the training was killed before the validation of the last saved epoch ended,
      the resumed training runs this validation first.
    - If a plugin block gets no gradient in the first iteration, a warning names it.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._invalid = 0
        self._training = False
        self._watch: GradientWatch | None = None
        self._state_before_val: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        self._training = True
        self._watch = GradientWatch(runner.model)
        loop = runner.train_loop
        state = getattr(runner, 'resumed_random_state', None)
        if state is not None:
            set_random_state(state)
            if runner.iter and hasattr(loop, 'dataloader_iterator'):
                restore = functools.partial(set_random_state, state)
                batches = calling(loop.dataloader_iterator, runner.iter, restore)
                loop.dataloader_iterator = batches
        length = loop.max_epochs if _by_epoch(runner) else loop.max_iters
        if _steps(runner) >= length:
            units = 'epochs' if _by_epoch(runner) else 'iterations'
            runner.logger.info(f'All {length} {units} were trained before.')
        if _steps(runner) == 0:
            if is_main_process():
                write_file(_record(runner), '0\n')
        elif runner.val_loop is not None and _validation_is_due(runner):
            done = _validated(runner)
            if done is not None and done < _steps(runner):
                unit = 'epoch' if _by_epoch(runner) else 'iteration'
                runner.logger.info(
                    f'The run ended in the validation of {unit} {_steps(runner)}. '
                    'This validation runs first.'
                )
                runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        if isinstance(loader, DataLoader) and loader.generator is not None:
            loader.generator.manual_seed(
                worker_seed(runner.seed, get_rank(), runner.epoch)
            )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        if self._watch is not None:
            for warning in self._watch.finish():
                runner.logger.warning(warning)
            self._watch = None
        loss = (outputs or {}).get('loss')
        if isinstance(loss, torch.Tensor):
            loss = loss.detach()
        if loss is None or math.isfinite(loss):
            self._invalid = 0
            return
        self._invalid += 1
        scales = isinstance(runner.optim_wrapper, AmpOptimWrapper)
        if not scales or self._invalid >= MAX_SKIPPED_STEPS:
            saved = runner.message_hub.get_info('last_ckpt')
            kept = f'The last checkpoint is {saved}. ' if saved else ''
            raise DivergedError(
                f'the loss became {float(loss)} at iteration {runner.iter + 1} of the '
                f'training (epoch {runner.epoch + 1}): the training diverged. {kept}'
                'Lower the learning rate, lengthen its warm-up, or clip gradients'
            )

    def before_val(self, runner: Runner) -> None:
        self._state_before_val = random_state()

    def after_val(self, runner: Runner) -> None:
        set_random_state(self._state_before_val)

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        if self._training and is_main_process():
            write_file(_record(runner), f'{_steps(runner)}\n')

    def after_train(self, runner: Runner) -> None:
        self._training = False


def _steps(runner: Runner) -> int:
    """Number of finished epochs. If the training loop counts iterations, the number of
    finished iterations."""
    return runner.epoch if _by_epoch(runner) else runner.iter


def _by_epoch(runner: Runner) -> bool:
    return not hasattr(runner.train_loop, 'dataloader_iterator')


def _validation_is_due(runner: Runner) -> bool:
    """Whether a validation is due after the last finished epoch or iteration."""
    loop, steps = runner.train_loop, _steps(runner)
    loop._decide_current_val_interval()
    last = loop.max_epochs if _by_epoch(runner) else loop.max_iters
    return steps >= loop.val_begin and (steps % loop.val_interval == 0 or steps == last)


def _record(runner: Runner) -> Path:
    """File with the last epoch or iteration whose validation has ended."""
    return Path(runner.work_dir, 'last_validated')


def _validated(runner: Runner) -> int | None:
    """Number of the last epoch or iteration whose validation has ended. It is 0 if no
    validation has ended, and None if the work dir has no readable record of it."""
    try:
        return int(_record(runner).read_text())
    except (OSError, ValueError):
        return None
