"""Generator of a small COCO-format data set of boxes and masks.

The scenes are drawn, not photographed: shapes of :data:`CLASSES` over textured
backgrounds. A small Mask R-CNN learns them in minutes, so the set serves to try a
configuration out end to end without downloading anything.
"""

import math

import numpy as np

from .drawing import (
    SHAPES,
    coverage_of,
    paint,
    random_colours,
    random_polygon,
    texture,
)
from .generated import MAX_SEED, check_integers
from .generated_coco import Instance, write_coco

#: Names of the classes; ``category_id`` is the position in this tuple plus one.
CLASSES = SHAPES

#: Raised by one whenever the drawing changes, so that a data set of an older
#: generator is not taken for one of the present generator.
VERSION = 1

MIN_IMAGE_SIZE = 32  # pixels; a smaller image has no room for MIN_SIDE shapes
MAX_OBJECTS = 5  # shapes in an image, besides a crowd
MIN_SIDE = 16  # pixels; "side" is the square root of a shape's area throughout
MAX_SIDE = 0.5  # of the image size
LARGE_SIDE = 0.85  # of the image size; at 128 pixels, more than COCO's 96 x 96
MIN_VISIBLE = 0.85  # of a shape's area; the rest is covered or outside the image
CROWD_SIDE = (7, 9)  # pixels
CROWD_MEMBERS = (12, 20)
PERIOD = 12  # of these images in a row, one of each of the following kinds
CROWD_AT, LARGE_AT, EMPTY_AT = 3, 6, 9


def generate_demo(root, num_train=400, num_val=100, image_size=128, seed=0):
    """Write the demo data set, unless it is there already.

    Writes ``annotations/instances_{train,val}.json`` and ``{train,val}/*.png``
    under ``root``. Every image is determined by ``seed``, its split and its
    position in the split alone, and the files are the same byte for byte from run
    to run (given the same versions of numpy and OpenCV). The annotation files are
    written last and each file appears whole or not at all, so a folder without
    both of them is not complete; calling again completes it.

    Objects are annotated by what is visible of them: ``bbox`` as (x, y, w, h) and
    ``area`` in pixels, ``segmentation`` as polygons along pixel edges, which
    rasterise to exactly the visible mask. No shape is drawn where it would leave
    less than 85 percent of another one visible. Of twelve images in a row, one has a
    crowd (a cluster of tiny shapes annotated as one uncompressed RLE with
    ``iscrowd=1``), one has a large shape and one has no objects.

    Args:
        root (str or os.PathLike): Folder of the data set; created if missing.
        num_train (int): Training images, at least 1. Default: 400.
        num_val (int): Validation images, at least 1. Default: 100.
        image_size (int): Side of the square images in pixels, at least 32.
            Default: 128.
        seed (int): From 0 to 2**32 - 1. Default: 0.

    Raises:
        ValueError: If an argument is out of its range, or if ``root`` holds a data
            set of other parameters or files that are no part of this data set.
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
    """Draw image ``index`` of a split.

    Returns:
        tuple: The picture, (size, size, 3) uint8 BGR, and a list of Instance.
    """
    colours = random_colours(rng, (0, 360), (0.0, 0.2), (0.3, 0.8), 2)
    canvas = texture(rng, size, *colours)
    instances = []
    if index % PERIOD == CROWD_AT:
        canvas, crowd = _draw_crowd(rng, canvas)
        instances.append(crowd)
    if index % PERIOD != EMPTY_AT:
        count = rng.integers(2, MAX_OBJECTS + 1)
        sides = np.exp(
            rng.uniform(math.log(MIN_SIDE), math.log(MAX_SIDE * size), count)
        )
        # The largest shape first: on top of others it would mostly hide them.
        largest = sides.argmax()
        sides[[0, largest]] = sides[[largest, 0]]
        if index % PERIOD == LARGE_AT:
            sides[0] = LARGE_SIDE * size
        for side in sides:
            canvas, instances = _add_shape(rng, canvas, instances, side)
    grain = rng.normal(0, 2.5, canvas.shape)
    return np.clip(canvas + grain, 0, 255).astype(np.uint8), instances


def _add_shape(rng, canvas, instances, side, attempts=20):
    """Draw a shape where it hides too much of none, or none if no place is found."""
    size = len(canvas)
    label = int(rng.integers(len(CLASSES)))
    for _ in range(attempts):
        # At this distance from the border little of a shape can be outside.
        centre = rng.uniform(side / 2, size - side / 2, 2)
        coverage = coverage_of(random_polygon(rng, label, side, centre), size)
        inside = coverage >= 0.5
        shape = Instance(label, False, side**2, inside)
        behind = [
            Instance(i.label, i.is_crowd, i.full_area, i.visible & ~inside)
            for i in instances
        ]
        trial = [*behind, shape]
        if all(i.visible.sum() >= MIN_VISIBLE * i.full_area for i in trial):
            return paint(rng, canvas, coverage, label, len(CLASSES)), trial
    return canvas, instances


def _draw_crowd(rng, canvas):
    """Draw a cluster of tiny shapes of one class, which count as one instance."""
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
