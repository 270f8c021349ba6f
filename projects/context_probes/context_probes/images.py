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

#: Raise this by one whenever the drawing changes.
VERSION = 4

HEIGHT, WIDTH = 96, 384  # size of the images, in pixels
WIDE = 576  # width of images in the probe relative-position, in pixels
#: Pixels between the box of an object and the nearest pixel that shows its class.
DISTANCE = 195
SIDE = (16, 21)  # square root of an object's area, in pixels
MARKER_SIDE = 14  # square root of a marker's area, in pixels
LANDMARK_SIDE = 18  # square root of the landmark's area, in pixels
OBJECTS = (2, 3)  # smallest and largest number of objects in an image
MARGIN = 2  # pixels between objects, and to the image's border

# Hues are numbered from 0 to 5: red, yellow, green, cyan, blue, magenta.
HUES = 6
OBJECT_HUE = 2
CLASS_HUES = (0, 4)
# Hues of the objects in the probe control, by class. In the other probes, these hues
# are cues of the opposite class. So a network that was trained on control distinguishes
# the hues of cues, but takes each hue for the wrong class.
CONTROL_HUES = ((3, 4), (0, 1))
# For which-context: hues of objects by kind, and hues of markers by kind and class.
KIND_HUES = (2, 5)
KIND_CLASS_HUES = ((0, 4), (1, 3))

# For relative-position: pixels from the landmark to the nearest object, by class.
NEAR, FAR = (DISTANCE, 220), (265, 290)
# Range of the random left edge of the objects' region, in pixels. Each object begins at
# most SPREAD pixels to the right of this edge.
LEFT_EDGES = (320, 530)
SPREAD = 20

# Constants of the probe scene, where each tile has one of two tints.
TILE = 12  # side of a tile, in pixels
LOCAL_SHARE = (0.48, 0.52)  # fraction of tiles near the objects with the first tint
SHARES = (0.41, 0.59)  # fraction of all tiles with the first tint, for classes 1 and 0


@dataclass
class Scene:
    """A drawn image."""

    picture: np.ndarray  # (H, W, 3) floats from 0 to 255, BGR
    instances: list[Instance]
    # Boxes of the cues, as x, y, width, height in pixels. Nothing outside them shows
    # the classes. Empty if objects show their classes.
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
    if rng.integers(2):  # the cue lies to the right as often as to the left
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


# ---------------------------------------------------------------------- probes


def _far_cue(rng):
    """The hue of one far marker shows the class of all objects."""
    canvas = _background(rng)
    objects = _add_objects(rng, canvas, (260, WIDTH), [OBJECT_HUE] * _count(rng))
    label = int(rng.integers(2))
    cue = _add_markers(rng, canvas, objects, [CLASS_HUES[label]])
    return Scene(canvas, _instances(objects, repeat(label)), cue)


def _scene(rng):
    """Most tiles of the image have the tint that shows the class of all objects. Near
    the objects, the tints do not depend on the class."""
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
    """The distance to the landmark, near or far, shows the class of all objects. The
    image is wide, so the landmark's position alone says little about the class."""
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
    """Objects are of two kinds, which their hue shows. Each kind has a marker, and the
    marker's hue shows the class of all objects of this kind."""
    canvas = _background(rng)
    kinds = [0, 1, int(rng.integers(2))][: _count(rng)]
    hues = [KIND_HUES[kind] for kind in kinds]
    objects = _add_objects(rng, canvas, (260, WIDTH), hues)
    labels = rng.integers(2, size=2).tolist()  # class of each kind
    hues = [KIND_CLASS_HUES[kind][label] for kind, label in enumerate(labels)]
    cues = _add_markers(rng, canvas, objects, hues)
    return Scene(canvas, _instances(objects, [labels[k] for k in kinds]), cues)


def _control(rng):
    """An object has one of two hues of its class. The far marker's hue is random."""
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


# --------------------------------------------------------------------- drawing


def _background(rng, width=WIDTH):
    greys = random_colours(rng, (0, 0), (0, 0), (0.4, 0.7), 2)
    return texture(rng, width, *greys)[:HEIGHT]


def _count(rng):
    return int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))


def _colours(rng, hue, shape):
    """Vivid colours of a numbered hue, (*shape, 3)."""
    degrees = 360 * hue / HUES
    limits = (degrees - 20, degrees + 20), (0.6, 1.0), (0.5, 1.0)
    return random_colours(rng, *limits, math.prod(shape)).reshape(*shape, 3)


def _add_objects(rng, canvas, within, hues, highest=WIDE, attempts=200):
    """Draw an object of each hue in turn, and stop if an object finds no free place.
    Objects lie between the two x-coordinates ``within``. Their left edges are at most
    ``highest``. Both are in pixels. Returns the masks of the drawn objects in the order
    of hues."""
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
    """Draw a disc of each hue, apart from each other and at least DISTANCE from the
    objects. Returns their boxes. Only the colour depends on the hue."""
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
    """A polygon, moved to begin at x = ``left``, at a random y inside the image."""
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
    """Box around a polygon: x, y, w, h, whole pixels inside the canvas."""
    low = np.maximum(np.floor(polygon.min(0)).astype(int) - margin, 0)
    high = np.ceil(polygon.max(0)).astype(int) + margin
    high = np.minimum(high, canvas.shape[1::-1])
    return (*low.tolist(), *(high - low).tolist())


def _instances(masks, labels):
    """The objects. There may be more labels than masks: some objects found no place."""
    return [Instance(k, False, float(m.sum()), m) for m, k in zip(masks, labels)]
