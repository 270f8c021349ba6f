"""Training and evaluating cells, each into a small record of its own.

Cells start from the weights of a base, which is trained once and kept beside the logs.

A record is a JSON file: the cell, ``ap`` and ``ap50``, the number of ``parameters``,
``seconds``, ``date``, ``versions``, ``config``, a hash of all that the result depends
on, and ``example``, what the network finds in the first validation image: boxes (x1,
y1, x2, y2 in pixels), labels and scores.
"""

import contextlib
import copy
import dataclasses
import datetime
import functools
import hashlib
import json
import multiprocessing
import os
import platform
import signal
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import mmcv
import mmdet
import mmengine
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config

from .. import __version__, compat
from ..checkpoint_io import write_checkpoint
from ..config import config_path
from ..datasets import probes as data
from ..datasets.generated import write_file
from ..launch import TrainRunner
from .cells import Cell

NUM_TRAIN, NUM_VAL = 320, 100
EXAMPLE_SCORE = 0.3  # detections under it are not recorded


def cell_config(cell, data_root, work_dirs):
    """The config of a cell.

    Args:
        cell (Cell): The cell.
        data_root (str): Folder of the probes' folders.
        work_dirs (str): Folder of the bases' weights.
    """
    os.environ['PROBE_DATA'] = os.path.join(os.path.abspath(data_root), cell.probe)
    cfg = Config.fromfile(config_path(f'probes/{cell.network}.py'))
    if cell.base:
        cfg.load_from = str(weights_path(cell.base, work_dirs))
    return _tuned(cfg, cell)


def weights_path(base, work_dirs):
    """Where the weights of a base are kept, by what they depend on."""
    return Path(work_dirs, f'{base.name}_{fingerprint(base)}.pth')


def _tuned(cfg, cell):
    cfg.optim_wrapper.optimizer.lr = cell.rate
    cfg.randomness = dict(seed=cell.seed)
    return cfg


@functools.cache
def _network_config(network):
    return Config.fromfile(config_path(f'probes/{network}.py'))


def fingerprint(cell):
    """Twelve hexadecimal digits that change with the model, the recipe, the version of
    the data and the base."""
    cfg = _tuned(copy.deepcopy(_network_config(cell.network)), cell)
    names = 'model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'randomness'
    parts = [cfg.to_dict()[name] for name in names]
    parts += [cfg.train_dataloader.batch_size, data.VERSION, NUM_TRAIN, NUM_VAL]
    if cell.base:
        parts.append(fingerprint(cell.base))
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_records(folder):
    """The records in a folder that are of their cells' present configs, by the cells'
    names."""
    records = {}
    for path in sorted(Path(folder).glob('*.json')):
        record = json.loads(path.read_text(encoding='utf-8'))
        cell = Cell(*(record[f.name] for f in dataclasses.fields(Cell)))
        if record['config'] == fingerprint(cell):
            records[cell.name] = record
    return records


