"""Generated detection data sets that test which context a network can use.

Each data set is called a probe. Objects are shapes of random kind, size and texture, of
two classes. In every probe but ``control``, the class does not depend on the object's
own pixels or on any pixel within :data:`DISTANCE` of the object. Only a cue, which is
painted farther away, shows the class. The cue is beyond the receptive field of the
network in ``configs/none.py``. This network must guess, unless a block brings the
context.
"""

import functools
import math
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from prm_mmdet.datasets.drawing import (
    SHAPES,
    coverage_of,
    paint,
    random_colours,
    random_polygon,
    texture,
)
from prm_mmdet.datasets.generated import MAX_SEED, check_integers
from prm_mmdet.datasets.generated_coco import Instance, box_of, write_coco

CLASSES = ('first', 'second')

#: Version of the drawing. If you change the drawing, raise this number by one. Then
#: older data and records are not used any more.
VERSION = 4

HEIGHT, WIDTH = 96, 384  # size of the images, in pixels
WIDE = 576  # width of images in the probe relative-position, in pixels
#: An object's box and the cue that shows its class are at least this far apart, in
#: pixels.
DISTANCE = 195
# A side is the square root of an area, in pixels. Objects have sides in the range SIDE.
# A marker is a disc whose hue is a cue. In the probe "relative-position", the landmark
# is a disc whose distance to the objects is the cue.
SIDE = (16, 21)
MARKER_SIDE = 14
LANDMARK_SIDE = 18
OBJECTS = (2, 3)  # smallest and largest number of objects in an image
MARGIN = 2  # least number of free pixels on each side of an object

# Hues are numbered from 0 to 5: red, yellow, green, cyan, blue, magenta.
HUES = 6
OBJECT_HUE = 2
CLASS_HUES = (0, 4)
# Hues of the objects in the probe control, by class. In the other probes, these hues
# are cues of the opposite class. So a network that was trained on control distinguishes
# the hues of cues, but takes each hue for the wrong class.
CONTROL_HUES = ((3, 4), (0, 1))
# Hues in the probe which-context. KIND_HUES has the hue of each kind of objects.
# KIND_CLASS_HUES has the hues of each kind's marker: one hue for each class.
KIND_HUES = (2, 5)
KIND_CLASS_HUES = ((0, 4), (1, 3))

# In the probe relative-position, the distance from the landmark (a disc) to the nearest
# object is in the range NEAR for class 0, and in the range FAR for class 1. In pixels.
NEAR, FAR = (DISTANCE, 220), (265, 290)
# In the same probe, the region of the objects has a random left edge in this range, in
# pixels. Each object begins at most SPREAD pixels to the right of this edge.
LEFT_EDGES = (320, 530)
SPREAD = 20

# Constants of the probe scene. Its images have square tiles, each in one of two tints.
TILE = 12  # side of a tile, in pixels
# Of the tiles near the objects, a random fraction in this range has the first tint.
LOCAL_SHARE = (0.48, 0.52)
# Fraction of all tiles that have the first tint: for class 1, then for class 0.
SHARES = (0.41, 0.59)


@dataclass
class Scene:
    """A generated image with its objects and cues."""

    picture: np.ndarray  # (H, W, 3) floats from 0 to 255, BGR
    instances: list[Instance]
    # Boxes of the cues, as x, y, width, height in pixels. No pixel outside the boxes
    # shows a class. If objects show their own classes, the list is empty.
    cues: list[tuple]


def generate_probe(root, probe, num_train=320, num_val=100, seed=0):
    """Write a probe's data set, unless it is there already.

    The files are those of :func:`prm_mmdet.datasets.generated_coco.write_coco`. Each
    image also records its ``cues``, the boxes that show the classes.

    Args:
        root (str or os.PathLike): Folder of the data set. It is created if it is
            missing.
        probe (str): One of :data:`PROBES`.
        num_train (int): Training images, at least 1.
        num_val (int): Validation images, at least 1.
        seed (int): From 0 to 2**32 - 1.

    Raises:
        ValueError: An argument is out of its range, or ``root`` holds a data set of
            other parameters or files that are no part of this data set.
    """
    check_probe(probe)
    parameters = check_integers(
        version=(VERSION, 1, None),
        num_train=(num_train, 1, None),
        num_val=(num_val, 1, None),
        seed=(seed, 0, MAX_SEED),
    )
    parameters['probe'] = probe
    draw = functools.partial(draw_image, probe)
    write_coco(root, probe, parameters, CLASSES, draw)


def draw_probe(rng, probe):
    """Draw an image of a probe: a :class:`Scene`. ``rng`` is a numpy Generator."""
    check_probe(probe)
    scene = PROBES[probe](rng)
    # Mirror half of the images, so that cues lie on either side of the objects.
    if rng.integers(2):
        scene.picture = scene.picture[:, ::-1]
        for instance in scene.instances:
            instance.visible = instance.visible[:, ::-1]
        width = scene.picture.shape[1]
        scene.cues = [(width - x - w, y, w, h) for x, y, w, h in scene.cues]
    return scene


