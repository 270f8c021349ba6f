"""A metric by epoch or iteration, for several runs in one picture."""

from itertools import cycle
from pathlib import Path
from typing import Union

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..experiments.logs import read_evaluations
from .figure_files import COLOURS, check_png, save_png

# Styles and markers distinguish curves without colour. Yellow is left out, because it
# is too light for a line.
_LINES = tuple(COLOURS[i] for i in (4, 5, 2, 6, 0, 1))
_STYLES = ('-', '--', '-.', ':')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')

# The legend has two columns if no label has more letters than this, else one column.
_TWO_COLUMNS = 36


def read_curve(work_dir: Union[str, Path], metric: str) -> tuple[dict[int, float], str]:
    """A metric by epoch or iteration, from the logs of MMEngine in a work dir.

    If several trainings evaluated the same step, for example after ``--resume``, the
    last evaluation counts. A test (``tools/test.py``) before the first training counts
    as step 0.

    Args:
        work_dir: Folder of the runs.
        metric: Name in the logs: ``coco/bbox_mAP``, ``accuracy/top1``, ...

    Returns:
        Values by step, in order, and what a step is: 'epoch' or 'iteration'.

    Raises:
        ValueError: The folder does not exist, no run in it logged the metric, or the
            folder has evaluations by epoch and by iteration. If the metric is missing,
            the message lists the metrics that were logged.
    """
    if not Path(work_dir).is_dir():
        raise ValueError(f'{work_dir} is not a folder')
    evaluations = read_evaluations(work_dir)
    found = [e for e in evaluations if metric in e.metrics]
    trained = [e for e in found if not e.test]
    curve = {e.step: e.metrics[metric] for e in trained if e.step is not None}
    first = trained[0].when if trained else None
    before = [e for e in found if e.test and (first is None or e.when < first)]
    if before:
        curve[0] = before[-1].metrics[metric]
    if not curve:
        names = ', '.join(sorted({name for e in evaluations for name in e.metrics}))
        raise ValueError(
            f'no run in {work_dir} logged {metric!r}; '
            + (f'the logs have {names}' if names else 'the logs have no evaluation')
        )
    units = {e.unit for e in trained}
    if len(units) > 1:
        raise ValueError(f'{work_dir} has evaluations by epoch and by iteration')
    return dict(sorted(curve.items())), ''.join(units) or 'epoch'


def draw_curves(
    curves: dict[str, dict[int, float]],
    metric: str,
    out: Union[str, Path],
    unit: str = 'epoch',
) -> None:
    """Write one picture: a line for each run, a marker at each evaluation.

    Args:
        curves: A dict from each run's label to its values by step, which
            :func:`read_curve` returns.
        metric: Name for the vertical axis.
        out: PNG file to write.
        unit: What a step of the curves is: 'epoch' or 'iteration'.

    Raises:
        ValueError: The name of ``out`` does not end in .png.
    """
    check_png(out)
    columns = 2 if max(map(len, curves)) <= _TWO_COLUMNS else 1
    rows = -(-len(curves) // columns)
    # The legend is placed below the axes, and the figure grows with it.
    figure = Figure(figsize=(7, 3.9 + 0.22 * rows), layout='constrained')
    axis = figure.subplots()
    looks = zip(cycle(_LINES), cycle(_STYLES), cycle(_MARKERS))
    for curve, (colour, style, marker) in zip(curves.values(), looks):
        steps, values = zip(*curve.items())
        axis.plot(steps, values, style + marker, color=colour, lw=1.8, ms=6)
    from_zero = any(0 in curve for curve in curves.values())
    axis.set_xlabel(f'{unit} (0: before training)' if from_zero else unit)
    axis.set_ylabel(metric)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    legend = figure.legend(
        axis.lines,
        ['?'] * len(curves),
        loc='outside lower center',
        ncols=columns,
        handlelength=3,
        frameon=False,
    )
    # If a line has a label that begins with an underscore, Matplotlib leaves it out of
    # the legend. So the labels are set in the legend itself.
    for text, label in zip(legend.get_texts(), curves):
        text.set(text=label, parse_math=False)
    save_png(figure, out)
