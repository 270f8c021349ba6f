"""Figure of the gates of all blocks by depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .capture import Record
from .figure_files import COLOURS, new_figure
from .style import layer_axis, legend_above


def gate_statistics(records: Sequence[Record]) -> Figure:
    """Draw mean, standard deviation and fraction of saturated values of every gate.

    A value is saturated if it is below 0.05 or above 0.95, where the sigmoid's gradient
    is small (see ``capture.SATURATED``).

    Args:
        records: Records of blocks that have gates.
    """
    width = max(4.5, 0.32 * len(records) + 1.5)
    figure, axes = new_figure(width, 4.4, nrows=2, sharex=True)
    labels = list(dict.fromkeys((r.kind, name) for r in records for name in r.gates))
    for colour, (kind, name) in zip((*COLOURS[4:], *COLOURS[:3]), labels):
        found = [i for i, r in enumerate(records) if r.kind == kind and name in r.gates]
        gates = [records[i].gates[name] for i in found]
        where = np.array(found) + 0.12 * labels.index((kind, name))
        axes[0, 0].errorbar(
            x=where,
            y=[gate.mean for gate in gates],
            yerr=[gate.std for gate in gates],
            fmt='o',
            color=colour,
            capsize=2,
            ms=4,
            label=f'{kind} {name}'.strip(),
        )
        share = [100 * gate.saturated for gate in gates]
        axes[1, 0].plot(where, share, 'o', color=colour, ms=4)
    axes[0, 0].set_ylim(-0.05, 1.05)
    axes[0, 0].set_ylabel('gate: mean and\nstandard deviation')
    axes[1, 0].set_ylim(-5, 105)
    axes[1, 0].set_ylabel('saturated, %')
    for axis in axes[:, 0]:
        axis.grid(axis='y', alpha=0.3)
    layer_axis(axes[1, 0], records)
    legend_above(axes[0, 0], max(1, len(labels)))
    return figure
