"""What the blocks do, logged during training."""

import contextlib

from mmengine.hooks import Hook

from ..plugins import PRM
from ..registry import HOOKS
from .capture import capture, unwrapped
from .quantities import adds, contribution_rate


@HOOKS.register_module()
class BlockStatisticsHook(Hook):
    """Log statistics of the blocks in a model to the visualizer's backends (local
    files, TensorBoard, WandB), in a config::

        custom_hooks = [dict(type='prm_mmdet.BlockStatisticsHook', interval=50)]

    Scalars are named ``blocks/<name of the block>/<statistic>``: ``gate_mean``,
    ``gate_std`` and ``gate_saturated`` (share outside of 0.05 to 0.95) of a gate over
    the batch; of PRM ``contribution_rate``, ``theta_rows``, ``theta_columns`` and
    ``sigma``; of a block that adds to its input ``added``, the length of what it adds
    over that of its input.

    Between the iterations logged, the model has no hooks of it. In distributed
    training, the first rank logs what its own batch shows.

    Args:
        interval (int): Iterations between two logs. Default: 50.

    Raises:
        ValueError: ``interval`` is no positive integer, or the model has no block.
    """

    def __init__(self, interval=50):
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f'interval must be a positive integer, got {interval!r}')
        self.interval = interval
        self._open = contextlib.ExitStack()
        self._records, self._parameters = None, {}

    def before_train(self, runner):
        with capture(runner.model):
            pass  # refuses a model without blocks before the first iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self._open.close()  # an iteration that raised did not get to its end
        if runner.rank == 0 and self.every_n_train_iters(runner, self.interval):
            model = unwrapped(runner.model)
            # Before the optimiser's step, as the gates.
            self._parameters = {
                name: _of_parameters(module)
                for name, module in model.named_modules()
                if isinstance(module, PRM)
            }
            self._records = self._open.enter_context(capture(model))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
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
