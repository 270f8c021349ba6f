"""Shapes in textured colours, which the generated data sets are drawn of."""

import math

import cv2
import numpy as np

#: The kinds of shapes; a label's shape is the one at its remainder.
SHAPES = ('circle', 'rectangle', 'triangle', 'star')

MAX_TURN = math.radians(20)  # of a shape to either side
# Degrees to either side of a class's hue, over the number of classes. The classes' hues
# do not meet, so that a small network learns them in minutes: colour tells the class,
# as the shape does.
HUE_SPREAD = 120
SUPERSAMPLING = 4  # drawn that many times larger, then averaged: smooth edges


def random_polygon(rng, label, side, centre):
    """A label's shape, of area ``side ** 2``: (n, 2) float corners x, y in pixels."""
    shape = SHAPES[label % len(SHAPES)]
    corners = {'circle': 72, 'rectangle': 4, 'triangle': 3, 'star': 10}[shape]
    # The first corner on top; a rectangle's to the upper left.
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


def coverage_of(polygon, size):
    """How much of every pixel a polygon covers: (size, size) floats from 0 to 1."""
    large = np.zeros((size * SUPERSAMPLING,) * 2, np.uint8)
    # OpenCV counts from the centre of the first pixel, polygons from its corner.
    corners = np.rint(polygon * SUPERSAMPLING - 0.5).astype(np.int32)
    cv2.fillPoly(large, [corners], 255)
    return cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA) / 255


def paint(rng, canvas, coverage, label, num_classes):
    """Fill a shape with a shaded texture that stands out, of one of the label's colours
    among those of ``num_classes``; returns a new canvas."""
    inside = coverage >= 0.5
    hue, spread = 360 * label / num_classes, HUE_SPREAD / num_classes
    hues = (hue - spread, hue + spread)
    candidates = random_colours(rng, hues, (0.6, 1.0), (0.5, 1.0), 8)
    # The candidate farthest from what is there, not counting the nearest tenth.
    gaps = np.linalg.norm(candidates[:, None] - canvas[inside][None], axis=2)
    colour = candidates[np.percentile(gaps, 10, axis=1).argmax()]
    tint = 0 if colour.mean() > 128 else 255
    filling = texture(rng, len(canvas), colour, 0.8 * colour + 0.2 * tint)
    core = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8))
    filling *= np.where(core, 1, 0.6)[..., None]  # a dark rim
    return canvas + coverage[..., None] * (filling - canvas)


def random_colours(rng, hue, saturation, value, count):
    """Random BGR colours, (count, 3) floats from 0 to 255; hue in degrees."""
    low, high = zip(hue, saturation, value)
    hsv = rng.uniform(low, high, (count, 3))
    hsv[:, 0] %= 360
    return cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2BGR)[0] * 255.0


def texture(rng, size, first, second):
    """Two colours blended by a random pattern: (size, size, 3) floats, 0 to 255."""
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
    shade = 1 + 0.3 * (across / size)[..., None]  # light from one side
    return np.clip((first + blend * (second - first)) * shade, 0, 255)
