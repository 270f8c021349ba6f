"""Plan the runs of a comparison from the options of a command line."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmengine.config import Config

from ..experiments import Cell, read_record, write_config
from ..experiments.cells import progress
from ..experiments.records import begin_record
from ..files.atomic import write_file
from ..inspection.figure_files import check_folder
from ..launch import check_data
from .blocks import CONTROL, Block
from .placement import Placed, place
from .rehearsal import Rehearsal, Rehearsed, write_start

# A config must have these keys, because without an evaluation there is no result.
_EVALUATION = ('val_dataloader', 'val_evaluator')
# Name of a file in the comparison's folder. It stores the results of the rehearsal (one
# step of each network).
_REHEARSAL = 'rehearsal.json'
#: Keys of a scheduler's config whose values are numbers of epochs. If ``by_epoch`` is
#: False, the values are numbers of iterations.
_STEPS = ('begin', 'end', 'T_max', 'milestones', 'step_size', 'total_steps')
# If the ``end`` of a scheduler is this number or larger, the scheduler never ends.
# MMEngine's default ``end`` is 10**9.
_ENDLESS = 10**8


@dataclass(frozen=True)
class Variant:
    """The control or a block, at one learning rate, trained with every seed."""

    lr: float | None  # None stands for the learning rate in the config
    label: str  # name of the block, or 'none' for the control
    model: dict  # config of the detector
    placed: Placed | None = None  # the place of the block. None for the control
    # Results of one step that was run to find mistakes. None if no such step was run.
    rehearsed: Rehearsed | None = None

    @property
    def name(self) -> str:
        rate = '' if self.lr is None else f' at learning rate {self.lr:g}'
        return f'{self.label}{rate}'

    @property
    def folder(self) -> str:
        rate = '' if self.lr is None else f'_lr{self.lr:g}'
        return re.sub(r'[^\w.=+-]+', '_', self.label) + rate


@dataclass(frozen=True)
class Comparison:
    """All runs of a comparison, with the settings that they share.

    If ``partial``, the checkpoint ``load_from`` may lack weights or contain others.
    Then the runs of one seed start from a new checkpoint. It has the weights that fit,
    and initial values for the missing weights.
    """

    config: str  # the user's config file
    cfg: Config  # the content of this config file, with the user's options
    # New values in the config, by dotted key. All runs get these values.
    changes: dict
    work_dir: Path  # folder of all runs
    # Grouped by learning rate. In each group, the control comes first.
    variants: list[Variant]
    seeds: list[int]
    # The metric that decides the verdicts. If it is None, ``main_metric`` chooses one.
    metric: str | None = None
    load_from: str | None = None
    partial: bool = False
    # Texts that the user should read before the first run.
    warnings: list[str] = field(default_factory=list)

    def cell_dir(self, variant: Variant, seed: int) -> Path:
        """Work dir of one run."""
        return self.work_dir / variant.folder / f'seed{seed}'

    def cells(self) -> list[Cell]:
        """The runs in order: all networks with the first seed, then all with the next
        seed. So even an unfinished comparison can compare networks."""
        return [
            self.cell(variant, seed) for seed in self.seeds for variant in self.variants
        ]

    def cell(self, variant: Variant, seed: int, config: Path | None = None) -> Cell:
        """One run. ``config`` is the path of its config file. By default, the config
        file is in the folder that also contains the run's work dir."""
        work_dir = self.cell_dir(variant, seed)
        path = config or work_dir.with_suffix('.py')
        changes = dict(self.changes)
        changes['model'] = dict(copy.deepcopy(variant.model), _delete_=True)
        if variant.lr is not None:
            changes.update(_at_rate(self.cfg, changes, variant.lr))

        start = self.work_dir.absolute() / f'start_seed{seed}.pth'
        if self.load_from and self.partial:
            changes['load_from'] = str(start)

        def prepare() -> None:
            if self.load_from and self.partial and not start.exists():
                write_start(start, self.cfg.model, self.load_from, seed)
            write_config(path, self.config, changes, seed)

        return Cell(
            name=f'{variant.name}, seed {seed}',
            config=str(path),
            work_dir=work_dir,
            prepare=prepare,
        )


