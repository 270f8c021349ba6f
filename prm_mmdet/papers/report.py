"""A table of a paper, with what was measured here beside it."""

import csv
import io
import json
from pathlib import Path

GAINED = ('bbox_mAP', 'segm_mAP')  # columns whose gain over the baseline is shown


def report(table, work_dirs, style='terminal'):
    """One table as text: the paper's numbers, those measured, and gains.

    Args:
        table (Table): Of :data:`prm_mmdet.papers.TABLES`.
        work_dirs (str): Folder of the runs: one folder a config, as MMDetection names
            them.
        style (str): 'terminal', 'markdown' or 'csv'. Default: 'terminal'.

    Returns:
        str: The text, with a line break at its end. A ``here`` column is empty where no
        run of the config has been evaluated.
    """
    gained = [c for c in table.columns if c in GAINED]
    head = ['config', *table.columns]
    head += [f'{c} {what}' for c in gained for what in ('gain', 'here', 'gain here')]
    body = []
    for row in table.rows:
        mine = measured(work_dirs, row.config)
        base = measured(work_dirs, row.baseline)
        paper_base = next(r for r in table.rows if r.config == row.baseline).cells
        line = [Path(row.config).stem, *(row.cells.get(c) for c in table.columns)]
        for c in gained:
            gains = [None, None]  # a baseline gains nothing over itself
            if row.config != row.baseline:
                gains = [_gain(row.cells, paper_base, c), _gain(mine, base, c)]
            line += [gains[0], mine.get(c), gains[1]]
        body.append(['' if v is None else f'{v}' for v in line])
    return _STYLES[style](f'{table.key}: {table.title}', head, body)


def _gain(cells, base, column):
    if column not in cells or column not in base:
        return None
    return f'{cells[column] - base[column]:+.1f}'


def measured(work_dirs, config):
    """The last evaluation of a config, read from MMEngine's logs.

    Returns:
        dict: Metric names to percent; empty where there is none.
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
    last = found[max(found)]
    return {
        key.partition('/')[2]: round(100 * value, 1)
        for key, value in last.items()
        if key.startswith('coco/')
    }


def _terminal(title, head, body):
    widths = [max(map(len, column)) for column in zip(head, *body)]
    lines = [
        '  '.join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in cells).rstrip()
        for cells in ([*enumerate(zip(line, widths))] for line in (head, *body))
    ]
    return '\n'.join([title, *lines]) + '\n'


def _markdown(title, head, body):
    rule = ['---'] + ['---:'] * (len(head) - 1)
    lines = ['| ' + ' | '.join(line) + ' |' for line in (head, rule, *body)]
    return '\n'.join([f'**{title}**', '', *lines]) + '\n'


def _csv(title, head, body):
    out = io.StringIO()
    csv.writer(out, lineterminator='\n').writerows([head, *body])
    return out.getvalue()


_STYLES = {'terminal': _terminal, 'markdown': _markdown, 'csv': _csv}
