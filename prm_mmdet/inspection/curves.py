"""A metric by epoch, for several runs in one picture."""

import json
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figures import COLOURS, check_png, save_png

# Curves that cross are told apart without colour, too. Yellow is too light for a line.
_LINES = tuple(COLOURS[i] for i in (4, 5, 2, 6, 0, 1))
_STYLES = ('-', '--', '-.', ':')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P')


def read_curve(work_dir, metric):
    """A metric by epoch, from the logs of MMEngine in a work dir.

    Evaluations during training count where they were made; a later run in the same work
    dir, as after ``--resume``, overrules. A test (``tools/test.py``) made there before
    the first training counts as epoch 0.

    Args:
        work_dir (str): Folder of the runs.
        metric (str): Name as in the logs: ``coco/bbox_mAP``, ``accuracy/top1``, ...

    Returns:
        dict[int, float]: Epochs, in order, to values.

    Raises:
        ValueError: No run in the folder logged the metric; the message says which
            metrics were.
    """
    curve, tests, known = {}, {}, set()
    first = None  # training run
    for log in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for values in _lines(log):
            known.update(values)
            if metric in values and 'step' in values:
                first = first or log.parts[-3]
                curve[values['step']] = values[metric]
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
    return dict(sorted(curve.items()))


def draw_curves(curves, metric, out):
    """Write one picture: a line for each run, a marker at each evaluation.

    Args:
        curves (dict[str, dict[int, float]]): What to call each run, to its curve.
        metric (str): Name for the vertical axis.
        out (str): PNG file to write.

    Raises:
        ValueError: ``out`` is no .png file.
    """
    check_png(out)
    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axis = figure.subplots()
    looks = zip(cycle(_LINES), cycle(_STYLES), cycle(_MARKERS))
    for (label, curve), (colour, style, marker) in zip(curves.items(), looks):
        axis.plot(
            *(list(curve), list(curve.values())),
            **dict(label=label, color=colour, ls=style, marker=marker, lw=1.8, ms=6),
        )
    from_zero = any(0 in curve for curve in curves.values())
    axis.set_xlabel('epoch' + ' (0: before training)' * from_zero)
    axis.set_ylabel(metric)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    figure.legend(loc='outside upper center', ncols=2, handlelength=3, frameon=False)
    save_png(figure, out)


def _lines(log):
    """JSON objects of a log, line by line; one that was cut short is passed over."""
    for line in log.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            yield values
