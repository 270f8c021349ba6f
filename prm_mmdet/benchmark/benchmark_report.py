"""The measurements of one run of the benchmark, as a table, JSON and a chart."""

import json
import os
import platform

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ('#0072B2', '#E69F00')  # Okabe and Ito's: training step, inference
# Columns of the table: head, and the cell of a record.
_COLUMNS = (
    ('', lambda r: r['name']),
    ('forward ms', lambda r: _milliseconds(r['forward'])),
    ('step ms', lambda r: _milliseconds(r['step'])),
    ('forward ratio', lambda r: _spread(r['forward_ratio'])),
    ('step ratio', lambda r: _spread(r['step_ratio'])),
    ('/ floor', lambda r: _spread(r.get('floor_ratio'))),
    ('memory MB', lambda r: f'{r["memory"] / 2**20:.0f}'),
    ('multiply-adds G', lambda r: f'{r["multiply_adds"] / 1e9:.2f}'),
)


def environment(device):
    """What the figures depend on besides the code: a dict of strings."""
    name = platform.processor() or platform.machine()
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    return dict(
        device=f'{device.type}, {name}',
        threads=str(torch.get_num_threads()),
        torch=torch.__version__,
        python=platform.python_version(),
    )


def table(group):
    """Text of one group of records.

    Args:
        group (dict): ``title``, ``against`` (what the ratios are over) and
            ``records``, see :mod:`prm_mmdet.benchmark.rounds`.
    """
    lines = [[head for head, _ in _COLUMNS]]
    lines += [[cell(record) for _, cell in _COLUMNS] for record in group['records']]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [f'{group["title"]}; ratios are over {group["against"]}']
    if 'floor_bytes' in group:
        text[0] += (
            f'; floor {group["floor_bytes"] / 1e9:.3f} GB at '
            f'{group["copy_bandwidth"] / 1e9:.1f} GB/s'
        )
    for first, *others in lines:
        cells = [v.rjust(w) for v, w in zip(others, widths[1:])]
        text.append('  '.join([first.ljust(widths[0]), *cells]).rstrip())
    return '\n'.join(text) + '\n'


def _milliseconds(spread):
    return f'{1e3 * spread["median"]:.2f}'


def _spread(spread):
    if spread is None:
        return ''
    return f'{spread["median"]:.3f} ({spread["low"]:.3f}-{spread["high"]:.3f})'


def write(result, folder):
    """Write ``benchmark.json`` and ``benchmark.png``, whole or not at all.

    Args:
        result (dict): ``environment``, ``settings`` and ``groups``.
        folder (str): Where to; made if it is missing.
    """
    os.makedirs(folder, exist_ok=True)
    for name, save in (('benchmark.json', _save_json), ('benchmark.png', _save_chart)):
        path = os.path.join(folder, name)
        save(result, f'{path}.new')
        os.replace(f'{path}.new', path)


def _save_json(result, path):
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(result, file, indent=1)
        file.write('\n')


def _save_chart(result, path):
    groups = result['groups']
    rows = max(len(group['records']) for group in groups)
    figure = Figure(figsize=(9, len(groups) * (0.9 + 0.32 * rows)), dpi=100)
    FigureCanvasAgg(figure)
    for axes, group in zip(figure.subplots(len(groups), squeeze=False)[:, 0], groups):
        records = group['records']
        for i, (kind, label) in enumerate(
            (('step', 'forward and backward'), ('forward', 'forward'))
        ):
            spreads = [record[f'{kind}_ratio'] for record in records]
            middle = [s['median'] for s in spreads]
            error = [
                [s['median'] - s['low'] for s in spreads],
                [s['high'] - s['median'] for s in spreads],
            ]
            places = [row + 0.4 * i for row in range(len(records))]
            axes.barh(places, middle, 0.38, xerr=error, color=COLOURS[i], label=label)
        axes.axvline(1, color='0.3', linewidth=0.8)
        axes.set_yticks([row + 0.2 for row in range(len(records))])
        axes.set_yticklabels([record['name'] for record in records])
        axes.invert_yaxis()
        axes.set_title(group['title'], fontsize=9, loc='left')
        axes.set_xlabel(f'time over that of {group["against"]}; whiskers: quartiles')
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc='upper right', ncol=2, fontsize=8)
    figure.savefig(path, format='png')