def make_comparison(
    config: str,
    blocks: Sequence[Block],
    *,
    seeds: int,
    work_dir: str | Path,
    load_from: str | None = None,
    epochs: int | None = None,
    rates: Sequence[float] = (),
    metric: str | None = None,
    options: dict | None = None,
    keep_checkpoints: bool = False,
    partial: bool = False,
    ranks: int = 1,
    rehearse: bool = True,
) -> Comparison:
    """Plan a comparison. Settings that would fail during the runs raise an error now.

    Args:
        config: The user's config file.
        blocks: Result of :func:`read_blocks`.
        seeds: Number of seeds.
        work_dir: Folder of all runs.
        load_from: Checkpoint to start from. Default: as in the config.
        epochs: Length of the training in epochs, or in iterations if the config counts
            iterations. The schedule is shortened, too. Default: as in the config.
        rates: Learning rates. Default: only the rate in the config.
        metric: The metric that decides the verdicts. Default: :func:`main_metric`
            chooses the metric.
        options: Changes to the config, by dotted key.
        keep_checkpoints: Whether runs keep checkpoints as the config says. Otherwise
            they keep only the last checkpoint.
        partial: Whether ``load_from`` may lack weights or contain others.
        ranks: Number of processes of each run.
        rehearse: Whether to run one step of each network first, to find mistakes.

    Raises:
        ValueError: A setting does not fit. The message names the setting, and says what
            to do.
        MissingInput: Files of the data set are missing.
    """
    if seeds < 1:
        raise ValueError(f'--seeds must be at least 1, got {seeds}')
    if not Path(config).is_file():
        raise ValueError(f'{config} is not a file; name a config file')
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options or {})
    for name in ('model', 'train_dataloader', 'train_cfg', *_EVALUATION):
        if not cfg.get(name):
            raise ValueError(f'{config} has no {name}')
    check_data(cfg, 'train', 'val')
    load_from = load_from or cfg.get('load_from')
    if load_from and os.path.exists(load_from):
        load_from = os.path.abspath(load_from)
    changes = dict(options or {})
    changes.update(load_from=load_from, resume=False)
    if epochs is not None:
        changes.update(_shortened(cfg, epochs))
    changes.update(_for_all_runs(cfg, keep_checkpoints))
    rehearsal = Rehearsal(cfg, load_from, partial) if rehearse else None
    if rehearsal:
        metric = main_metric(metric, rehearsal.metrics)
    saved = {} if rehearsal else _saved_rehearsal(Path(work_dir))
    control = rehearsal.control if rehearsal else saved.get(CONTROL)
    found: list[tuple] = [(CONTROL, cfg.model, None, control)]
    for block in blocks:
        try:
            placed = place(cfg.model, block)
            shown = rehearsal.block(placed) if rehearsal else saved.get(block.label)
        except ValueError as error:
            raise ValueError(f'{block.label}: {error}') from error
        found.append((block.label, placed.model, placed, shown))
    learning_rates: list[float | None] = [*rates] or [None]
    for lr in rates:
        # If the config has no learning rate, this raises ValueError.
        _at_rate(cfg, changes, lr)
    variants = [Variant(lr, *each) for lr in learning_rates for each in found]
    comparison = Comparison(
        config=config,
        cfg=cfg,
        changes=changes,
        work_dir=Path(work_dir),
        variants=variants,
        seeds=list(range(seeds)),
        metric=metric,
        load_from=load_from,
        partial=partial,
        warnings=_warnings(cfg, changes, rehearsal.images, ranks) if rehearsal else [],
    )
    if rehearse:
        _check_space(comparison)
    return comparison


