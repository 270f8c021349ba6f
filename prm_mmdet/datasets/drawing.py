"""Draw shapes in textured colours, for the generated data sets.

Every function with an argument ``rng`` draws random numbers from a numpy Generator.
Pictures are BGR.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator

#: Kinds of shapes. The shape of a label is ``SHAPES[label % len(SHAPES)]``.
SHAPES = ('circle', 'rectangle', 'triangle', 'star')

# A shape is rotated by at most this angle to the left or right, in radians.
MAX_TURN = math.radians(20)
# The hues of a class lie at most HUE_SPREAD / num_classes degrees from their centre.
# The centres are 360 / num_classes degrees apart, so no two classes share a hue. Both
# colour and shape show the class, so a small network learns the classes in minutes.
HUE_SPREAD = 120
# Shapes are drawn this many times larger and then averaged, for smooth edges.
SUPERSAMPLING = 4


def random_polygon(
    rng: Generator, label: int, side: float, centre: np.ndarray
) -> np.ndarray:
    """The shape of a label with random proportions and rotation.

    Args:
        rng: Source of randomness.
        label: Number of the class.
        side: Square root of the shape's area, in pixels.
        centre: Position (x, y) in pixels.

    Returns:
        Corners (x, y) in pixels, (n, 2) floats.
    """
    shape = SHAPES[label % len(SHAPES)]
    corners = {'circle': 72, 'rectangle': 4, 'triangle': 3, 'star': 10}[shape]
    # Before the rotation, the first corner is at the top of the shape. In a rectangle,
    # the first corner is at the upper left.
    first = -math.pi / 2 - (math.pi / 4 if shape == 'rectangle' else 0)
    angles = 2 * math.pi / corners * np.arange(corners) + first
    polygon = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if shape == 'star':
        polygon[1::2] *= 0.55
    if shape != 'circle':
        polygon[:, 1] *= rng.uniform(0.7, 1)
    turn = rng.uniform(-MAX_TURN, MAX_TURN)
    cos, sin = math.cos(turn), math.sin(turn)
    polygon = polygon @ np.array([[cos, sin], [-sin, cos]])
    area = cv2.contourArea(polygon.astype(np.float32))
    return polygon * (side / math.sqrt(area)) + centre


def coverage_of(polygon: np.ndarray, size: int) -> np.ndarray:
    """How much of each pixel a polygon covers, (size, size) floats from 0 to 1."""
    large = np.zeros((size * SUPERSAMPLING,) * 2, np.uint8)
    # In the polygons, (0, 0) is the corner of the first pixel. In OpenCV, (0, 0) is the
    # centre of the first pixel. So subtract 0.5.
    corners = np.rint(polygon * SUPERSAMPLING - 0.5).astype(np.int32)
    cv2.fillPoly(large, [corners], 255)
    return cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA) / 255


def paint(
    rng: Generator,
    canvas: np.ndarray,
    coverage: np.ndarray,
    label: int,
    num_classes: int,
) -> np.ndarray:
    """A canvas with a shape painted on it, in a colour that differs from the canvas.

    Args:
        rng: Source of randomness.
        canvas: Picture, (size, size, 3) floats from 0 to 255.
        coverage: Result of :func:`coverage_of` for the shape.
        label: Number of the class, which determines the range of hues.
        num_classes: Number of classes that share the circle of hues.

    Returns:
        A new picture.
    """
    inside = coverage >= 0.5
    hue, spread = 360 * label / num_classes, HUE_SPREAD / num_classes
    hues = (hue - spread, hue + spread)
    candidates = random_colours(rng, hues, (0.6, 1.0), (0.5, 1.0), 8)
    # A candidate colour's difference is the 10th percentile of its distances to the
    # pixels under the shape. Take the candidate with the largest difference.
    gaps = np.linalg.norm(candidates[:, None] - canvas[inside][None], axis=2)
    colour = candidates[np.percentile(gaps, 10, axis=1).argmax()]
    tint = 0 if colour.mean() > 128 else 255
    filling = texture(rng, len(canvas), colour, 0.8 * colour + 0.2 * tint)
    core = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8))
    filling *= np.where(core, 1, 0.6)[..., None]  # Darken the rim of the shape.
    return canvas + coverage[..., None] * (filling - canvas)


def random_colours(
    rng: Generator,
    hue: tuple[float, float],
    saturation: tuple[float, float],
    value: tuple[float, float],
    count: int,
) -> np.ndarray:
    """Random colours, (count, 3) floats from 0 to 255.

    Args:
        rng: Source of randomness.
        hue: Range in degrees.
        saturation: Range from 0 to 1.
        value: Range from 0 to 1.
        count: Number of colours.
    """
    low, high = zip(hue, saturation, value)
    hsv = rng.uniform(low, high, (count, 3))
    hsv[:, 0] %= 360
    return cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2BGR)[0] * 255.0


def texture(
    rng: Generator, size: int, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Two colours blended by a random pattern, (size, size, 3) floats from 0 to 255."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    wave = 2 * math.pi / rng.uniform(6, 16)
    pattern = rng.choice(['gradient', 'stripes', 'checks', 'clouds'])
    if pattern == 'gradient':
        blend = 0.5 + along / size
    elif pattern == 'stripes':
        blend = 0.5 + 0.5 * np.sin(wave * along)
    elif pattern == 'checks':
        blend = 0.5 + 0.5 * np.sin(wave * along) * np.sin(wave * across)
    else:
        cells = rng.uniform(size=(int(rng.integers(5, 12)),) * 2)
        blend = cv2.resize(cells, (size, size), interpolation=cv2.INTER_CUBIC)
    blend = np.clip(blend, 0, 1)[..., None]
    # One side of the picture is lighter, as if light came from there.
    shade = 1 + 0.3 * (across / size)[..., None]
    return np.clip((first + blend * (second - first)) * shade, 0, 255)
