"""The report of a comparison as one HTML page, and its pictures as PNG files."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files.atomic import write_file
from ..inspection.figure_files import COLOURS, new_figure, png
from .blocks import CONTROL
from .comparison_report import picture_name, points, sections, unit_of

_CONTROL_COLOUR = '#555555'
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; background: #fff; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid #ddd; text-align: left;
         white-space: nowrap; }
.picture { overflow-x: auto; }
img { width: 100%; min-width: 44rem; }
ul { padding-left: 1.25rem; }
li { max-width: 50rem; }
"""


def draw(found: dict, lr: float | None) -> Figure:
    """Draw the results at one learning rate.

    The left panel shows the main metric by epoch: mean and range over the seeds. The
    right panel shows each block's difference to the control, with intervals.

    Args:
        found: Result of :func:`prm_mmdet.comparison.comparison_report.collect`.
        lr: The learning rate. None stands for the rate in the config.
    """
    entries = [entry for entry in found['entries'] if entry['lr'] == lr]
    figure, axes = new_figure(11, 4.2, ncols=2, width_ratios=[1.25, 1])
    colours = iter(COLOURS * len(entries))
    drawn = [
        (entry, _CONTROL_COLOUR if entry['label'] == CONTROL else next(colours))
        for entry in entries
    ]
    _curves(axes[0, 0], found['metric'], drawn)
    _differences(axes[0, 1], found['metric'], drawn)
    return figure


def _curves(axis: Axes, metric: str, drawn: list[tuple[dict, str]]) -> None:
    unit = 'epoch'
    for number, (entry, colour) in enumerate(drawn):
        by_step: dict[int, list[float]] = {}
        for run in entry['runs']:
            unit = run.get('unit', unit)
            for evaluation in run.get('evaluations', []):
                if metric in evaluation:
                    value = points(metric, evaluation[metric])
                    by_step.setdefault(evaluation['step'], []).append(value)
        steps = sorted(by_step)
        means = [sum(by_step[step]) / len(by_step[step]) for step in steps]
        low = [min(by_step[step]) for step in steps]
        high = [max(by_step[step]) for step in steps]
        style = '--' if entry['label'] == CONTROL else '-'
        label = entry['label']
        # If there is only one evaluation, each block is drawn as a point, not as a
        # curve. The points are side by side, because they would hide each other.
        if len(steps) == 1:
            axis.set_xlim(steps[0] - 0.5, steps[0] + 0.5)
            axis.set_xticks(steps)
            x = [steps[0] + 0.6 * ((number + 0.5) / len(drawn) - 0.5)]
            axis.vlines(x, low, high, color=colour)
            axis.plot(x, means, 'o', color=colour, label=label)
            continue
        axis.plot(steps, means, style, marker='o', ms=3, color=colour, label=label)
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set_xlabel(unit)
    axis.set_ylabel(unit_of(metric))
    axis.set_title('mean, and range of the seeds', fontsize=10)
    if len(axis.get_xticks()) > 1:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)


def _differences(axis: Axes, metric: str, drawn: list[tuple[dict, str]]) -> None:
    names: list[str] = []
    for entry, colour in drawn:
        difference = entry['metrics'].get(metric, {}).get('difference')
        if not difference:
            continue
        y = len(names)
        names.append(entry['label'])
        axis.plot([points(metric, difference['mean'])], [y], 'o', color=colour)
        for name, width in (('interval', 3), ('corrected', 1)):
            if difference[name]:
                ends = [points(metric, bound) for bound in difference[name]]
                axis.plot(ends, [y, y], color=colour, linewidth=width)
    axis.axvline(0, color=_CONTROL_COLOUR, linestyle='--', linewidth=1)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(f'difference to the control, {unit_of(metric)}')
    axis.set_title('95% interval, and corrected for all blocks (thin)', fontsize=10)
    axis.grid(axis='x', alpha=0.3)


def as_page(found: dict) -> str:
    """The results of a comparison, as ``collect`` returns them, as one HTML page. The
    page needs no other file."""
    parts, title = [], ''
    for kind, content in sections(found):
        if kind == 'title':
            title = html.escape(content)
            parts.append(f'<h1>{title}</h1>')
        elif kind == 'heading':
            parts.append(f'<h2>{html.escape(content)}</h2>')
        elif kind == 'sentences':
            items = '\n'.join(f'<li>{html.escape(text)}</li>' for text in content)
            parts.append(f'<ul>\n{items}\n</ul>')
        elif kind == 'picture':
            data = base64.b64encode(png(draw(found, content))).decode()
            what = html.escape(f'{unit_of(found["metric"])} by step, and differences')
            image = f'<img alt="{what}" src="data:image/png;base64,{data}">'
            parts.append(f'<div class="picture">{image}</div>')
        else:
            parts.append(_table(content))
    body = '\n'.join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n'
        '</body>\n</html>\n'
    )


def _table(rows: list[list[str]]) -> str:
    lines = []
    for i, row in enumerate(rows):
        tag = 'td' if i else 'th'
        cells = ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)
        lines.append(f'<tr>{cells}</tr>')
    return '<table>\n' + '\n'.join(lines) + '\n</table>'


def write_pictures(found: dict, folder: Path) -> None:
    """Draw the results of a comparison, as ``collect`` returns them. Each learning rate
    gets a PNG file. The Markdown report links to the files."""
    for kind, content in sections(found):
        if kind == 'picture':
            write_file(folder / picture_name(content), png(draw(found, content)))
