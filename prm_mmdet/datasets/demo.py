"""Generator of a small data set of boxes and masks in COCO's format.

The images show drawn shapes of :data:`CLASSES` over textured backgrounds. A small Mask
R-CNN learns them in minutes. You can try a config on them without a download.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np

from .drawing import SHAPES, coverage_of, paint, random_colours, random_polygon, texture
from .generated import MAX_SEED, check_integers
from .generated_coco import Instance, write_coco

#: Names of the classes. The ``category_id`` is the position in this tuple plus one.
CLASSES = SHAPES

#: Raise this by one whenever the drawing changes. A data set of an older version then
#: raises an error.
VERSION = 1

# Smallest side of an image, in pixels. In a smaller image, the sides of shapes would
# have an upper limit (MAX_SIDE) below their lower limit (MIN_SIDE).
MIN_IMAGE_SIZE = 32
MAX_OBJECTS = 5  # largest number of shapes in an image, without those in a crowd
# The "side" of a shape is the square root of its area.
MIN_SIDE = 16  # smallest side of a shape, in pixels
MAX_SIDE = 0.5  # largest side of most shapes, as a fraction of the image size
# Side of a large shape, as a fraction of the image size. In images of 128 x 128 pixels,
# its area is above 96**2 pixels, so COCO counts the shape as large.
LARGE_SIDE = 0.85
# At least this fraction of each shape's area is visible. The rest can be outside of the
# image, or behind later shapes.
MIN_VISIBLE = 0.85
# A crowd is a cluster of tiny shapes that is annotated as one object.
CROWD_SIDE = (7, 9)  # smallest and largest side of a shape in a crowd, in pixels
CROWD_MEMBERS = (12, 20)  # smallest and largest number of shapes in a crowd
# Of PERIOD successive images, one has a crowd, one a large shape, and one no object.
PERIOD = 12
CROWD_AT, LARGE_AT, EMPTY_AT = 3, 6, 9


def generate_demo(
    root: str | os.PathLike[str],
    num_train: int = 400,
    num_val: int = 100,
    image_size: int = 128,
    seed: int = 0,
) -> None:
    """Write the demo data set, unless it is complete already.

    The files are ``annotations/instances_{train,val}.json`` and
    ``{train,val}/*.png``. An image depends on ``seed``, its split and its position in
    the split only. With the same versions of numpy and OpenCV, two runs write the same
    bytes. Calling the function again completes an interrupted run.

    Annotations describe the visible part of an object: ``bbox`` as (x, y, w, h) and
    ``area`` in pixels, and ``segmentation`` as polygons. The polygons run along pixel
    edges and rasterise to exactly the visible mask. At least 85 percent of each shape
    are visible. Of twelve images in a row, one has a crowd, one has a large shape and
    one has no objects. A crowd is a cluster of tiny shapes with ``iscrowd=1`` and an
    uncompressed RLE.

    Args:
        root: Folder of the data set. It is created if it is missing.
        num_train: Training images, at least 1. Default: 400.
        num_val: Validation images, at least 1. Default: 100.
        image_size: Side of the square images in pixels, at least 32. Default: 128.
        seed: From 0 to 2**32 - 1. Default: 0.

    Raises:
        ValueError: An argument is out of its range, or ``root`` holds a data set of
            other parameters, or other files.
    """
    parameters = check_integers(
        version=(VERSION, 1, None),
        num_train=(num_train, 1, None),
        num_val=(num_val, 1, None),
        image_size=(image_size, MIN_IMAGE_SIZE, None),
        seed=(seed, 0, MAX_SEED),
    )
    image_size = parameters['image_size']

    def draw(rng, index):
        return (*_draw_scene(rng, index, image_size), {})

    write_coco(root, 'demo', parameters, CLASSES, draw)


def _draw_scene(rng, index, size):
    """Draw the image with the number ``index`` in a split. Return the picture, (size,
    size, 3) uint8 BGR, and a list of its objects."""
    colours = random_colours(rng, (0, 360), (0.0, 0.2), (0.3, 0.8), 2)
    canvas = texture(rng, size, *colours)
    instances = []
    if index % PERIOD == CROWD_AT:
        canvas, crowd = _draw_crowd(rng, canvas)
        instances.append(crowd)
    if index % PERIOD != EMPTY_AT:
        count = rng.integers(2, MAX_OBJECTS + 1)
        limits = math.log(MIN_SIDE), math.log(MAX_SIDE * size)
        sides = np.exp(rng.uniform(*limits, count))
        # Later shapes cover earlier shapes. So draw the largest shape first.
        largest = sides.argmax()
        sides[[0, largest]] = sides[[largest, 0]]
        if index % PERIOD == LARGE_AT:
            sides[0] = LARGE_SIDE * size
        for side in sides:
            canvas, instances = _add_shape(rng, canvas, instances, side)
    grain = rng.normal(0, 2.5, canvas.shape)
    return np.clip(canvas + grain, 0, 255).astype(np.uint8), instances


def _add_shape(rng, canvas, instances, side, attempts=20):
    """Draw a shape at a random place that leaves at least the fraction MIN_VISIBLE of
    each shape visible. If no such place is found, draw nothing."""
    size = len(canvas)
    label = int(rng.integers(len(CLASSES)))
    for _ in range(attempts):
        # The centre is at least side / 2 pixels away from the border of the image. So
        # nearly all of the shape is inside the image.
        centre = rng.uniform(side / 2, size - side / 2, 2)
        coverage = coverage_of(random_polygon(rng, label, side, centre), size)
        inside = coverage >= 0.5
        shape = Instance(label, False, side**2, inside)
        trial = [replace(i, visible=i.visible & ~inside) for i in instances] + [shape]
        if all(i.visible.sum() >= MIN_VISIBLE * i.full_area for i in trial):
            return paint(rng, canvas, coverage, label, len(CLASSES)), trial
    return canvas, instances


def _draw_crowd(rng, canvas):
    """Draw a cluster of tiny shapes of one class, which is annotated as one object."""
    size = len(canvas)
    label = int(rng.integers(len(CLASSES)))
    spread = 0.18 * size
    middle = rng.uniform(spread, size - spread, 2)
    union = np.zeros((size, size), bool)
    for _ in range(rng.integers(CROWD_MEMBERS[0], CROWD_MEMBERS[1] + 1)):
        distance, angle = spread * math.sqrt(rng.uniform()), rng.uniform(0, 2 * math.pi)
        centre = middle + distance * np.array([math.cos(angle), math.sin(angle)])
        polygon = random_polygon(rng, label, rng.uniform(*CROWD_SIDE), centre)
        coverage = coverage_of(polygon, size)
        canvas = paint(rng, canvas, coverage, label, len(CLASSES))
        union |= coverage >= 0.5
    return canvas, Instance(label, True, float(union.sum()), union)