def check_settings(comparison: Comparison, ranks: int) -> None:
    """Raise ValueError if a run of the first seed has begun with other settings.

    If a begun run is not finished, its number of ranks must be the same, too.
    """
    seed = comparison.seeds[0]
    with tempfile.TemporaryDirectory() as folder:
        for variant in comparison.variants:
            record = read_record(comparison.cell_dir(variant, seed))
            if record is None:
                continue
            cell = comparison.cell(variant, seed, Path(folder, 'config.py'))
            if cell.prepare:
                cell.prepare()
            # Before the first checkpoint, the user is free to change the settings.
            found = progress(cell)
            if found.steps:
                own = record['settings']['--ranks']
                begin_record(cell, own if found.finished else ranks, record)


def save_rehearsal(comparison: Comparison) -> None:
    """Write the results of the rehearsal (one step of each network) to a file, for
    reports that are made later without a rehearsal."""
    found = {v.label: asdict(v.rehearsed) for v in comparison.variants if v.rehearsed}
    write_file(comparison.work_dir / _REHEARSAL, json.dumps(found, indent=1) + '\n')


def _saved_rehearsal(work_dir: Path) -> dict[str, Rehearsed]:
    try:
        found = json.loads((work_dir / _REHEARSAL).read_text('utf-8'))
    except FileNotFoundError:
        return {}
    return {label: Rehearsed(**values) for label, values in found.items()}


def main_metric(chosen: str | None, metrics: Sequence[str]) -> str:
    """The metric that decides the verdicts.

    This is the metric that the user chose. Otherwise it is the first metric whose name
    ends in 'mAP', or the first metric if no name ends so.

    Args:
        chosen: The metric that the user chose, or None.
        metrics: Names of the metrics that the evaluator reports. The list can be empty.

    Raises:
        ValueError: The evaluator does not report the chosen metric.
    """
    if chosen is None:
        return next((m for m in metrics if m.endswith('mAP')), next(iter(metrics), ''))
    if metrics and chosen not in metrics:
        raise ValueError(
            f'the evaluator gives no metric {chosen!r}. It gives {", ".join(metrics)}'
        )
    return chosen


def _for_all_runs(cfg: Config, keep_checkpoints: bool) -> dict:
    """Changes to the config that every run gets, the control included."""
    hooks = [*(cfg.get('custom_hooks') or [])]
    hooks.append(dict(type='prm_mmdet.PairedRun', control=cfg.model))
    # A run that was interrupted and continued must draw the same random numbers as an
    # uninterrupted run. Persistent data workers would prevent this, because their
    # random state cannot be restored.
    changes: dict = {
        'custom_hooks': hooks,
        'train_dataloader.persistent_workers': False,
    }
    if not keep_checkpoints and (cfg.get('default_hooks') or {}).get('checkpoint'):
        changes['default_hooks.checkpoint.max_keep_ckpts'] = 1
        changes['default_hooks.checkpoint.save_best'] = None
    visualizer = cfg.get('visualizer') or {}
    backends = visualizer.get('vis_backends') or []
    if not any('LocalVisBackend' in str(backend.get('type')) for backend in backends):
        # LocalVisBackend writes the log that the report reads.
        backends = [*backends, dict(type='LocalVisBackend')]
        kind = visualizer.get('type', 'DetLocalVisualizer')
        changes['visualizer'] = dict(visualizer, type=kind, vis_backends=backends)
    return changes