def run_cells(
    cells, folder, data_root='data/probes', work_dirs='work_dirs/probes', jobs=1
):
    """Run the cells that have no record of their present config, and before them the
    bases that they start from; a failure stops no other. Says what comes of each.

    Args:
        cells (Sequence[Cell]): From :mod:`prm_mmdet.probes.cells`.
        folder (str): Of the records.
        data_root (str): Folder of the probes' data, which is made if it is missing.
            Default: 'data/probes'.
        work_dirs (str): Folder of the logs and of the bases' weights. Default:
            'work_dirs/probes'.
        jobs (int): Processes at a time. With more than one, each has one thread.
            Default: 1.

    Returns:
        int: How many failed.
    """
    register_all_modules()
    done = read_records(folder)
    waiting = [cell for cell in cells if cell.name not in done]
    _say(f'{len(cells) - len(waiting)} of {len(cells)} cells have their record')
    bases = [
        base
        for base in dict.fromkeys(cell.base for cell in waiting)
        if not weights_path(base, work_dirs).exists()
    ]
    for probe in dict.fromkeys(cell.probe for cell in bases + waiting):
        root = os.path.join(data_root, probe)
        data.generate_probe(root, probe, NUM_TRAIN, NUM_VAL)
    # Processes that run several cells: each takes seconds to start.
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(jobs, context, _leave_interrupts_to_parent) as pool:
        where = dict(folder=folder, data_root=data_root, work_dirs=work_dirs)
        run = functools.partial(_run_cell, **where, jobs=jobs)
        try:
            _run_all(pool, run, bases, work_dirs)
            return _run_all(pool, run, waiting, work_dirs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _leave_interrupts_to_parent():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_all(pool, run, cells, work_dirs):
    """Run cells in the processes of a pool; how many failed."""
    failed, begun = 0, time.monotonic()
    futures = {pool.submit(run, cell): cell for cell in cells}
    for n, future in enumerate(as_completed(futures), 1):
        record = future.result()
        left = (time.monotonic() - begun) / n * (len(cells) - n)
        title = f'[{n}/{len(cells)}] {futures[future].name}:'
        if record is None:
            failed += 1
            _say(f'{title} failed; see {_log(work_dirs, futures[future])}')
            continue
        _say(
            f'{title} AP {record["ap"]:.3f}, AP50 {record["ap50"]:.3f}, '
            f'{record["seconds"]:.0f} s; {left / 60:.0f} min left'
        )
    return failed


def run_cell(cell, data_root, work_dirs):
    """Train and evaluate a cell: its record, a dict. A base's weights are kept."""
    cfg = cell_config(cell, data_root, work_dirs)
    record = dataclasses.asdict(cell)
    record['config'] = fingerprint(cell)
    cfg.work_dir = os.path.join(work_dirs, cell.name)
    cfg.default_hooks.checkpoint = None
    begun = time.monotonic()
    runner = TrainRunner.from_cfg(cfg)
    runner.train()
    record['seconds'] = round(time.monotonic() - begun, 1)
    scalars = runner.message_hub.log_scalars
    record['ap'] = float(scalars['val/coco/bbox_mAP'].current())
    record['ap50'] = float(scalars['val/coco/bbox_mAP_50'].current())
    record['parameters'] = sum(p.numel() for p in runner.model.parameters())
    record['date'] = datetime.date.today().isoformat()
    record['versions'] = dict(
        prm_mmdet=__version__,
        mmdet=mmdet.__version__,
        mmcv=mmcv.__version__,
        mmengine=mmengine.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
    )
    record['example'] = _example(runner)
    if not cell.base:
        weights = {'state_dict': runner.model.state_dict()}
        write_checkpoint(weights, weights_path(cell, work_dirs))
    return record


@torch.no_grad()
def _example(runner):
    found = runner.model.test_step(next(iter(runner.val_dataloader)))[0].pred_instances
    found = found[found.scores >= EXAMPLE_SCORE]
    return dict(
        boxes=[[round(x, 1) for x in box] for box in found.bboxes.tolist()],
        labels=found.labels.tolist(),
        scores=[round(score, 3) for score in found.scores.tolist()],
    )


def _run_cell(cell, folder, data_root, work_dirs, jobs):
    """Run a cell in a process of the pool: its record, or None if it failed."""
    compat.hide_known_warnings()
    register_all_modules()
    if jobs > 1:
        torch.set_num_threads(1)
    log = _log(work_dirs, cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(log.open('w', encoding='utf-8'))
        stack.enter_context(contextlib.redirect_stdout(file))
        stack.enter_context(contextlib.redirect_stderr(file))
        try:
            record = run_cell(cell, data_root, work_dirs)
        except Exception:  # of any kind: the next cell is another matter
            traceback.print_exc(file=file)
            return None
    os.makedirs(folder, exist_ok=True)
    text = json.dumps(record, indent=1) + '\n'
    write_file(os.path.join(folder, f'{cell.name}.json'), text.encode())
    return record


def _log(work_dirs, cell):
    return Path(work_dirs, f'{cell.name}.log')


def _say(text):
    print(text, flush=True)
