"""Training and evaluating cells, each into a small record of its own.

Cells start from the weights of a base, which is trained once and kept beside the logs.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import multiprocessing
import os
import platform
import signal
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import filelock
import mmcv
import mmdet
import mmengine
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import register_all_modules

from prm_mmdet import __version__, compat
from prm_mmdet.files.atomic import write_file
from prm_mmdet.files.checkpoints import (
    read_checkpoint,
    read_state_dict,
    write_checkpoint,
)
from prm_mmdet.launch import TrainRunner

from . import records
from .cells import EPOCHS
from .images import generate_probe

EXAMPLE_SCORE = 0.3  # detections under it are not recorded


def run_cells(
    cells, folder, data_root='data/probes', work_dirs='work_dirs/probes', jobs=1
):
    """Run the cells that have no record of their present config, and before them the
    bases that they start from. A failure stops no other, but those that start from it.
    Says what comes of each.

    Args:
        cells (Sequence[Cell]): From :mod:`context_probes.cells`.
        folder (str): Of the records.
        data_root (str): Folder of the probes' data, which is made if it is missing.
            Default: 'data/probes'.
        work_dirs (str): Folder of the logs and of the bases' weights. Default:
            'work_dirs/probes'.
        jobs (int): Processes at a time. With more than one, each has one thread.
            Default: 1.

    Returns:
        int: How many failed, or could not begin.

    Raises:
        OSError: A folder cannot be written, another run uses ``work_dirs``, or a
            process was killed.
        ValueError: A file among the records or the data is none.
    """
    register_all_modules()
    os.makedirs(folder, exist_ok=True)
    done = records.read_records(folder)
    waiting = [cell for cell in cells if cell.name not in done]
    _say(f'{len(cells) - len(waiting)} of {len(cells)} cells have their record')
    bases = [
        base
        for base in dict.fromkeys(cell.base for cell in waiting)
        if not _is_trained(base, work_dirs)
    ]
    for probe in dict.fromkeys(cell.probe for cell in bases + waiting):
        root = os.path.join(data_root, probe)
        generate_probe(root, probe, records.NUM_TRAIN, records.NUM_VAL)
    # Processes that run several cells: each takes seconds to start.
    context = multiprocessing.get_context('spawn')
    how = jobs, context, _leave_interrupts_to_parent
    with _alone(work_dirs), ProcessPoolExecutor(*how) as pool:
        where = dict(folder=folder, data_root=data_root, work_dirs=work_dirs)
        run = functools.partial(_run_cell, **where, jobs=jobs)
        try:
            _run_all(pool, run, bases, work_dirs)
            ready = [cell for cell in waiting if _is_trained(cell.base, work_dirs)]
            left_out = len(waiting) - len(ready)
            if left_out:
                _say(f'{left_out} cells are left out: their base failed')
            return left_out + _run_all(pool, run, ready, work_dirs)
        except BrokenProcessPool as error:
            raise OSError(
                'a process of the runs was killed, which happens where memory runs '
                'out; the same command goes on, with fewer --jobs in less memory'
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


@contextlib.contextmanager
def _alone(work_dirs):
    os.makedirs(work_dirs, exist_ok=True)
    try:
        with filelock.FileLock(os.path.join(work_dirs, 'lock'), timeout=0):
            yield
    except filelock.Timeout as error:
        raise OSError(
            f'{work_dirs} is in use by another run: let it end, or name another folder'
        ) from error


def _leave_interrupts_to_parent():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_trained(base, work_dirs):
    """Whether the weights of a base are there; damaged ones are not."""
    try:
        read_checkpoint(records.weights_path(base, work_dirs))
    except (ValueError, OSError):
        return False
    return True


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
    cfg = records.cell_config(cell, data_root, work_dirs)
    record = dataclasses.asdict(cell)
    record['config'] = records.fingerprint(cell)
    cfg.work_dir = os.path.join(work_dirs, cell.name)
    cfg.default_hooks.checkpoint = None
    begun = time.monotonic()
    runner = TrainRunner.from_cfg(cfg)
    runner.train()
    record['seconds'] = round(time.monotonic() - begun, 1)
    scalars = runner.message_hub.log_scalars
    for name, metric in (('ap', 'bbox_mAP'), ('ap50', 'bbox_mAP_50')):
        # Nothing is evaluated where nothing was found.
        value = scalars.get(f'val/coco/{metric}')
        record[name] = float(value.current()) if value else 0.0
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
    if cell.epochs != EPOCHS:
        record['right'] = _right(runner)
    if cell.base:
        path = records.weights_path(cell.base, work_dirs)
        record['base'] = records.digits(path.read_bytes())
        record['largest'] = _largest(runner.model, read_state_dict(path))
    else:
        weights = {'state_dict': runner.model.state_dict()}
        write_checkpoint(weights, records.weights_path(cell, work_dirs))
    return record


def _largest(model, base):
    """The largest magnitude of the parameters that the base lacks, by their name in the
    block: ``backbone.layer2.0.prm_block.alpha`` is alpha."""
    largest = {}
    for name, parameter in model.named_parameters():
        if name not in base:
            short = name.split('.', 4)[-1]
            value = float(f'{parameter.abs().max().item():.3g}')
            largest[short] = max(value, largest.get(short, 0))
    return largest


@torch.no_grad()
def _example(runner):
    found = runner.model.test_step(next(iter(runner.val_dataloader)))[0].pred_instances
    found = found[found.scores >= EXAMPLE_SCORE]
    return dict(
        boxes=[[round(x, 1) for x in box] for box in found.bboxes.tolist()],
        labels=found.labels.tolist(),
        scores=[round(score, 3) for score in found.scores.tolist()],
    )


@torch.no_grad()
def _right(runner):
    """How many objects the best detection calls by their class, and how many there are,
    in images whose objects are of one class and of two. The best is the one with the
    highest score among those of IoU above 0.5."""
    counts = dict(one=[0, 0], two=[0, 0])
    for batch in runner.val_dataloader:
        for sample in runner.model.test_step(batch):
            truth, found = sample.gt_instances, sample.pred_instances
            overlaps = bbox_overlaps(truth.bboxes, found.bboxes)
            scores = found.scores * (overlaps > 0.5)
            # A first column for objects that nothing was found at.
            scores = torch.nn.functional.pad(scores, (1, 0))
            labels = torch.nn.functional.pad(found.labels, (1, 0), value=-1)
            right = labels[scores.argmax(1)] == truth.labels
            count = counts['one' if len(set(truth.labels.tolist())) == 1 else 'two']
            count[0] += int(right.sum())
            count[1] += len(right)
    return counts


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
    text = json.dumps(record, indent=1) + '\n'
    write_file(os.path.join(folder, f'{cell.name}.json'), text.encode())
    return record


def _log(work_dirs, cell):
    return Path(work_dirs, f'{cell.name}.log')


def _say(text):
    print(text, flush=True)
