"""Figures of the PRM paper (Ma and Fu, IJCAI 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .capture import Record
from .figure_files import COLOURS, new_figure
from .geometry import Frame
from .quantities import contribution_rate
from .style import (
    STAGES,
    colour_bar,
    image_grid,
    last_of_stages,
    layer_axis,
    legend_above,
    panel_shape,
    show_image,
    show_map,
)


def contribution_rates(records: Sequence[Record]) -> Figure:
    """Figure 3 of the PRM paper: how much the query point counts in each block.

    A PRM block compares each position's features with those of a query point (weight
    alpha) and with the mean over all positions (weight beta). The figure shows
    |alpha| / (|alpha| + |beta|), averaged over groups of channels.

    Args:
        records: Records of PRM blocks.
    """
    figure, axes = new_figure(max(4.5, 0.32 * len(records) + 1.5), 3)
    axis = axes[0, 0]
    rates = [contribution_rate(record.block) for record in records]
    axis.plot(rates, color='0.7', zorder=1)
    for stage in dict.fromkeys(record.stage for record in records):
        where = [i for i, record in enumerate(records) if record.stage == stage]
        colour = STAGES.get(str(stage), 'black')
        axis.scatter(where, [rates[i] for i in where], color=colour, label=stage)
    axis.set_ylim(-0.03, 1.03)
    axis.set_ylabel('contribution rate of the query')
    axis.grid(axis='y', alpha=0.3)
    layer_axis(axis, records)
    legend_above(axis, len(STAGES))
    return figure


def query_points(
    records: Sequence[Record], index: int, image: np.ndarray, frame: Frame
) -> Figure:
    """Draw Figure 5 (top and middle) of the PRM paper, for the last PRM of each stage.

    The upper row shows the query points of all groups. The lower row shows the
    position encoding D, averaged over groups.

    Args:
        records: Records of PRM blocks.
        index: Index of the image in ``Record.maps``, from 0.
        image: The original image, RGB, (H, W, 3).
        frame: The mapping from the network's input to the pixels of this image.
    """
    stages = last_of_stages(r for r in records if index < len(r.maps))
    maps = {stage: record.maps[index] for stage, record in stages.items()}
    masks = {
        stage: frame.resize(m.encoding, m.grid, panel_shape(image))
        for stage, m in maps.items()
        if m.encoding is not None
    }
    figure, axes = image_grid([image] * (2 if masks else 1), len(stages))
    for axis, (stage, m) in zip(axes[0], maps.items()):
        points, counts = np.unique(m.query, axis=0, return_counts=True)
        pixels = frame.to_image(m.grid, points)
        inside = frame.inside(pixels)
        title = f'{stage}: {len(m.query)} groups, {len(points)} query points'
        if not inside.all():
            title += f'\n({counts[~inside].sum()} of the groups in the padding)'
        show_image(axis, image, title)
        look = dict(color='#D55E00', edgecolor='white', linewidth=0.7, clip_on=False)
        rows, columns = pixels[inside].T
        axis.scatter(columns, rows, s=12 + 6 * (counts[inside] - 1), **look)
        axis.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    if masks:
        top = max(mask.max() for mask in masks.values())
        for axis, (stage, mask) in zip(axes[1], masks.items()):
            drawn = show_map(axis, image, mask, f'{stage}: D', vmin=0, vmax=top)
        colour_bar(figure, drawn, axes[1], 'D (Eq. 5), mean over groups')
    return figure


def accuracy_by_groups(points: dict[int, float], baseline: float | None) -> Figure:
    """Figure 4 of the PRM paper: top-1 accuracy by the number of groups.

    Args:
        points: For each number of groups, the accuracy in percent.
        baseline: Accuracy of the network without a block, or None.
    """
    figure, axes = new_figure(4.5, 3)
    axis = axes[0, 0]
    groups = sorted(points)
    axis.plot(groups, [points[g] for g in groups], 'o-', color=COLOURS[4], label='PRM')
    if baseline is not None:
        axis.axhline(baseline, color=COLOURS[5], ls='--', label='without a block')
    axis.set_xscale('log', base=2)
    axis.set_xticks(groups, [str(g) for g in groups])
    axis.set_xlabel('groups')
    axis.set_ylabel('top-1 accuracy, %')
    axis.grid(alpha=0.3)
    legend_above(axis, 2)
    return figure
