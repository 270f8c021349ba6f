"""The record file of a cell (one run of an experiment): settings, times and results."""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path

import mmcv
import mmdet
import mmengine
import torch
from mmengine.config import Config

from ..files.atomic import write_file
from ..version import __version__
from .cells import RECORD, Cell
from .logs import read_evaluations

_SHOWN = 5  # largest number of changed settings that an error message lists


def read_record(work_dir: str | Path) -> dict | None:
    """The content of the record file in a work dir, or None if there is no file.

    A record has ``name``, ``config`` (path of the config file), ``settings`` (all
    values of the config by dotted key, and the options of the launch), ``versions`` (of
    packages), ``begun`` (a time) and ``seconds`` (the total duration).

    The record of a finished cell also has ``ended`` (a time), the ``metrics`` of the
    last evaluation, its ``step`` and ``unit`` ('epoch' or 'iteration'), and all
    ``evaluations`` in order. If a hook of the training wrote ``measured.json``, the
    record has the content of this file under the key ``measured``.

    Raises:
        ValueError: The file is not a record.
    """
    path = Path(work_dir, RECORD)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
        record['settings'], record['begun'], record['seconds']
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is not a record of a run: remove it') from error
    return record


def write_record(record: dict, work_dir: str | Path) -> None:
    """Write the record of a cell (one run of an experiment) into its work dir."""
    write_file(Path(work_dir, RECORD), json.dumps(record, indent=1) + '\n')


def begin_record(cell: Cell, ranks: int, earlier: dict | None = None) -> dict:
    """The record of a cell (one run of an experiment) that starts or continues.

    Args:
        cell: The cell.
        ranks: Number of processes that train the cell.
        earlier: The record in the work dir, or None if there is none.

    Raises:
        ValueError: The earlier record has other settings.
    """
    config = Config.fromfile(cell.config, import_custom_modules=False).to_dict()
    settings = _flat(json.loads(json.dumps(config, default=str)))
    settings.update({'--ranks': ranks, '--auto-scale-lr': cell.auto_scale_lr})
    old = earlier['settings'] if earlier else settings
    changed = [k for k in {**old, **settings} if old.get(k) != settings.get(k)]
    if changed:
        lines = [f'{k}: {old.get(k)} to {settings.get(k)}' for k in changed[:_SHOWN]]
        if len(changed) > _SHOWN:
            lines.append(f'{len(changed) - _SHOWN} more')
        raise ValueError(
            f'{cell.work_dir} has begun with other settings ({"; ".join(lines)}): go '
            'on with the old settings, or move the folder away to begin anew'
        )
    return dict(
        name=cell.name,
        config=str(cell.config),
        versions=dict(
            prm_mmdet=__version__,
            **{m.__name__: m.__version__ for m in (mmdet, mmcv, mmengine, torch)},
            python=platform.python_version(),
        ),
        begun=earlier['begun'] if earlier else _now(),
        seconds=earlier['seconds'] if earlier else 0.0,
        settings=settings,
    )


def finish_record(record: dict, work_dir: str | Path) -> dict:
    """Complete a record of :func:`begin_record` after the cell (one run of an
    experiment) has finished, and write it into the cell's work dir."""
    evaluations = read_evaluations(work_dir)
    last = evaluations[-1]
    # Earlier runs of test.py may have evaluated other checkpoints. So use only the
    # evaluations during the training, and the last evaluation.
    during = [e for e in evaluations if not e.test or e is last]
    by_step = {e.step: e.metrics for e in during if e.step is not None}
    record = dict(record, ended=_now(), unit=last.unit, step=last.step)
    record['metrics'] = last.metrics
    record['evaluations'] = [dict(step=k, **by_step[k]) for k in sorted(by_step)]
    measured = Path(work_dir, 'measured.json')
    if measured.is_file():
        record['measured'] = json.loads(measured.read_text(encoding='utf-8'))
    write_record(record, work_dir)
    return record


def _flat(node: object, key: str = '') -> dict:
    """The values in nested dicts and lists, by dotted key."""
    if not isinstance(node, (dict, list)) or not node:
        return {key: node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    flat = {}
    for name, child in items:
        flat.update(_flat(child, f'{key}.{name}' if key else str(name)))
    return flat


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec='seconds')
