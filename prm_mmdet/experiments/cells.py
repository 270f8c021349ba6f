"""One run of an experiment, and its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from ..files.atomic import write_file
from .logs import last_checkpoint, read_evaluations


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of an experiment: a config that is trained and evaluated.

    Args:
        name: Unique name in the experiment, for messages and record files.
        config: Path of the config file.
        work_dir: Folder of the run's logs, checkpoints and record file. No other run of
            any experiment uses it.
        auto_scale_lr: Whether train.py scales the learning rate to the batch.
        after: Names of runs that must be finished before this run starts.
        then: Commands (lists of arguments) after the evaluation, in the same Slurm job.
        makes: Files that exist after a finished run, from ``then`` or from a hook.
        prepare: Called before the config file is read, to write the config file.
        env: Environment variables of the run's processes.
    """

    name: str
    config: str
    work_dir: Path
    auto_scale_lr: bool = False
    after: tuple[str, ...] = ()
    then: tuple[tuple[str, ...], ...] = ()
    makes: tuple[Path, ...] = ()
    prepare: Callable[[], None] | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """File with the output of the run's processes."""
        return Path(self.work_dir, 'run.log')


def write_config(
    path: str | Path, base: str | Path, changes: Mapping, seed: int | None = None
) -> None:
    """Write a config file that holds another config, all that it inherits, and changes.

    The new file has no ``_base_``. So a later change of the file ``base`` has no effect
    on runs that have begun.

    Args:
        path: The file to write.
        base: The other config file, in any folder. It may be in MMEngine's text style
            or in its pure Python style.
        changes: Values by key. A key may be dotted. A dict is merged into the dict of
            ``base``, unless it holds ``_delete_=True``.
        seed: Seed of the training. Default: None, as in ``base``.
    """
    cfg = Config.fromfile(base, import_custom_modules=False)
    cfg.merge_from_dict(dict(changes))
    if seed is not None:
        cfg.randomness = {**cfg.get('randomness', {}), 'seed': seed}
    write_file(path, cfg.pretty_text)


@dataclass(frozen=True)
class Progress:
    """Progress of a cell (one run of an experiment).

    Args:
        unit: Unit of the steps: 'epoch' or 'iteration'.
        steps: Length of the whole training, in epochs or iterations.
        reached: Step of the newest checkpoint, 0 if there is none.
        evaluated: Whether the trained model was evaluated.
        missing: Files of ``Cell.makes`` that do not exist.
    """

    unit: str = 'epoch'
    steps: int = 0
    reached: int = 0
    evaluated: bool = False
    missing: tuple[Path, ...] = ()

    @property
    def finished(self) -> bool:
        return self.evaluated and not self.missing

    def __str__(self) -> str:
        if self.finished:
            return 'finished'
        if self.evaluated:
            return f'without {self.missing[0]}'
        if not self.reached:
            return 'not begun'
        if self.reached < self.steps:
            return f'after {self.unit} {self.reached} of {self.steps}'
        return 'not evaluated'


def progress(cell: Cell) -> Progress:
    """Find the progress of a cell (one run of an experiment) from its checkpoints and
    logs.

    Args:
        cell: The cell.
    """
    missing = tuple(Path(path) for path in cell.makes if not Path(path).exists())
    checkpoint = last_checkpoint(cell.work_dir)
    evaluations = read_evaluations(cell.work_dir)
    if not checkpoint and not evaluations:
        return Progress(missing=missing)
    train_cfg = Config.fromfile(cell.config, import_custom_modules=False).train_cfg
    by_epoch = 'max_epochs' in train_cfg
    unit = 'epoch' if by_epoch else 'iteration'
    steps = train_cfg['max_epochs' if by_epoch else 'max_iters']
    reached = checkpoint.step if checkpoint else 0
    # For a test, the step is taken from the name of the checkpoint. The step is None if
    # the name does not contain it.
    evaluated = bool(evaluations) and (
        evaluations[-1].step == steps
        or (evaluations[-1].step is None and reached == steps)
    )
    if checkpoint and reached < steps:
        evaluated = False  # The evaluation is of an earlier training.
    return Progress(unit, steps, reached, evaluated, missing)


def state(cell: Cell) -> str:
    """Progress of a cell (one run of an experiment) in words: 'not begun', 'after epoch
    3 of 12', 'not evaluated', 'without FILE' or 'finished'."""
    return str(progress(cell))
