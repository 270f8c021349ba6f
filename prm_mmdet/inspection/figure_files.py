"""Colours, layout and PNG files of all figures."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..files.atomic import write_file

# Okabe and Ito's colours, which people with any colour vision can distinguish.
COLOURS = ('#E69F00', '#56B4E9', '#009E73', '#F0E442', '#0072B2', '#D55E00', '#CC79A7')


def new_figure(width: float, height: float, **layout: Any) -> tuple[Figure, np.ndarray]:
    """A figure of ``width`` by ``height`` inches, and its axes as a 2D array."""
    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(**layout, squeeze=False)


def image_rows(
    images: Sequence[np.ndarray], columns: int, panel: float, beside: float = 0
) -> tuple[Figure, np.ndarray]:
    """A figure with a row of panels for each image (H, W, 3), and its axes.

    A panel is ``panel`` inches wide, or narrower if its image is tall. If an image is
    much wider than tall, its row still has room for the label of a colour bar.
    ``beside`` is the width in inches that stays free at the right.
    """
    shapes = [image.shape for image in images]
    heights = [panel * min(max(h / w, 0.35), 1.2) + 0.3 for h, w, *_ in shapes]
    width = columns * panel + beside
    return new_figure(
        width, sum(heights), nrows=len(images), ncols=columns, height_ratios=heights
    )


def check_png(out: str | Path) -> None:
    """Raise ValueError unless the file name ends in .png."""
    if os.path.splitext(out)[1].lower() != '.png':
        raise ValueError(f'out must be a .png file, got {str(out)!r}')


def check_folder(path: str | Path) -> None:
    """Raise ValueError unless the folder is writable or can be made."""
    place = os.path.abspath(path)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        reason = 'is not writable' if os.path.isdir(place) else 'is not a folder'
        raise ValueError(f'{place} {reason}; name another folder than {path}')


def save_png(figure: Figure, out: str | Path) -> None:
    """Write a figure to a PNG file, whole or not at all. Missing folders are made."""
    write_file(out, png(figure, dpi=80))


def png(figure: Figure, dpi: int = 100) -> bytes:
    """A figure as the bytes of a PNG file."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=dpi, facecolor='white')
    # Remove transparency, which makes the file a quarter smaller.
    picture = Image.open(buffer).convert('RGB')
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG', optimize=True)
    return buffer.getvalue()
