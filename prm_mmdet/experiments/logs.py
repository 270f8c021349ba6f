"""Read evaluations, checkpoints and error messages from MMEngine's work dirs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_METRICS = {'step', 'time', 'data_time', 'memory'}


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a model, during a training or by test.py."""

    # MMEngine's name of the run: the time when it started, such as 20250131_120000.
    when: str
    # The model was evaluated after this epoch or iteration. The step is None if test.py
    # evaluated a checkpoint whose name does not contain a step.
    step: int | None
    unit: str  # unit of the step, 'epoch' or 'iteration'
    # Finite values. The keys are the evaluator's names of the metrics.
    metrics: dict[str, float]
    test: bool  # whether test.py made the evaluation


@dataclass(frozen=True)
class Checkpoint:
    """The newest checkpoint of a training."""

    path: Path
    unit: str  # unit of the step, 'epoch' or 'iteration'
    step: int  # the epoch or iteration after which the checkpoint was saved


def read_evaluations(work_dir: str | Path) -> list[Evaluation]:
    """The evaluations in MMEngine's logs, in the order in which their runs began.

    Incomplete lines, and values that are not finite numbers, are left out. If the
    folder is missing, the list is empty.
    """
    work_dir = Path(work_dir)
    found = []
    for log in work_dir.glob('*/vis_data/scalars.json'):
        trained: dict[str, float] = {}
        for values, metrics in _lines(log):
            if 'iter' in values:
                trained = values
            elif metrics and isinstance(values.get('step'), int):
                unit = _unit(values['step'], trained)
                run = log.parts[-3]
                found.append(Evaluation(run, values['step'], unit, metrics, False))
    for log in work_dir.glob('*/*.json'):
        for _, metrics in _lines(log):
            if metrics:
                step, unit = _tested_step(log.parent)
                found.append(Evaluation(log.parts[-2], step, unit, metrics, True))
    return sorted(found, key=lambda evaluation: evaluation.when)


def _lines(log: Path) -> Iterator[tuple[dict, dict]]:
    """For each line of a log, two dicts. The first has the finite numbers of the line.
    The second has the same numbers without step, times and memory."""
    for line in log.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            items = json.loads(line).items()
        except (ValueError, AttributeError):
            continue
        finite = {
            k: v for k, v in items if type(v) in (int, float) and math.isfinite(v)
        }
        yield finite, {k: v for k, v in finite.items() if k not in _NO_METRICS}


def _unit(step: int, trained: dict) -> str:
    """Unit of an evaluation's step: 'epoch' or 'iteration'."""
    # The log does not contain the unit. So compare the step with the epoch and the
    # iteration in the last line that the training wrote before the evaluation.
    if not trained or step == trained.get('epoch') or step < trained['iter']:
        return 'epoch'
    return 'iteration'


def _tested_step(run: Path) -> tuple[int | None, str]:
    """Step and unit of the checkpoint that test.py evaluated.

    Both are read from the config that test.py saved in the folder ``run``. If the
    checkpoint's name does not contain the step, the step is None.
    """
    config = run / 'vis_data' / 'config.py'
    text = config.read_text(encoding='utf-8') if config.is_file() else ''
    found = re.search(r"^load_from = .*(epoch|iter)_(\d+)\.pth'", text, re.M)
    if not found:
        return None, 'epoch'
    return int(found.group(2)), _UNITS[found.group(1)]


_UNITS = {'epoch': 'epoch', 'iter': 'iteration'}


def last_checkpoint(work_dir: str | Path) -> Checkpoint | None:
    """The checkpoint from which ``--resume`` continues, or None if there is none."""
    # MMEngine writes the file ``last_checkpoint`` when a checkpoint is complete. The
    # file holds the path of this checkpoint.
    pointer = Path(work_dir, 'last_checkpoint')
    text = pointer.read_text(encoding='utf-8') if pointer.is_file() else ''
    found = re.search(r'(epoch|iter)_(\d+)\.pth$', text.strip())
    if not found:
        return None
    # The path is absolute. If the folder was moved, the path is wrong. So use only the
    # name of the checkpoint.
    path = Path(work_dir, found.group())
    return Checkpoint(path, _UNITS[found.group(1)], int(found.group(2)))


def reason_of_failure(text: str) -> str:
    """The lines of a failed process's output that say why it failed, indented.

    If the output has an error message of this package's tools, the result is this
    message. Otherwise it is the traceback of the first rank that failed. If there is no
    such traceback, the result is the last lines.

    Args:
        text: The output of the process and of its ranks.
    """
    # The error message ends where the output of another rank or of torchrun begins.
    end = r'(?=^\[rank|^[EW]\d{4} |\Z)'
    own_message = re.search(rf'^error: .*?{end}', text, re.M | re.S)
    first_to_fail = re.search(r'^(\[rank\d+\]: )Traceback', text, re.M)
    if own_message:
        lines = own_message.group().rstrip().splitlines()[:15]
    elif first_to_fail:
        # Take the traceback of the rank that failed first. Tracebacks of other ranks
        # report only that this rank ended.
        rank = first_to_fail.group(1)
        lines = [s for s in text.splitlines() if s.startswith(rank)][-15:]
    else:
        lines = text.rstrip().splitlines()[-15:]
    return '\n'.join(f'    {line}' for line in lines)
