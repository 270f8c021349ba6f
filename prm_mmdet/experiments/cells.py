"""One run of an experiment, and its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from ..files.atomic import write_file
from .logs import last_checkpoint, read_evaluations

# Name of the file in a run's work dir that records its settings, times and results.
RECORD = 'record.json'


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of an experiment: a config that is trained and evaluated."""

    name: str  # unique in the experiment, for messages and record files
    config: str  # path of the config file
    # Folder of the run's logs, checkpoints and record file. No other run uses it.
    work_dir: Path
    # Whether train.py scales the learning rate to the batch size.
    auto_scale_lr: bool = False
    after: tuple[str, ...] = ()  # names of the runs whose results this run needs
    # Commands (lists of arguments) to run after the evaluation, in the same Slurm job.
    then: tuple[tuple[str, ...], ...] = ()
    # Files that a command in ``then`` or a hook of the training writes. The run is
    # finished only if all these files exist.
    makes: tuple[Path, ...] = ()
    # Writes the config file. It is called before the config file is read.
    prepare: Callable[[], None] | None = None
    # Environment variables of the run's processes.
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """File with the output of the run's processes."""
        return Path(self.work_dir, 'run.log')


def write_config(
    path: str | Path, base: str | Path, changes: Mapping, seed: int | None = None
) -> None:
    """Write a config file that has the content of another config, with changes.

    The new file also has all that the other config inherits, and no ``_base_``. So a
    later change of the file ``base`` has no effect on runs that have begun.

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
    """Progress of a cell (one run of an experiment)."""

    unit: str = 'epoch'  # the unit of all steps, 'epoch' or 'iteration'
    # Number of steps of the whole training. It is 0 before the first checkpoint or
    # evaluation.
    steps: int = 0
    reached: int = 0  # step of the newest checkpoint. 0 if there is no checkpoint
    evaluated: bool = False  # whether the trained model was evaluated
    # Files that the run must write (``Cell.makes``) and that do not exist yet.
    missing: tuple[Path, ...] = ()
    # Whether the run has begun. Then it has a record, a checkpoint or an evaluation.
    begun: bool = False

    @property
    def finished(self) -> bool:
        return self.evaluated and not self.missing

    def __str__(self) -> str:
        if self.finished:
            return 'finished'
        if self.evaluated:
            return f'without {self.missing[0]}'
        if not self.reached:
            return 'without a checkpoint' if self.begun else 'not begun'
        if self.reached < self.steps:
            return f'after {self.unit} {self.reached} of {self.steps}'
        return 'not evaluated'


def progress(cell: Cell) -> Progress:
    """Progress of a cell (one run of an experiment), from its checkpoints and logs."""
    missing = tuple(Path(path) for path in cell.makes if not Path(path).exists())
    checkpoint = last_checkpoint(cell.work_dir)
    evaluations = read_evaluations(cell.work_dir)
    if not checkpoint and not evaluations:
        return Progress(missing=missing, begun=Path(cell.work_dir, RECORD).is_file())
    train_cfg = Config.fromfile(cell.config, import_custom_modules=False).train_cfg
    by_epoch = 'max_epochs' in train_cfg
    unit = 'epoch' if by_epoch else 'iteration'
    steps = train_cfg['max_epochs' if by_epoch else 'max_iters']
    reached = checkpoint.step if checkpoint else 0
    evaluated = False
    # If the newest checkpoint is from before the last step, the newest training has not
    # ended. An evaluation after the last step then comes from an earlier training.
    if evaluations and (reached >= steps or not checkpoint):
        # If test.py evaluated a checkpoint whose name does not contain a step, the step
        # is None. Then assume that this checkpoint was the last one.
        last = evaluations[-1].step
        evaluated = last == steps or (last is None and reached == steps)
    return Progress(unit, steps, reached, evaluated, missing, begun=True)


def state(cell: Cell) -> str:
    """Progress of a cell (one run of an experiment) in words.

    Examples are 'not begun', 'after epoch 3 of 12', 'not evaluated' and 'finished'. If
    the cell has begun but has no checkpoint, the text says that it will start anew,
    unless it is running now. If all that is missing is a file of ``Cell.makes``, the
    text is 'without' and the file's path.
    """
    found = progress(cell)
    if found.begun and not found.reached and not found.evaluated:
        return f'begun {found}; unless it is running now, it will start anew'
    return str(found)
