"""Run trials, and write a record of each. A trial trains a network on a data set."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from prm_mmdet.experiments import Cell, Launch, run_cells
from prm_mmdet.experiments.runner import WELL
from prm_mmdet.files.atomic import write_file
from prm_mmdet.files.lock import lock_folder

from . import records
from .images import generate_probe
from .trials import EPOCHS, Trial

_PROJECT = Path(__file__).parents[1]


def run_trials(
    trials: Sequence[Trial],
    path: str | Path = records.RECORDS,
    data_root: str = 'data/probes',
    work_dirs: str = 'work_dirs/probes',
    jobs: int = 1,
) -> bool:
    """Run the trials that have no record, or whose config changed after the record.

    A trial starts from the weights of a base network. The trials that train the base
    networks are run first.

    Args:
        trials: The trials.
        path: File of the records, which is read and written.
        data_root: Folder of the probes' data, which is made if it is missing.
        work_dirs: Folder of the runs.
        jobs: Number of trials at the same time. If several, each has one thread.

    Returns:
        Whether every trial has a record now.

    Raises:
        KeyboardInterrupt: The run was interrupted.
        OSError: Another process runs trials for the same records.
        ValueError: The file of the records or the data are damaged.
    """
    done = records.read_records(path)
    waiting = [trial for trial in trials if trial.name not in done]
    print(f'{len(trials) - len(waiting)} of {len(trials)} trials have their record')
    bases = dict.fromkeys(trial.base for trial in waiting if trial.base)
    everything = {trial.name: trial for trial in [*bases, *waiting]}
    for probe in dict.fromkeys(trial.probe for trial in everything.values()):
        root = os.path.join(data_root, probe)
        generate_probe(root, probe, records.NUM_TRAIN, records.NUM_VAL)

    def keep(cell: Cell, record: dict) -> None:
        trial = everything[cell.name]
        records.add_records([_record_of(trial, record)], path)

    cells = [_cell(trial, data_root, work_dirs) for trial in everything.values()]
    # Lock the file: two processes that write records would lose each other's lines.
    with lock_folder(Path(path).parent, '.records.lock'):
        outcomes = run_cells(cells, Launch(jobs=jobs), keep)
    return all(outcome.word in WELL for outcome in outcomes.values())


def _cell(trial: Trial, data_root: str, work_dirs: str) -> Cell:
    folder = records.work_dir(trial, work_dirs)
    config = folder / 'trial.py'
    path = [str(_PROJECT), os.environ.get('PYTHONPATH', '')]
    return Cell(
        name=trial.name,
        config=str(config),
        work_dir=folder,
        after=(trial.base.name,) if trial.base else (),
        makes=() if trial.base else (records.weights_path(trial, work_dirs),),
        prepare=functools.partial(_write_config, config, trial, data_root, work_dirs),
        env={'PYTHONPATH': os.pathsep.join(filter(None, path))},
    )


def _write_config(path: Path, trial: Trial, data_root: str, work_dirs: str) -> None:
    cfg = records.trial_config(trial, data_root, work_dirs)
    hook = dict(type='ProbeMeasurements', count_right=trial.epochs != EPOCHS)
    if trial.base:
        hook['base'] = cfg.load_from
    else:
        hook['weights'] = str(records.weights_path(trial, work_dirs))
    cfg.custom_hooks = [hook]
    cfg.custom_imports.imports.append('context_probes.measurements')
    # A trial takes two minutes, so it needs no checkpoint to continue from.
    cfg.default_hooks.checkpoint = None
    write_file(path, cfg.pretty_text)


def _record_of(trial: Trial, record: dict) -> dict:
    """The line of ``records.jsonl`` for a trial. ``record`` comes from ``run_cells``,
    which ran the training."""
    metrics = record['metrics']
    return dict(
        dataclasses.asdict(trial),
        config=records.fingerprint(trial),
        seconds=record['seconds'],
        ap=metrics['coco/bbox_mAP'],
        ap50=metrics['coco/bbox_mAP_50'],
        date=record['ended'][:10],
        versions=record['versions'],
        **record['measured'],
    )
