"""Log statistics of the blocks during training."""

from __future__ import annotations

import contextlib
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..plugins import PRM
from ..registry import HOOKS
from .capture import Record, capture, unwrapped
from .quantities import adds, contribution_rate


@HOOKS.register_module()
class BlockStatisticsHook(Hook):
    """Log statistics of the blocks in a model to the visualizer's backends::

        custom_hooks = [dict(type='prm_mmdet.BlockStatisticsHook', interval=50)]

    Scalars are named ``blocks/<name of the block>/<statistic>``. The statistics are:

    - of all values of a gate in a batch: ``gate_mean``, ``gate_std`` and
      ``gate_saturated`` (the fraction of values below 0.05 or above 0.95);
    - of PRM: ``contribution_rate`` (how much the query point counts, from 0 to 1), and
      the parameters ``theta_rows``, ``theta_columns`` and ``sigma``;
    - of a block that adds to its input X and returns Z: ``added``, which is the ratio
      of norms ``|Z - X| / |X|``.

    The model has forward hooks only in iterations that are logged. In distributed
    training, the first rank logs the statistics of its own batch.

    Args:
        interval: Iterations between two logs. Default: 50.

    Raises:
        ValueError: ``interval`` is not a positive integer, or the model has no block.
    """

    def __init__(self, interval: int = 50) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f'interval must be a positive integer, got {interval!r}')
        self.interval = interval
        self._open = contextlib.ExitStack()
        self._records: list[Record] | None = None
        self._parameters: dict[str, dict] = {}

    def before_train(self, runner: Runner) -> None:
        with capture(runner.model):
            # If the model has no block, capture() raises ValueError here, before the
            # first iteration.
            pass

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        # Remove the hooks of an earlier iteration that ended with an error.
        self._open.close()
        if runner.rank == 0 and self.every_n_train_iters(runner, self.interval):
            model = unwrapped(runner.model)
            # Read the parameters now. The optimiser changes them after this iteration's
            # gates are computed, and the log must show parameters that fit the gates.
            self._parameters = {
                name: _of_parameters(module)
                for name, module in model.named_modules()
                if isinstance(module, PRM)
            }
            self._records = self._open.enter_context(capture(model))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        if self._records is None:
            return
        self._open.close()
        scalars = {}
        for record in self._records:
            found = {**_of_pass(record), **self._parameters.get(record.name, {})}
            for name, value in found.items():
                scalars[f'blocks/{record.name}/{name}'] = value
        self._records = None
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)


def _of_pass(record):
    block, values = record.block, {}
    for name, gate in record.gates.items():
        prefix = f'{name}_gate' if name else 'gate'
        values[f'{prefix}_mean'] = gate.mean
        values[f'{prefix}_std'] = gate.std
        values[f'{prefix}_saturated'] = gate.saturated
    if adds(block):
        values['added'] = record.added
    return values


def _of_parameters(prm):
    values = dict(contribution_rate=contribution_rate(prm))
    if prm.theta is not None:
        values['theta_rows'], values['theta_columns'] = prm.theta.tolist()
        values['sigma'] = prm.sigma.item()
    return values
