"""Train the configs in the papers' tables, and the backbones that they need."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mmengine.config import Config

from ..config import config_path
from ..experiments import Cell, Launch, Outcome, run_cells, state
from ..experiments.launchers import tool_path
from ..launch import check_data
from .smoke import write_smoke_config
from .table import Row, Table
from .tables import TABLES

#: Environment variables that name the folders of COCO and ImageNet.
DATA_ROOTS = ('MMDET_DATASETS', 'IMAGENET')


@dataclass(frozen=True)
class Runs:
    """Where and how the configs in the papers' tables are run.

    Args:
        work_dirs: Folder of the runs. It has one folder for each config, as MMDetection
            names them. Smoke runs are placed in its folder ``smoke``.
        smoke: Whether to run a few iterations on small images, without pre-trained
            weights.
        ranks: Number of processes of each run. Each process uses one GPU.
    """

    work_dirs: str = 'work_dirs'
    smoke: bool = False
    ranks: int = 1

    @property
    def folder(self) -> Path:
        return Path(self.work_dirs, 'smoke') if self.smoke else Path(self.work_dirs)


def choose(tables: Sequence[Table], patterns: Sequence[str] = ()) -> list[str]:
    """The configs in the tables, each once, in the order of the tables' rows.

    Args:
        tables: Tables, from :data:`prm_mmdet.papers.TABLES`.
        patterns: Shell patterns. The name of a config, without ``.py``, must match one
            of them. Default: (), for all configs.

    Raises:
        ValueError: A pattern matches no config.
    """
    configs = list(dict.fromkeys(row.config for t in tables for row in t.rows))
    stems = [Path(config).stem for config in configs]
    for pattern in patterns:
        if not fnmatch.filter(stems, pattern):
            if pattern in {table.key for table in TABLES}:
                raise ValueError(f'{pattern} is a table: name tables before --rows')
            known = '\n  '.join(stems)
            raise ValueError(f'no row matches {pattern!r}; the rows are\n  {known}')
    matching = {s for pattern in patterns for s in fnmatch.filter(stems, pattern)}
    return [c for c in configs if not patterns or Path(c).stem in matching]


def from_torchvision(table: Table) -> Table:
    """A copy of a table, with detectors that start from torchvision's backbones.

    Their blocks start untrained, in c3-c5 (ResNet's ``layer2`` to ``layer4``). The rows
    with blocks have no numbers, because the paper pre-trained the backbones together
    with the blocks. Baselines keep the paper's numbers.

    Args:
        table: A table of detectors with blocks in c2-c5.

    Raises:
        ValueError: No row of the table has a backbone pre-trained with a block.
    """
    if not any(backbone_of(row.config) for row in table.rows):
        raise ValueError(
            f'{table.key} has no backbones that are pre-trained with a block: leave '
            '--from-torchvision out'
        )
    rows = tuple(
        Row(row.config.replace('-c2-c5', '-c3-c5'), row.baseline, {})
        if backbone_of(row.config)
        else row
        for row in table.rows
    )
    columns = tuple(c for c in table.columns if '_mAP' in c)
    title = f'{table.title} (blocks untrained, in c3-c5: not in the paper)'
    return replace(table, title=title, rows=rows, columns=columns, counting=None)


def backbone_of(config: str) -> tuple[str, str] | None:
    """The weights that a detector's backbone starts from, and the config that trains
    these weights.

    Args:
        config: Path of the detector's config below ``configs/``.

    Returns:
        The file of the weights, as named in the detector's config, and a config of a
        classification table of the same paper. None if the weights are public ones.
    """
    paper, _, name = config.partition('/')
    if paper == 'imagenet' or '-c2-c5' not in name:
        return None
    init_cfg = Config.fromfile(config_path(config)).model.backbone.init_cfg
    block = Path(init_cfg.checkpoint).stem.removesuffix('_imagenet')
    rows = [
        row.config
        for table in TABLES
        for row in table.rows
        if table.key.startswith(f'{paper}-')
        and row.config.startswith(f'imagenet/{block}-c2-c5_')
    ]
    return init_cfg.checkpoint, rows[0]


def row_cells(configs: Sequence[str], runs: Runs) -> dict[str, Cell]:
    """One cell (a run of an experiment) for each config. The keys are the configs.

    If a config needs a backbone whose file does not exist, the cell that trains the
    backbone comes first.

    Args:
        configs: Paths below ``configs/``, from :func:`choose`.
        runs: Where and how the configs are run.
    """
    cells: dict[str, Cell] = {}
    for config in configs:
        after: tuple[str, ...] = ()
        needed = backbone_of(config)
        if needed:
            name, backbone = needed
            file = Path(runs.folder, name) if runs.smoke else Path(name)
            if not file.exists():
                earlier = cells.get(backbone) or _cell(backbone, runs)
                cells[backbone] = _publishing(earlier, file, runs)
                after = (earlier.name,)
        cells.setdefault(config, replace(_cell(config, runs), after=after))
    return cells


def _cell(config: str, runs: Runs) -> Cell:
    name = Path(config).stem
    smoke = partial(write_smoke_config, config, runs.folder, runs.ranks)
    return Cell(
        name=name,
        config=str(runs.folder / f'{name}.py') if runs.smoke else config_path(config),
        work_dir=runs.folder / name,
        auto_scale_lr=True,
        prepare=smoke if runs.smoke else None,
        env={k: os.environ[k] for k in DATA_ROOTS if os.environ.get(k)},
    )


def _publishing(cell: Cell, file: Path, runs: Runs) -> Cell:
    """A cell (run) that trains a backbone, then writes the backbone's weights to
    ``file``. The configs of detectors load the weights from this file."""
    config = Config.fromfile(config_path(f'imagenet/{cell.name}.py'))
    epochs = 1 if runs.smoke else config.train_cfg.max_epochs
    checkpoint = str(Path(cell.work_dir, f'epoch_{epochs}.pth'))
    tool = tool_path('publish_checkpoint.py')
    command = (sys.executable, tool, checkpoint, str(file), '--no-hash')
    return replace(cell, then=(command,), makes=(file,))


def run_rows(
    cells: Mapping[str, Cell], launch: Launch, runs: Runs
) -> dict[str, Outcome]:
    """Run cells (runs of an experiment), or submit them to Slurm.

    Args:
        cells: Result of :func:`row_cells`.
        launch: How cells are run.
        runs: Where and how the configs are run.

    Returns:
        The outcome of each cell, by the name of its config.

    Raises:
        MissingInput: A data set is missing. Nothing was started.
        OSError: Slurm is the launcher, and ``squeue`` is missing or fails.
    """

    def clean(cell: Cell, record: dict) -> None:
        # Delete the checkpoints, because those of all smoke runs take tens of
        # gigabytes.
        for checkpoint in Path(cell.work_dir).glob('*.pth') if runs.smoke else ():
            checkpoint.unlink()

    _look_for_data(cells)
    return run_cells(list(cells.values()), launch, clean)


def _look_for_data(cells: Mapping[str, Cell]) -> None:
    """Raise MissingInput if the data set of an unfinished run is missing. All detectors
    use one data set, and all classifiers another. So two checks are enough."""
    found = set()
    for config, cell in cells.items():
        classifies = config.startswith('imagenet/')
        if classifies not in found and state(cell) != 'finished':
            cfg = Config.fromfile(config_path(config))
            check_data(cfg, 'train', 'val', 'test')
            found.add(classifies)


def list_rows(tables: Sequence[Table], configs: Sequence[str], runs: Runs) -> str:
    """A list, as text, of the rows of tables that use the given configs. For each row,
    the list shows the progress, and a pre-trained backbone that is still missing.

    Args:
        tables: Tables.
        configs: Paths below ``configs/``, from :func:`choose`.
        runs: Where and how the configs are run.
    """
    lines = []
    for table in tables:
        rows = [config for config in choose([table]) if config in configs]
        width = max((len(Path(config).stem) for config in rows), default=0)
        if rows:
            lines.append(f'{table.key}: {table.title}')
        for config in rows:
            cells = list(row_cells([config], runs).values())
            lines.append(f'  {Path(config).stem.ljust(width)}  {state(cells[-1])}')
            if len(cells) > 1:
                (file,) = cells[0].makes
                lines.append(
                    f'    needs {file} from {cells[0].name}: {state(cells[0])}'
                )
    return '\n'.join(lines) + '\n'