def _shortened(cfg: Config, steps: int) -> dict:
    """Changes to the config that make the training ``steps`` epochs or iterations long.
    The schedules of the config are scaled, too."""
    if steps < 1:
        raise ValueError(f'--epochs must be at least 1, got {steps}')
    key = 'max_epochs' if 'max_epochs' in cfg.train_cfg else 'max_iters'
    if key not in cfg.train_cfg:
        raise ValueError('train_cfg has neither max_epochs nor max_iters')
    factor = steps / cfg.train_cfg[key]
    by_epoch = key == 'max_epochs'
    changes: dict = {f'train_cfg.{key}': steps}
    for name in ('val_interval', 'val_begin'):
        if name in cfg.train_cfg:
            changes[f'train_cfg.{name}'] = min(cfg.train_cfg[name], steps)
    scaled = [
        _scaled(s, factor) if s.get('by_epoch', True) == by_epoch else dict(s)
        for s in _schedulers(cfg, {})
    ]
    # Rounding can make a scheduler's begin and end equal. Leave such a scheduler out.
    if scaled:
        changes['param_scheduler'] = [
            s for s in scaled if s.get('begin', 0) < s.get('end', _ENDLESS)
        ]
    hooks = copy.deepcopy(cfg.get('custom_hooks') or [])
    for hook in hooks:
        for name in ('switch_epoch', 'num_last_epochs'):
            if name in hook:
                hook[name] = max(1, round(hook[name] * factor))
    cfg.custom_hooks = hooks
    return changes


def _schedulers(cfg: Config, changes: dict) -> list[dict]:
    """The list of schedulers in ``changes``, or else in the config. In a config, a
    single scheduler can be without a list."""
    found = changes.get('param_scheduler', cfg.get('param_scheduler')) or []
    return [found] if isinstance(found, dict) else [*found]


def _scaled(scheduler: dict, factor: float) -> dict:
    """A scheduler's config with all numbers of epochs or iterations multiplied by a
    factor."""

    def scale(value: object) -> object:
        if isinstance(value, (list, tuple)):
            return [scale(v) for v in value]
        if isinstance(value, (int, float)) and 0 < value < _ENDLESS:
            return max(1, round(value * factor))
        return value

    return {k: scale(v) if k in _STEPS else v for k, v in scheduler.items()}


def _at_rate(cfg: Config, changes: dict, lr: float) -> dict:
    """Changes to the config for another learning rate. Absolute rates in the schedule,
    such as ``eta_min``, change by the same factor."""
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    own = optimizer.get('lr')
    if not isinstance(own, (int, float)):
        raise ValueError('--lr: the config has no optim_wrapper.optimizer.lr')
    if lr <= 0:
        raise ValueError(f'--lr must be above 0, got {lr:g}')
    own = changes.get('optim_wrapper.optimizer.lr', own)
    found: dict = {'optim_wrapper.optimizer.lr': lr}
    if schedulers := _schedulers(cfg, changes):
        found['param_scheduler'] = [
            {k: v * lr / own if k == 'eta_min' else v for k, v in s.items()}
            for s in schedulers
        ]
    return found


def _warnings(cfg: Config, changes: dict, images: int, ranks: int) -> list[str]:
    """A warning for each scheduler that counts iterations and ends in the second half
    of the training, or after the training."""
    epochs = changes.get('train_cfg.max_epochs', cfg.train_cfg.get('max_epochs'))
    batch = cfg.train_dataloader.get('batch_size')
    if not epochs or not batch:
        return []
    iterations = epochs * max(1, images // (batch * ranks))
    schedulers = _schedulers(cfg, changes)
    ends = [s.get('end', 0) for s in schedulers if not s.get('by_epoch', True)]
    return [
        f'the schedule by iteration ends after {end} iterations, and the training has '
        f'about {iterations}: choose more --epochs or change param_scheduler'
        for end in ends
        if iterations / 2 < end < _ENDLESS
    ]


def _check_space(comparison: Comparison) -> None:
    """Raise ValueError if the checkpoints cannot be written, or need too much space."""
    check_folder(comparison.work_dir)
    path = comparison.work_dir.absolute()
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    # A checkpoint has 12 bytes for each parameter: the weight, and two numbers of
    # AdamW. Each run keeps one checkpoint. While a run writes its next checkpoint, one
    # more exists.
    sizes = [12 * v.rehearsed.parameters for v in comparison.variants if v.rehearsed]
    needed = sum(sizes) * len(comparison.seeds) + max(sizes)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f'the checkpoints need {needed / 1e9:.1f} GB, and {place} has '
            f'{free / 1e9:.1f} GB left; choose another --work-dir'
        )