def check_probe(probe):
    """Raise ValueError unless there is a probe of this name."""
    if probe not in PROBES:
        raise ValueError(f'probe must be one of {", ".join(PROBES)}, got {probe!r}')


def draw_image(probe, rng, index):
    """The picture, the objects and the cues of an image, in the form that
    :func:`~prm_mmdet.datasets.generated_coco.write_coco` takes."""
    scene = draw_probe(rng, probe)
    picture = scene.picture + rng.normal(0, 2.5, scene.picture.shape)
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    cues = [list(map(int, cue)) for cue in scene.cues]
    return picture, scene.instances, {'cues': cues}


# ------------------------------------------------------ one function for each probe


def _far_cue(rng):
    """The hue of a marker (a disc far from all objects) shows the class of all
    objects."""
    canvas = _background(rng)
    objects = _add_objects(rng, canvas, (260, WIDTH), [OBJECT_HUE] * _count(rng))
    label = int(rng.integers(2))
    cue = _add_markers(rng, canvas, objects, [CLASS_HUES[label]])
    return Scene(canvas, _instances(objects, repeat(label)), cue)


def _scene(rng):
    """The background has tiles of two tints. The tint of most tiles shows the class of
    all objects. Near the objects, the tints do not depend on the class."""
    canvas = _background(rng)
    rows, columns = HEIGHT // TILE, WIDTH // TILE
    # Choose the left edge of the objects' region first, because the tiles depend on it.
    left = int(rng.integers(290, 310))
    # Number of columns of tiles that are far from the objects.
    far = (left - DISTANCE) // TILE
    local, total = rows * (columns - far), rows * columns
    first = round(rng.uniform(*LOCAL_SHARE) * local)
    near_tiles = rng.permutation(np.arange(local) < first).reshape(rows, -1)
    label = int(rng.integers(2))
    rest = round(SHARES[1 - label] * total) - first
    far_tiles = rng.permutation(np.arange(rows * far) < rest).reshape(rows, -1)
    tints = np.hstack([far_tiles, near_tiles])  # whether a tile has the first tint
    colours = [_colours(rng, hue, tints.shape) for hue in CLASS_HUES]
    tinted = np.where(tints[..., None], *colours)
    tinted = tinted.repeat(TILE, axis=0).repeat(TILE, axis=1)
    canvas = 0.5 * canvas + 0.5 * tinted
    objects = _add_objects(rng, canvas, (left, WIDTH), [OBJECT_HUE] * _count(rng))
    cue = (0, 0, far * TILE, HEIGHT)
    return Scene(canvas, _instances(objects, repeat(label)), [cue])


def _relative_position(rng):
    """An image has a landmark (a disc). Its distance to the objects, smaller or larger,
    shows the class of all objects. The image is wide, so a network that sees only the
    landmark learns little about the class."""
    canvas = _background(rng, WIDE)
    low = rng.uniform(*LEFT_EDGES)
    hues = [OBJECT_HUE] * 2
    objects = _add_objects(rng, canvas, (low, WIDE), hues, low + SPREAD)
    label = int(rng.integers(2))
    nearest = min(box_of(visible)[0] for visible in objects)
    edge = nearest - int(rng.integers(*(NEAR, FAR)[label]))
    polygon = random_polygon(rng, SHAPES.index('circle'), LANDMARK_SIDE, (0, 0))
    polygon = _put(rng, polygon, edge - np.ptp(polygon[:, 0]) - 1)
    covered = _add(rng, canvas, polygon, CLASS_HUES[0]) > 0
    return Scene(canvas, _instances(objects, repeat(label)), [box_of(covered)])


def _which_context(rng):
    """The hue of an object shows its kind, which is one of two. Each kind has a marker
    (a disc far from all objects). The hue of the marker shows the class of all objects
    of this kind."""
    canvas = _background(rng)
    kinds = [0, 1, int(rng.integers(2))][: _count(rng)]
    hues = [KIND_HUES[kind] for kind in kinds]
    objects = _add_objects(rng, canvas, (260, WIDTH), hues)
    labels = rng.integers(2, size=2).tolist()  # random class for each kind of object
    hues = [KIND_CLASS_HUES[kind][label] for kind, label in enumerate(labels)]
    cues = _add_markers(rng, canvas, objects, hues)
    return Scene(canvas, _instances(objects, [labels[k] for k in kinds]), cues)


