"""Draw images, maps of blocks over images, and axes that list blocks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from .capture import Record
from .figure_files import COLOURS, image_rows

# Colours of stages. c6 and c7 are extra levels of a neck, not stages.
STAGES = {f'c{i + 2}': COLOURS[k] for i, k in enumerate((4, 0, 2, 6, 5, 1))}
MAP = 'viridis'  # a colour map that is readable with any colour vision
LONGER_SIDE = 480  # largest side of an image in a panel, in pixels


def image_grid(
    images: Sequence[np.ndarray], columns: int, panel: float = 2.6
) -> tuple[Figure, np.ndarray]:
    """A figure with a row of panels for each image (H, W, 3), and its axes.

    Panels have the shape of their image. The space at the right fits a colour bar.
    """
    figure, axes = image_rows(images, columns, panel, beside=0.9)
    for axis in axes.flat:
        axis.axis('off')
    return figure, axes


def class_name(classes: Sequence[str], label: int) -> str:
    """The name of the class with number ``label``.

    Raises:
        ValueError: ``classes`` has no class with this number.
    """
    if not 0 <= label < len(classes):
        raise ValueError(
            f'the model or an annotation has class number {label}, but the config '
            f'names {len(classes)} classes ({", ".join(classes[:3])}, ...). Use the '
            'config that the model was trained with'
        )
    return classes[label]


def panel_shape(image: np.ndarray) -> tuple[int, ...]:
    """Numbers of rows and columns of an image (H, W, 3) in a panel. If the image is too
    large, it is reduced."""
    factor = min(1, LONGER_SIDE / max(image.shape[:2]))
    return tuple(max(1, round(side * factor)) for side in image.shape[:2])


def show_image(axis: Axes, image: np.ndarray, title: str = '') -> None:
    """Draw an image. The axes' coordinates are pixels of the image."""
    step = max(1, max(image.shape[:2]) // (2 * LONGER_SIDE))
    axis.imshow(image[::step, ::step], extent=_extent(image))
    axis.set_title(title, fontsize=9)


def show_map(
    axis: Axes, image: np.ndarray, values: np.ndarray, title: str = '', **scale: Any
) -> ScalarMappable:
    """Draw a map in colours over its image in grey.

    Args:
        axis: The axes.
        image: The image, (H, W, 3) or (H, W).
        values: The map, of any size, which covers the whole image.
        title: Title of the panel. Default: none.
        **scale: Arguments of Matplotlib's ``imshow``, such as ``vmin``.

    Returns:
        The picture of the map, for :func:`colour_bar`.
    """
    grey = image.mean(2) if image.ndim == 3 else image
    step = max(1, max(image.shape[:2]) // (2 * LONGER_SIDE))
    options = dict(extent=_extent(image))
    axis.imshow(grey[::step, ::step], cmap='gray', vmin=0, vmax=255, **options)
    drawn = axis.imshow(values, cmap=MAP, alpha=0.65, **options, **scale)
    axis.set_title(title, fontsize=9)
    return drawn


def colour_bar(
    figure: Figure,
    drawn: ScalarMappable,
    axes: Any,
    label: str,
    location: str = 'right',
) -> None:
    """Add a colour bar in opaque colours to a figure whose maps are transparent."""
    place: dict[str, Any] = dict(shrink=0.8, pad=0.02, panchor=False)
    bar: Any = figure.colorbar(drawn, ax=axes, location=location, **place)
    bar.solids.set(alpha=1)
    # An inch holds about 14 letters, so a long label is broken into lines.
    if location == 'right':
        rows = {axis.get_subplotspec().rowspan.start for axis in np.ravel(axes)}
        ratios = np.ravel(axes)[0].get_gridspec().get_height_ratios()
        share = sum(ratios[row] for row in rows) / sum(ratios)
        label = textwrap.fill(label, max(12, int(14 * share * figure.get_figheight())))
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def short_names(records: Sequence[Record]) -> list[str]:
    """Short names of blocks, such as 'layer2.0' for 'backbone.layer2.0.prm_block'. The
    prefix that all names share and the last component are left out."""
    names = [record.name.split('.') for record in records]
    common = 0
    while len({tuple(name[: common + 1]) for name in names}) == 1 < len(names):
        common += 1
    return ['.'.join(n[common:-1]) or '.'.join(n[-2:]) for n in names]


def last_of_stages(records: Iterable[Record]) -> dict[str, Record]:
    """The last block of each stage, by the stage's name."""
    return dict(sorted({str(record.stage): record for record in records}.items()))


def layer_axis(axis: Axes, records: Sequence[Record]) -> None:
    """Label the x axis with the blocks in order of depth."""
    names = short_names(records)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.set_xlabel('block, from input to output')


def legend_above(axis: Axes, columns: int) -> None:
    """Add a legend above the axes."""
    look: dict[str, Any] = dict(frameon=False, fontsize=8, borderaxespad=0.2)
    axis.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=columns, **look)


def _extent(image):
    height, width = np.shape(image)[:2]
    return (-0.5, width - 0.5, height - 0.5, -0.5)
