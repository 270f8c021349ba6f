"""Figures of the SAC paper (Ruan et al., IEEE TIP 2021).

The figures are drawn for every block that gathers contexts or adds to its input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .capture import COSINE_BINS, Record
from .figure_files import COLOURS, new_figure
from .geometry import Frame
from .style import (
    colour_bar,
    image_grid,
    last_of_stages,
    legend_above,
    panel_shape,
    show_image,
    show_map,
)


def shown_block(records: Sequence[Record]) -> Record:
    """The last block of c4 (stride 16), which the paper shows. If c4 has no block, the
    last block of the deepest stage."""
    stages = last_of_stages(records)
    return stages.get('c4') or list(stages.values())[-1]


def attention_maps(
    record: Record,
    images: Sequence[np.ndarray],
    frames: Sequence[Frame],
    contexts: int = 4,
) -> Figure:
    """Figure 4 of the SAC paper: attention maps, one row for each image.

    The figure shows contexts that attend to different places, in the order of their
    indices. The most concentrated context is chosen first. Each next choice is the
    context that is least similar to the contexts already chosen.

    Args:
        record: Record of a block with attention maps.
        images: The images of ``record.maps``, RGB, (H, W, 3).
        frames: For each image, the mapping from the network's input to its pixels.
        contexts: Largest number of maps to show for each image. Default: 4.
    """
    chosen = _different([m.attention for m in record.maps], contexts)
    figure, axes = image_grid(images, 1 + len(chosen), panel=2.2)
    # A value is attention divided by uniform attention, so 1 is uniform. The colour
    # scale ends at ``top``, which is at least 2, so that the scale always contains 1.
    drawn, top = [], 2.0
    for row, image, frame, maps in zip(axes, images, frames, record.maps):
        show_image(row[0], image)
        for axis, k in zip(row[1:], chosen):
            values = maps.attention[k] * maps.attention[k].size
            values = frame.resize(values, maps.grid, panel_shape(image))
            top = max(top, float(np.quantile(values, 0.995)))
            title = f'context {k + 1} of {len(maps.attention)}'
            title = title if row[0] is axes[0, 0] else ''
            drawn.append(show_map(axis, image, values, title))
    for picture in drawn:
        picture.set_clim(0, top)
    colour_bar(figure, drawn[0], axes, 'attention over uniform attention')
    return figure


def _different(maps, count):
    """Indices of at most ``count`` contexts whose attention maps differ from each
    other. ``maps`` has an array (K, h, w) for each image."""
    flat = np.concatenate([m.reshape(len(m), -1) for m in maps], 1).astype(float)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    chosen = [int(np.argmax((flat**2).sum(1)))]
    while len(chosen) < min(count, len(flat)):
        likeness = (unit @ unit[chosen].T).max(1)
        likeness[chosen] = np.inf
        chosen.append(int(np.argmin(likeness)))
    return sorted(chosen)


def feature_norms(
    record: Record, images: Sequence[np.ndarray], frames: Sequence[Frame]
) -> Figure:
    """Figure 5 of the SAC paper: norms of features, one row for each image.

    The columns show, at each position, the norm over channels of a block's input, |X|,
    and of what the block adds to it, |Z - X|. Each column has its own colour scale.

    Args:
        record: Record of a block that adds to its input.
        images: The images of ``record.maps``, RGB, (H, W, 3).
        frames: For each image, the mapping from the network's input to its pixels.
    """
    figure, axes = image_grid(images, 3)
    columns = (('norm_in', '|X|, before the block'), ('norm_added', '|Z - X|, added'))
    for row, image in zip(axes, images):
        show_image(row[0], image)
    for column, (name, label) in enumerate(columns, 1):
        drawn, top = [], 0.0
        for row, image, frame, maps in zip(axes, images, frames, record.maps):
            values = getattr(maps, name)
            values = frame.resize(values, maps.grid, panel_shape(image))
            top = max(top, float(values.max()))
            drawn.append(show_map(row[column], image, values))
        for picture in drawn:
            # Before training, a block can add 0 everywhere. Then the colour scale ends
            # at 1, because it cannot end at 0.
            picture.set_clim(0, top or 1)
        axes[0, column].set_title(label, fontsize=9)
        label = 'length of the feature vector'
        colour_bar(figure, drawn[0], axes[:, column], label, location='bottom')
    return figure


def weight_similarity(
    records: Sequence[Record], others: Sequence[Record] = ()
) -> Figure:
    """Figure 3 of the SAC paper: how similar the weights at two positions are.

    A block has a weight for each context at each position. The cosine
    between the weights at two positions of an image shows how similar they are. The
    figure shows how often each cosine occurs, with and without a softmax over the
    contexts.

    Args:
        records: Records of blocks of one kind, which have such weights.
        others: Records of a second network, trained with the other setting of
            ``softmax``. Default: none. Without a second network, the weights of the
            first network are drawn before and after a softmax.
    """
    stages, second = last_of_stages(records), last_of_stages(others or records)
    figure, axes = new_figure(2.8 * len(stages) + 0.6, 2.9, ncols=len(stages))
    looks: dict[bool, dict] = {
        False: dict(color=COLOURS[4], label='without softmax'),
        True: dict(color=COLOURS[5], label='with softmax', linestyle='--'),
    }
    for axis, (stage, record) in zip(axes[0], stages.items()):
        drawn = dict.fromkeys(looks, record)
        if others:
            # Draw each network with the softmax setting of its own training.
            drawn = {r.block.softmax: r for r in (record, second.get(stage)) if r}
        for softmax, shown in drawn.items():
            counts = shown.cosines[softmax]
            share = 100 * counts / max(counts.sum(), 1)
            axis.stairs(share, COSINE_BINS, linewidth=1.6, **looks[softmax])
        axis.set_xlabel("cosine of two positions' weights", fontsize=9)
        axis.set_xlim(-1.03, 1.03)
        axis.set_yscale('symlog', linthresh=1)
        axis.set_ylim(0, 130)
        axis.set_yticks([0, 1, 10, 100], ['0', '1', '10', '100'])
        axis.set_title(f'{stage}, K = {record.contexts}\n', fontsize=9)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel('pairs of positions, %')
    legend_above(axes[0, 0], 2)
    return figure