def _control(rng):
    """An object has one of the two hues of its class. There is also a marker (a disc
    far from all objects). The marker's hue is random, and shows nothing."""
    canvas = _background(rng)
    labels = rng.integers(2, size=_count(rng)).tolist()
    hues = [int(rng.choice(CONTROL_HUES[label])) for label in labels]
    objects = _add_objects(rng, canvas, (260, WIDTH), hues)
    _add_markers(rng, canvas, objects, [int(rng.choice(sum(CONTROL_HUES, ())))])
    return Scene(canvas, _instances(objects, labels), [])


PROBES = {
    'far-cue': _far_cue,
    'scene': _scene,
    'relative-position': _relative_position,
    'which-context': _which_context,
    'control': _control,
}


# ------------------------------------------------- drawing of objects and markers


def _background(rng, width=WIDTH):
    greys = random_colours(rng, (0, 0), (0, 0), (0.4, 0.7), 2)
    return texture(rng, width, *greys)[:HEIGHT]


def _count(rng):
    return int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))


def _colours(rng, hue, shape):
    """Random vivid colours near the hue with the number ``hue``. Returns an array of
    shape ``(*shape, 3)``."""
    degrees = 360 * hue / HUES
    limits = (degrees - 20, degrees + 20), (0.6, 1.0), (0.5, 1.0)
    return random_colours(rng, *limits, math.prod(shape)).reshape(*shape, 3)


def _add_objects(rng, canvas, within, hues, highest=WIDE, attempts=200):
    """Draw an object of each hue in turn. If an object finds no free place, stop.
    Objects lie between the two x-coordinates ``within``. Their left edges are at most
    at the x-coordinate ``highest``. Coordinates are in pixels. Returns the masks of the
    drawn objects in the order of hues."""
    masks = []
    taken = np.zeros(canvas.shape[:2], bool)
    for hue in hues:
        for _ in range(attempts):
            shape = int(rng.integers(len(SHAPES)))
            polygon = random_polygon(rng, shape, rng.uniform(*SIDE), (0, 0))
            width = np.ptp(polygon[:, 0])
            last = min(highest, within[1] - width - MARGIN)
            polygon = _put(rng, polygon, rng.uniform(within[0] + MARGIN, last))
            x, y, w, h = _outline(polygon, MARGIN, canvas)
            if not taken[y : y + h, x : x + w].any():
                break
        else:
            break
        taken[y : y + h, x : x + w] = True
        masks.append(_add(rng, canvas, polygon, hue) >= 0.5)
    return masks


def _add_markers(rng, canvas, objects, hues):
    """Draw a marker (a disc) of each hue. Markers do not overlap, and are at least
    DISTANCE pixels from all objects. Only a marker's colour depends on its hue, so its
    place shows nothing. Returns the boxes of the markers."""
    limit = min(box_of(visible)[0] for visible in objects) - DISTANCE
    boxes = []
    width = limit // len(hues)  # Each disc is placed in its own strip of this width.
    for part, hue in zip(rng.permutation(len(hues)), hues):
        polygon = random_polygon(rng, SHAPES.index('circle'), MARKER_SIDE, (0, 0))
        room = width - np.ptp(polygon[:, 0]) - 2
        polygon = _put(rng, polygon, part * width + rng.uniform(1, room))
        boxes.append(box_of(_add(rng, canvas, polygon, hue) > 0))
    return boxes


def _put(rng, polygon, left):
    """A polygon, moved to a random height in the image. Its left edge is at the
    x-coordinate ``left``."""
    low, high = polygon.min(0), polygon.max(0)
    top = rng.uniform(MARGIN, HEIGHT - MARGIN - (high - low)[1])
    return polygon - low + (left, top)


def _add(rng, canvas, polygon, hue):
    """Paint a polygon onto the canvas. Returns how much of each pixel the polygon
    covers, from 0 to 1."""
    height, width = canvas.shape[:2]
    x, y, w, h = _outline(polygon, 1, canvas)
    size = max(w, h)
    x, y = min(x, width - size), min(y, height - size)
    patch = slice(y, y + size), slice(x, x + size)
    covered = coverage_of(polygon - (x, y), size)
    canvas[patch] = paint(rng, canvas[patch], covered, hue, HUES)
    coverage = np.zeros((height, width))
    coverage[patch] = covered
    return coverage


def _outline(polygon, margin, canvas):
    """The box that has at least ``margin`` pixels around a polygon, cut off at the
    borders of the canvas. Returns x, y, width and height, in whole pixels."""
    low = np.maximum(np.floor(polygon.min(0)).astype(int) - margin, 0)
    high = np.ceil(polygon.max(0)).astype(int) + margin
    high = np.minimum(high, canvas.shape[1::-1])
    return (*low.tolist(), *(high - low).tolist())


def _instances(masks, labels):
    """An ``Instance`` for each drawn object. If some objects found no free place, there
    are fewer masks than labels. Then the last labels are not used."""
    return [Instance(k, False, float(m.sum()), m) for m, k in zip(masks, labels)]
