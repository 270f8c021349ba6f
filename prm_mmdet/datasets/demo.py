"""Generator of a small COCO-format data set of boxes and masks.

The scenes are drawn, not photographed: shapes of :data:`CLASSES` over textured
backgrounds. A small Mask R-CNN learns them in minutes, so the set serves to try a
configuration out end to end without downloading anything.
"""

import json
import math
import os
from dataclasses import dataclass

import cv2
import numpy as np
from tqdm import tqdm

from .drawing import (
    SHAPES,
    coverage_of,
    paint,
    random_colours,
    random_polygon,
    texture,
)
from .generated import MAX_SEED, check_integers, check_recorded, is_there, write_file

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


@dataclass
class _Instance:
    """One annotation in the making; ``visible`` is a boolean (size, size) mask."""

    label: int
    is_crowd: bool
    full_area: float  # pixels, with what is covered or outside the image
    visible: np.ndarray


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
    counts = {'train': parameters['num_train'], 'val': parameters['num_val']}
    root = os.fspath(root)
    if _is_complete(root, counts, parameters):
        print(f'The demo data set in {root!r} is already complete.')
        return

    contents = {
        split: _write_images(root, split, count, parameters)
        for split, count in counts.items()
    }
    os.makedirs(os.path.join(root, 'annotations'), exist_ok=True)
    for split, content in contents.items():
        text = json.dumps(content, separators=(',', ':')) + '\n'
        write_file(_json_path(root, split), text.encode())


# ----------------------------------------------------------------------- files


def _json_path(root, split):
    return os.path.join(root, 'annotations', f'instances_{split}.json')


def _image_name(index):
    return f'demo_{index + 1:06d}.png'


def _is_complete(root, counts, parameters):
    """Whether all files are there; raises ValueError if others are in their place."""
    complete = True
    for split, count in counts.items():
        path = _json_path(root, split)
        if os.path.exists(path):
            check_recorded(path, root, parameters)
        else:
            complete = False
        names = {_image_name(index) for index in range(count)}
        complete = is_there(os.path.join(root, split), names) and complete
    return complete


def _write_images(root, split, count, parameters):
    """Draw and write the images of a split; returns its COCO annotations."""
    folder = os.path.join(root, split)
    os.makedirs(folder, exist_ok=True)
    size = parameters['image_size']
    images, annotations = [], []
    for index in tqdm(range(count), desc=f'demo {split}', unit='image'):
        stream = (parameters['seed'], ('train', 'val').index(split), index)
        picture, instances = _draw_scene(np.random.default_rng(stream), index, size)
        name, image_id = _image_name(index), index + 1
        write_file(
            os.path.join(folder, name), cv2.imencode('.png', picture)[1].tobytes()
        )
        images.append(
            {'id': image_id, 'file_name': name, 'width': size, 'height': size}
        )
        for instance in instances:
            annotation = {'id': len(annotations) + 1, 'image_id': image_id}
            annotation.update(_describe(instance))
            annotations.append(annotation)
    return {
        'info': {
            'description': f'prm_mmdet demo data set, {split} split',
            'parameters': parameters,
        },
        'licenses': [],
        'categories': [
            {'id': label + 1, 'name': name, 'supercategory': 'shape'}
            for label, name in enumerate(CLASSES)
        ],
        'images': images,
        'annotations': annotations,
    }


# ----------------------------------------------------------------- annotations


def _describe(instance):
    """The fields of a COCO annotation that the visible mask determines."""
    rows, columns = np.nonzero(instance.visible)
    left, top = columns.min(), rows.min()
    width, height = columns.max() + 1 - left, rows.max() + 1 - top
    outline = _run_lengths if instance.is_crowd else _polygons
    return {
        'category_id': instance.label + 1,
        'iscrowd': int(instance.is_crowd),
        'area': float(len(rows)),
        'bbox': [float(value) for value in (left, top, width, height)],
        'segmentation': outline(instance.visible),
    }


def _run_lengths(mask):
    """COCO's uncompressed RLE: column by column, beginning with a run of zeros."""
    flat = np.concatenate([[False], mask.ravel(order='F')])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {'counts': counts.tolist(), 'size': list(mask.shape)}


def _polygons(mask):
    """Polygons along the pixel edges of a mask, as flat [x, y, x, y, ...] lists.

    OpenCV traces pixel centres, half a pixel inside the edge. In a mask enlarged
    twice, however, the two centres next to an edge tell which edge it is: the
    centres 2x - 1 and 2x both lie beside the edge at x. COCO's polygons know no
    holes, so a mask with one is cut in two through the hole.
    """
    double = mask.repeat(2, axis=0).repeat(2, axis=1).astype(np.uint8)
    contours, hierarchy = cv2.findContours(
        double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    polygons = []
    for contour, parent in zip(contours, hierarchy.reshape(-1, 4)[:, 3]):
        points = (contour.reshape(-1, 2) + 1) // 2
        if parent >= 0:
            cut = int(points[:, 0].min() + points[:, 0].max()) // 2
            left, right = mask.copy(), mask.copy()
            left[:, cut:] = False
            right[:, :cut] = False
            return _polygons(left) + _polygons(right)
        moved = (points != np.roll(points, 1, axis=0)).any(axis=1)
        polygons.append(points[moved].astype(float).ravel().tolist())
    return polygons


# --------------------------------------------------------------------- drawing


def _draw_scene(rng, index, size):
    """Draw image ``index`` of a split.

    Returns:
        tuple: The picture, (size, size, 3) uint8 BGR, and a list of _Instance.
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
        shape = _Instance(label, False, side**2, inside)
        behind = [
            _Instance(i.label, i.is_crowd, i.full_area, i.visible & ~inside)
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
    return canvas, _Instance(label, True, float(union.sum()), union)
