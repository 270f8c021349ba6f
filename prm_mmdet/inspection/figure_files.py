"""What the figures share: colours, layout, PNG files."""

import io
import os

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..files.atomic import write_file

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ('#E69F00', '#56B4E9', '#009E73', '#F0E442', '#0072B2', '#D55E00', '#CC79A7')


def new_figure(width, height, **layout):
    """A Figure of so many inches, and its axes as an array of rows and columns."""
    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(**layout, squeeze=False)


def row_heights(images, panel):
    """Inches of rows of panels, with titles, that hold images (H, W, 3) at a width of
    ``panel`` inches, tall ones at less.
    Flat ones leave room for the label of a colour bar."""
    shapes = [image.shape for image in images]
    return [panel * min(max(h / w, 0.35), 1.2) + 0.3 for h, w, *_ in shapes]


def check_png(out):
    """Raise ValueError unless a file's name ends in .png."""
    if os.path.splitext(out)[1].lower() != '.png':
        raise ValueError(f'out must be a .png file, got {str(out)!r}')


def check_folder(path):
    """Raise ValueError unless files can be written to a folder, made if missing."""
    place = os.path.abspath(path)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        reason = 'cannot be written to' if os.path.isdir(place) else 'is no folder'
        raise ValueError(f'{place} {reason}; name another folder than {path}')


def save_png(figure, out):
    """Write a figure to a PNG file, whole or not at all.

    Args:
        figure (matplotlib.figure.Figure): The figure.
        out (str): The file; folders on the way to it are made.
    """
    write_file(out, png(figure, dpi=80))


def png(figure, dpi=100):
    """A figure as bytes of a PNG file."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=dpi, facecolor='white')
    picture = Image.open(buffer).convert('RGB')  # a quarter smaller
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG', optimize=True)
    return buffer.getvalue()
