"""A table of a paper, with what was measured and counted here beside it."""

import csv
import io
import json
import re
from pathlib import Path

from mmengine.config import Config

from ..config import config_path
from . import complexity

GAINED = ('bbox_mAP', 'segm_mAP')  # columns whose gain over the baseline is shown


def report(table, work_dirs=None, style='terminal'):
    """One table as text: the paper's numbers, those of this package, and gains.

    Args:
        table (Table): Of :data:`prm_mmdet.papers.TABLES`.
        work_dirs (str | None): Folder of the runs: one folder a config, as MMDetection
            names them. Default: None, the paper's numbers alone.
        style (str): 'terminal', 'markdown' or 'csv'. Default: 'terminal'.

    Returns:
        str: The text, with a line break at its end. Beside a column of AP, ``here`` is
        what the last evaluation of the config's run gave, empty where there is none.
        Beside one of complexity, ``counted`` is the paper's own count done again, and
        ``here`` that of the config as it runs.
    """
    head, body, notes = ['config'], [], []
    for c in table.columns:
        head += [c, *_beside(c, work_dirs)]
    for row in table.rows:
        stem = Path(row.config).stem
        line = [stem]
        for c in table.columns:
            value, reason = row.cells.get(c), table.slips.get((row.config, c))
            if reason is not None:
                notes.append(f"{stem}, {c}: the paper's slip. {reason}")
                value = value if style == 'csv' else f'{value}*'
            line += [value, *_values_beside(table, row, c, work_dirs)]
        body.append(['' if v is None else f'{v}' for v in line])
        notes += _unfinished(row, work_dirs)
    return _STYLES[style](f'{table.key}: {table.title}', head, body, notes)


def _beside(column, work_dirs):
    """Names of the columns that stand beside one of the paper's."""
    if column in GAINED:
        words = ('gain', 'here', 'gain here')[: 3 if work_dirs else 1]
    elif column in complexity.COLUMNS and work_dirs:
        words = ('counted', 'here')
    else:
        words = ()
    return [f'{column} {word}' for word in words]


def _values_beside(table, row, column, work_dirs):
    if column in GAINED:
        yield _gain(row, row.cells, table.baseline(row).cells, column)
    if column in GAINED and work_dirs:
        mine = measured(work_dirs, row.config)
        yield mine.get(column)
        yield _gain(row, mine, measured(work_dirs, row.baseline), column)
    if column in complexity.COLUMNS and work_dirs:
        places = complexity.digits(table, column)
        for count in (complexity.counted, complexity.here):
            value = count(table, row, column)
            yield None if value is None else f'{value:.{places}f}'


def _gain(row, cells, base, column):
    if row.config == row.baseline or column not in cells or column not in base:
        return None
    return f'{cells[column] - base[column]:+.1f}'


def _unfinished(row, work_dirs):
    """A note if the numbers of a run are not those of its last epoch."""
    epoch = measured(work_dirs, row.config).get('epoch') if work_dirs else None
    if epoch is None:
        return []
    epochs = Config.fromfile(config_path(row.config)).train_cfg.max_epochs
    if epoch >= epochs:
        return []
    return [f'{Path(row.config).stem}: measured after epoch {epoch} of {epochs}']


def measured(work_dirs, config):
    """The last evaluation of a config, read from MMEngine's logs.

    Returns:
        dict: Metric names to percent, and ``epoch``, unless the checkpoint's name does
        not tell it; empty where there is none.
    """
    folder = Path(work_dirs) / Path(config).stem
    found = {}
    for log in sorted(folder.glob('*/*.json')) + sorted(
        folder.glob('*/vis_data/*.json')
    ):
        for line in log.read_text(encoding='utf-8').splitlines():
            try:
                values = json.loads(line)
            except ValueError:  # the config that a run dumps beside its log
                continue
            if isinstance(values, dict) and 'coco/bbox_mAP' in values:
                when = log.relative_to(folder).parts[0]
                found[when] = values
    if not found:
        return {}
    when = max(found)
    last = found[when]
    numbers = {
        key.partition('/')[2]: round(100 * value, 1)
        for key, value in last.items()
        if key.startswith('coco/')
    }
    epoch = last['step'] if 'step' in last else _tested_epoch(folder / when)
    if epoch is not None:
        numbers['epoch'] = epoch
    return numbers


def _tested_epoch(run):
    """The epoch whose checkpoint test.py was given, from the config that it keeps."""
    config = run / 'vis_data' / 'config.py'
    text = config.read_text(encoding='utf-8') if config.is_file() else ''
    found = re.search(r"^load_from = .*epoch_(\d+)\.pth'", text, re.M)
    return int(found.group(1)) if found else None


def _terminal(title, head, body, notes):
    # Names of columns over three lines, so that a table fits a screen.
    names = (h.replace('_mAP', ' mAP').split(' ', 2) for h in head)
    heads = zip(*([*n, '', ''][:3] for n in names))
    table = [*heads, *body]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [
        '  '.join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in cells).rstrip()
        for cells in ([*enumerate(zip(line, widths))] for line in table)
    ]
    return '\n'.join([title, *lines, *(f'* {note}' for note in notes)]) + '\n'


def _markdown(title, head, body, notes):
    rule = ['---'] + ['---:'] * (len(head) - 1)
    lines = ['| ' + ' | '.join(line) + ' |' for line in (head, rule, *body)]
    if notes:
        lines += ['', *(f'\\* {note}  ' for note in notes)]
    return '\n'.join([f'**{title}**', '', *lines]) + '\n'


def _csv(title, head, body, notes):
    out = io.StringIO()
    csv.writer(out, lineterminator='\n').writerows([head, *body])
    return out.getvalue()


_STYLES = {'terminal': _terminal, 'markdown': _markdown, 'csv': _csv}
