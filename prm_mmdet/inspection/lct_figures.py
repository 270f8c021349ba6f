"""Figures of the LCT paper (Ruan et al., AAAI 2020), for blocks with channel gates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .capture import Record
from .figure_files import COLOURS, new_figure
from .style import last_of_stages, legend_above


def attention_by_context(records: Sequence[Record]) -> Figure:
    """Figures 1 and 3 of the LCT paper, for the first block of each stage.

    The figure shows the gates, and each channel's global context (its mean over
    positions) before and after the block. Channels are sorted by their context before
    the block.

    Args:
        records: Records of blocks of one kind, which have a gate for each channel.
    """
    # In reversed order, the last block of a stage is the stage's first block.
    stages = last_of_stages(records[::-1])
    figure, axes = _columns(stages, 2, 4.6)
    for (top, bottom), (stage, record) in zip(axes.T, stages.items()):
        order = np.argsort(record.context_in)
        top.plot(record.channel_gate[order], '.', ms=2.5, color=COLOURS[4])
        top.set_title(f'{stage}: {len(order)} channels', fontsize=9)
        bottom.plot(record.context_out[order], color=COLOURS[5], lw=1, label='after')
        bottom.plot(record.context_in[order], color='black', lw=1.4, label='before')
        bottom.set_xlabel('channels, sorted by\ncontext before', fontsize=9)
    axes[0, 0].set_ylabel(f'attention of {record.kind}')
    axes[1, 0].set_ylabel('global context\n(mean of the channel)')
    legend_above(axes[1, 0], 2)
    low = min(record.channel_gate.min() for record in stages.values())
    high = max(record.channel_gate.max() for record in stages.values())
    margin = max(0.05 * (high - low), 0.02)
    for axis in axes[0]:
        axis.set_ylim(low - margin, high + margin)
    return figure


def context_change(records: Sequence[Record]) -> Figure:
    """Figure 4 of the LCT paper, for the first block of each stage.

    The figure shows how much the block changes each channel's global context (its mean
    over positions). Channels are sorted by their context before the block.

    Args:
        records: Records of blocks of one kind, which have a gate for each channel.
    """
    stages = last_of_stages(records[::-1])
    figure, axes = _columns(stages, 1, 2.6)
    for axis, (stage, record) in zip(axes[0], stages.items()):
        order = np.argsort(record.context_in)
        change = np.abs(record.context_out - record.context_in)[order]
        axis.plot(change, '.', ms=2.5, color=COLOURS[4])
        axis.set_ylim(0, max(1.05 * change.max(), 1e-6))
        axis.set_title(f'{stage}: mean {change.mean():.3g}', fontsize=9)
        axis.set_xlabel('channels, sorted by\ncontext before', fontsize=9)
    axes[0, 0].set_ylabel('absolute change\nof the context')
    return figure


def _columns(stages, rows, height):
    width = 2.6 * len(stages) + 0.8
    figure, axes = new_figure(width, height, nrows=rows, ncols=len(stages))
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
        axis.grid(axis='y', alpha=0.3)
    return figure, axes
