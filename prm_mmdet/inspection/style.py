"""How images, maps and blocks are drawn."""

import textwrap
from collections.abc import Sequence

import numpy as np

from .figure_files import new_figure, row_heights

STAGES = {
    'c2': '#0072B2',
    'c3': '#E69F00',
    'c4': '#009E73',
    'c5': '#CC79A7',
    'c6': '#D55E00',  # of necks, as the next
    'c7': '#56B4E9',
}
MAP = 'viridis'  # lightness rises evenly, and so with any colour vision
LONGER_SIDE = 480  # pixels of an image in a panel, at most


def image_grid(images, columns, panel=2.6):
    """A Figure with a row of panels for each image (H, W, 3), in its shape, and a place
    at the right for a colour bar."""
    heights = row_heights(images, panel)
    figure, axes = new_figure(
        columns * panel + 0.9,
        sum(heights),
        nrows=len(images),
        ncols=columns,
        height_ratios=heights,
    )
    for axis in axes.flat:
        axis.axis('off')
    return figure, axes


def class_name(classes: Sequence[str], label: int) -> str:
    """The name of a class.

    Raises:
        ValueError: There is no such class.
    """
    if not 0 <= label < len(classes):
        raise ValueError(
            f'the model or an annotation has class number {label}, but the config '
            f'names {len(classes)} classes ({", ".join(classes[:3])}, ...). Use the '
            'config that the model was trained with'
        )
    return classes[label]


def panel_shape(image):
    """Rows and columns to draw an image (H, W, 3) with."""
    factor = min(1, LONGER_SIDE / max(image.shape[:2]))
    return tuple(max(1, round(side * factor)) for side in image.shape[:2])


def show_image(axis, image, title=''):
    """Draw an image in coordinates of its pixels."""
    step = max(1, max(image.shape[:2]) // (2 * LONGER_SIDE))
    axis.imshow(image[::step, ::step], extent=_extent(image))
    axis.set_title(title, fontsize=9)


def show_map(axis, image, values, title='', **scale):
    """Draw values, a map over the whole image of any size, over the image in grey."""
    grey = image.mean(2) if image.ndim == 3 else image
    step = max(1, max(image.shape[:2]) // (2 * LONGER_SIDE))
    options = dict(extent=_extent(image))
    axis.imshow(grey[::step, ::step], cmap='gray', vmin=0, vmax=255, **options)
    drawn = axis.imshow(values, cmap=MAP, alpha=0.65, **options, **scale)
    axis.set_title(title, fontsize=9)
    return drawn


def colour_bar(figure, drawn, axes, label, location='right'):
    """A colour bar without the overlay's transparency."""
    place = dict(ax=axes, shrink=0.8, pad=0.02, location=location, panchor=False)
    bar = figure.colorbar(drawn, **place)
    bar.solids.set(alpha=1)
    if location == 'right':  # about 14 letters an inch
        rows = {axis.get_subplotspec().rowspan.start for axis in np.ravel(axes)}
        ratios = np.ravel(axes)[0].get_gridspec().get_height_ratios()
        share = sum(ratios[row] for row in rows) / sum(ratios)
        label = textwrap.fill(label, max(12, int(14 * share * figure.get_figheight())))
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def short_names(records):
    """Names of blocks without what all of them have in front, and the block's own."""
    names = [record.name.split('.') for record in records]
    common = 0
    while len({tuple(name[: common + 1]) for name in names}) == 1 < len(names):
        common += 1
    return ['.'.join(n[common:-1]) or '.'.join(n[-2:]) for n in names]


def last_of_stages(records):
    """The last block of each stage, by stage."""
    return dict(sorted({record.stage: record for record in records}.items()))


def first_of_stages(records):
    """The first block of each stage, by stage."""
    return last_of_stages(records[::-1])


def layer_axis(axis, records):
    """Label an x axis with blocks in depth order, and keep room for a legend above."""
    names = short_names(records)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.set_xlabel('block, from input to output')


def legend_above(axis, columns):
    axis.legend(
        loc='lower left',
        bbox_to_anchor=(0, 1),
        ncols=columns,
        frameon=False,
        fontsize=8,
        borderaxespad=0.2,
    )


def _extent(image):
    height, width = np.shape(image)[:2]
    return (-0.5, width - 0.5, height - 0.5, -0.5)
