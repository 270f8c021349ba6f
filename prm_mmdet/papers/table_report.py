"""A table of a paper, beside numbers measured and counted with this package."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from mmengine.config import Config

from ..benchmark.cost_tables import columns
from ..benchmark.fps_records import comparable, fps_here
from ..config import config_path
from ..experiments.logs import read_evaluations
from . import complexity
from .table import Table

# ``GAINED`` are the columns whose gain over the baseline is shown.
FPS = 'fps'
GAINED = ('bbox_mAP', 'segm_mAP', 'top1', 'top5')
# For each prefix of logged metrics: the decimals to which percentages are rounded.
_LOGGED = {'coco': 1, 'accuracy': 2}


def report(
    table: Table, work_dirs: str | Path | None = None, style: str = 'terminal'
) -> str:
    """One table as text: the paper's numbers, this package's numbers, and gains.

    Args:
        table: A table, such as those in :data:`prm_mmdet.papers.TABLES`.
        work_dirs: Folder of the runs. It has one folder for each config, as MMDetection
            names them. Default: None, for the paper's numbers alone.
        style: 'terminal', 'markdown' or 'csv'. Default: 'terminal'.

    Returns:
        The text, with a line break at its end. Beside AP and accuracy, ``here`` is the
        result of the last evaluation of the config, and empty without an evaluation.
        Beside complexity, ``counted`` repeats the paper's way of counting, and ``here``
        counts the config as it runs. Beside ``fps``, ``here`` is what
        ``tools/benchmark.py fps`` measured last. Its ratio to the baseline is shown if
        both were measured on the same device.
    """
    head, body = ['config'], []
    notes: dict[str, list[str]] = {}
    for c in table.columns:
        head += [c, *_beside(c, work_dirs)]
    for row in table.rows:
        stem = Path(row.config).stem
        line = [stem]
        for c in table.columns:
            value, remark = '', table.remarks.get((row.config, c))
            if c in row.cells:
                value = f'{row.cells[c]:.{table.digits(c)}f}'
            if remark is not None:
                notes.setdefault(stem, []).append(f'{c}: {remark}')
                value += '' if style == 'csv' else '*'
            line += [value, *_values_beside(table, row, c, work_dirs)]
        body.append(['' if v is None else f'{v}' for v in line])
        for note in _unfinished(row, work_dirs):
            notes.setdefault(stem, []).append(note)
    return _STYLES[style](table, head, body, notes)


def _beside(column, work_dirs):
    """Names of the columns that are printed beside a column of the paper."""
    if column in GAINED:
        words = ('gain', 'here', 'gain here')[: 3 if work_dirs else 1]
    elif column in complexity.COLUMNS and work_dirs:
        words = ('counted', 'here')
    elif column == FPS and work_dirs:
        words = ('ratio', 'here', 'ratio here')
    else:
        words = ()
    return [f'{column} {word}' for word in words]


def _values_beside(table, row, column, work_dirs):
    places = table.digits(column)
    if column in GAINED:
        yield _gain(row, row.cells, table.baseline(row).cells, column, places)
    if column in GAINED and work_dirs:
        mine = measured(work_dirs, row.config)
        yield mine.get(column)
        places = min(places, 2)  # Measured results have two decimals at most.
        yield _gain(row, mine, measured(work_dirs, row.baseline), column, places)
    if column in complexity.COLUMNS and work_dirs:
        for count in (complexity.counted, complexity.here):
            value = count(table, row, column)
            yield None if value is None else f'{value:.{places}f}'
    if column == FPS and work_dirs:
        yield _ratio(row, row.cells.get(FPS), table.baseline(row).cells.get(FPS))
        mine, base = (fps_here(work_dirs, c) for c in (row.config, row.baseline))
        yield mine and f'{mine["fps"]:.3g}'
        fair = mine and base and comparable(mine, base)
        yield _ratio(row, mine['fps'], base['fps']) if fair else None


def _ratio(row, value, base):
    if row.config == row.baseline or value is None or base is None:
        return None
    return f'{value / base:.2f}'


def _gain(row, cells, base, column, places):
    if row.config == row.baseline or column not in cells or column not in base:
        return None
    return f'{cells[column] - base[column]:+.{places}f}'


def _unfinished(row, work_dirs):
    """A note if the numbers of a run are not from its last epoch."""
    epoch = measured(work_dirs, row.config).get('epoch') if work_dirs else None
    if epoch is None:
        return []
    epochs = Config.fromfile(config_path(row.config)).train_cfg.max_epochs
    if epoch >= epochs:
        return []
    return [f'measured after epoch {epoch} of {epochs}']


def measured(work_dirs: str | Path, config: str) -> dict[str, float]:
    """The last evaluation of a config, read from MMEngine's logs.

    COCO's -1, for images without objects, counts as no value.

    Args:
        work_dirs: Folder of the runs.
        config: Path below ``configs/``.

    Returns:
        Percent by metric name, and ``epoch`` if the name of the tested checkpoint
        contains it. Empty without an evaluation.
    """
    for evaluation in reversed(read_evaluations(Path(work_dirs, Path(config).stem))):
        numbers = {}
        for key, value in evaluation.metrics.items():
            prefix, _, name = key.partition('/')
            if prefix in _LOGGED and value >= 0:
                numbers[name] = round(100 * value, _LOGGED[prefix])
        if numbers:
            epoch = {} if evaluation.step is None else {'epoch': evaluation.step}
            return {**numbers, **epoch}
    return {}


def _terminal(table, head, body, notes):
    # Column names are broken into three lines, so that a table fits a screen.
    names = (h.replace('_mAP', ' mAP').split(' ', 2) for h in head)
    heads = zip(*([*n, '', ''][:3] for n in names))
    lines = [f'* {stem}, {note}\n' for stem in notes for note in notes[stem]]
    return f'{table.key}: {table.title}\n{columns([*heads, *body])}{"".join(lines)}'


def _markdown(table, head, body, notes):
    rule = ['---'] + ['---:'] * (len(head) - 1)
    lines = [f'**{table.key}: {table.title}**', '']
    lines += ['| ' + ' | '.join(line) + ' |' for line in (head, rule, *body)]
    if notes:
        lines += ['', *(f'\\* {s}, {note}  ' for s in notes for note in notes[s])]
    return '\n'.join(lines) + '\n'


def _csv(table, head, body, notes):
    out = io.StringIO()
    rows = csv.writer(out, lineterminator='\n')
    rows.writerow(['table', *head, 'notes'])
    for line in body:
        rows.writerow([table.key, *line, '; '.join(notes.get(line[0], ()))])
    return out.getvalue()


_STYLES = {'terminal': _terminal, 'markdown': _markdown, 'csv': _csv}
