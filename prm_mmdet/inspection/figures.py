"""What the figures share."""

import os

import mmengine
from matplotlib.backends.backend_agg import FigureCanvasAgg

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ('#E69F00', '#56B4E9', '#009E73', '#F0E442', '#0072B2', '#D55E00', '#CC79A7')


def check_png(out):
    """Raise ValueError unless a file's name ends in .png."""
    if os.path.splitext(out)[1].lower() != '.png':
        raise ValueError(f'out must be a .png file, got {str(out)!r}')


def save_png(figure, out):
    """Write a figure to a PNG file, whole or not at all.

    Args:
        figure (matplotlib.figure.Figure): The figure.
        out (str): The file; folders on the way to it are made.
    """
    FigureCanvasAgg(figure)
    mmengine.mkdir_or_exist(os.path.dirname(out) or '.')
    figure.savefig(f'{out}.tmp', format='png', dpi=80)
    os.replace(f'{out}.tmp', out)
