"""A metric by epoch or iteration, for several runs in one picture."""

import json
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figure_files import COLOURS, check_png, save_png

# Curves that cross are told apart without colour, too. Yellow is too light for a line.
_LINES = tuple(COLOURS[i] for i in (4, 5, 2, 6, 0, 1))
_STYLES = ('-', '--', '-.', ':')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')

_TWO_COLUMNS = 36  # characters of a label that fit


def read_curve(work_dir, metric):
    """A metric by epoch or iteration, from the logs of MMEngine in a work dir.

    Evaluations during training count where they were made; a later run in the same work
    dir, as after ``--resume``, overrules. A test (``tools/test.py``) made there before
    the first training counts as step 0. What is no number is passed over.

    Args:
        work_dir (str): Folder of the runs.
        metric (str): Name as in the logs: ``coco/bbox_mAP``, ``accuracy/top1``, ...

    Returns:
        tuple[dict[int, float], str]: Steps, in order, to values, and what a step is:
        'epoch' or 'iteration'.

    Raises:
        ValueError: There is no such folder, or no run in it logged the metric; the
            message says which metrics were. Or some did by epoch, some by iteration.
    """
    if not Path(work_dir).is_dir():
        raise ValueError(f'{work_dir} is no folder')
    curve, units, tests, known = {}, set(), {}, set()
    first = None  # training run
    for log in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        trained = {}
        for values in _lines(log):
            known.update(values)
            if 'iter' in values:
                trained = values
            elif metric in values and type(values.get('step')) is int:
                first = first or log.parts[-3]
                curve[values['step']] = values[metric]
                units.add(_unit(values['step'], trained))
    for log in sorted(Path(work_dir).glob('*/*.json')):
        for values in _lines(log):
            known.update(values)
            if metric in values:
                tests[log.parts[-2]] = values[metric]
    before = [when for when in tests if first is None or when < first]
    if before:
        curve[0] = tests[max(before)]
    if not curve:
        names = ', '.join(sorted(k for k in known if '/' in k))
        raise ValueError(
            f'no run in {work_dir} logged {metric!r}; '
            + (f'there are {names}' if names else 'no log of an evaluation is there')
        )
    if len(units) > 1:
        raise ValueError(f'{work_dir} has evaluations by epoch and by iteration')
    return dict(sorted(curve.items())), ''.join(units) or 'epoch'


def _unit(step, trained):
    """What an evaluation was logged by, from the training's line before it: fewer
    epochs have passed than iterations, unless an epoch is one."""
    if not trained or step == trained.get('epoch') or step < trained['iter']:
        return 'epoch'
    return 'iteration'


def draw_curves(curves, metric, out, unit='epoch'):
    """Write one picture: a line for each run, a marker at each evaluation.

    Args:
        curves (dict[str, dict[int, float]]): What to call each run, to its curve.
        metric (str): Name for the vertical axis.
        out (str): PNG file to write.
        unit (str): Of the curves' steps: 'epoch' or 'iteration'.

    Raises:
        ValueError: ``out`` is no .png file.
    """
    check_png(out)
    columns = 2 if max(map(len, curves)) <= _TWO_COLUMNS else 1
    rows = -(-len(curves) // columns)
    # The legend has a place of its own: the axes stay as large as they are.
    figure = Figure(figsize=(7, 3.9 + 0.22 * rows), layout='constrained')
    axis = figure.subplots()
    looks = zip(cycle(_LINES), cycle(_STYLES), cycle(_MARKERS))
    for curve, (colour, style, marker) in zip(curves.values(), looks):
        axis.plot(
            *(list(curve), list(curve.values())),
            **dict(color=colour, ls=style, marker=marker, lw=1.8, ms=6),
        )
    from_zero = any(0 in curve for curve in curves.values())
    axis.set_xlabel(unit + ' (0: before training)' * from_zero)
    axis.set_ylabel(metric)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    legend = figure.legend(
        axis.lines,
        ['?'] * len(curves),
        **dict(loc='outside lower center', ncols=columns, handlelength=3),
        frameon=False,
    )
    # Not as labels of lines: Matplotlib hides those that begin with an underscore.
    for text, label in zip(legend.get_texts(), curves):
        text.set(text=label, parse_math=False)
    save_png(figure, out)


def _lines(log):
    """The numbers in a log, line by line; one that was cut short is passed over."""
    for line in log.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            yield {k: v for k, v in values.items() if type(v) in (int, float)}
