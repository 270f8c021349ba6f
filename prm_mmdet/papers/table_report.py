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

FPS = 'fps'
# Columns of metrics. Each gets a further column with the gain over the baseline.
GAINED = ('bbox_mAP', 'segm_mAP', 'top1', 'top5')
# Number of decimals of a percentage, by the prefix of the metric's name in the logs.
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
        The text, with a line break at its end. Beside a column of the paper are columns
        of this package, such as ``top1 here``:

        - AP and accuracy: ``here`` is the result of the config's last evaluation. It is
          empty if there is no evaluation.
        - Parameters and FLOPs: ``counted`` is counted in the paper's way. ``here`` is
          counted for the config as it runs.
        - ``fps``: ``here`` is the last result of ``tools/benchmark.py fps``.
          ``ratio here`` is its ratio to the baseline's result, if both have the same
          device, version of PyTorch and kind of weights.
    """
    body = []
    notes: dict[str, list[str]] = {}
    for row in table.rows:
        stem = Path(row.config).stem
        line: dict[str, str | None] = {'config': stem}
        for c in table.columns:
            value, remark = '', table.remarks.get((row.config, c))
            if c in row.cells:
                value = f'{row.cells[c]:.{table.digits(c)}f}'
            if remark is not None:
                notes.setdefault(stem, []).append(f'{c}: {remark}')
                value += '' if style == 'csv' else '*'
            line[c] = value
            beside = _beside(table, row, c, work_dirs)
            line.update({f'{c} {word}': text for word, text in beside.items()})
        body.append([text or '' for text in line.values()])
        for note in _unfinished(row, work_dirs):
            notes.setdefault(stem, []).append(note)
    return _STYLES[style](table, list(line), body, notes)


def _beside(table, row, column, work_dirs):
    """Texts of one row for the columns beside a column of the paper. The keys are the
    ends of the columns' names, such as 'gain here' in 'bbox_mAP gain here'."""
    places, base = table.digits(column), table.baseline(row)
    texts = {}
    if column in GAINED:
        texts['gain'] = _gain(row, row.cells, base.cells, column, places)
        if work_dirs:
            mine = measured(work_dirs, row.config)
            texts['here'] = f'{mine[column]}' if column in mine else None
            # Measured results have at most two decimals, so their gains do, too.
            places = min(places, 2)
            theirs = measured(work_dirs, base.config)
            texts['gain here'] = _gain(row, mine, theirs, column, places)
    elif column in complexity.COLUMNS and work_dirs:
        for word in ('counted', 'here'):
            value = getattr(complexity, word)(table, row, column)
            texts[word] = None if value is None else f'{value:.{places}f}'
    elif column == FPS and work_dirs:
        texts['ratio'] = _ratio(row, row.cells.get(FPS), base.cells.get(FPS))
        mine, theirs = (fps_here(work_dirs, r.config) for r in (row, base))
        texts['here'] = mine and f'{mine["fps"]:.3g}'
        fair = mine and theirs and comparable(mine, theirs)
        texts['ratio here'] = _ratio(row, mine['fps'], theirs['fps']) if fair else None
    return texts


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
    return [f'measured after epoch {epoch} of {epochs}'] if epoch < epochs else []


def measured(work_dirs: str | Path, config: str) -> dict[str, float]:
    """The last evaluation of a config, read from MMEngine's logs.

    COCO reports -1 for a metric if the images have no objects for this metric. Such a
    value is left out.

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
