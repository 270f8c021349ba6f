"""Generated data sets as files in COCO's format.

Each file is written whole or not at all, and the annotation files are written last.
Without both annotation files, a folder is incomplete. A second call completes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from ..files.atomic import write_file
from .generated import check_recorded, is_there


@dataclass
class Instance:
    """An object of a drawn image.

    Args:
        label: Number of the class, from 0.
        is_crowd: Whether the object is a group that is annotated as one.
        full_area: Area in pixels, hidden parts included.
        visible: Boolean mask (height, width) of the visible pixels.
    """

    label: int
    is_crowd: bool
    full_area: float
    visible: np.ndarray


Drawing = tuple[np.ndarray, list[Instance], dict[str, Any]]


def write_coco(
    root: str | os.PathLike[str],
    name: str,
    parameters: dict[str, Any],
    classes: Sequence[str],
    draw: Callable[[np.random.Generator, int], Drawing],
) -> None:
    """Write ``annotations/instances_{train,val}.json`` and ``{train,val}/*.png``,
    unless the data set is complete already.

    Args:
        root: Folder of the data set. It is created if it is missing.
        name: Prefix of the images' names.
        parameters: Everything that the images depend on, recorded in the annotation
            files. ``num_train``, ``num_val`` and ``seed`` are required.
        classes: Names of the classes. The ``category_id`` is the position plus one.
        draw: Draws an image, given the Generator of :func:`image_rng` and the position
            in the split. It returns the picture, (H, W, 3) uint8 BGR, the objects, and
            more fields for the image's record.

    Raises:
        ValueError: ``root`` holds a data set of other parameters, or other files.
    """
    counts = {'train': parameters['num_train'], 'val': parameters['num_val']}
    root = os.fspath(root)
    if _is_complete(root, name, counts, parameters):
        print(f'The {name} data set in {root!r} is already complete.')
        return
    contents = {}
    for split, count in counts.items():
        images, annotations = _write_images(root, name, split, count, parameters, draw)
        contents[split] = {
            'info': {
                'description': f'prm_mmdet {name} data set, {split} split',
                'parameters': parameters,
            },
            'licenses': [],
            'categories': [
                {'id': label + 1, 'name': category, 'supercategory': 'shape'}
                for label, category in enumerate(classes)
            ],
            'images': images,
            'annotations': annotations,
        }
    for split, content in contents.items():
        text = json.dumps(content, separators=(',', ':')) + '\n'
        write_file(_json_path(root, split), text)


def image_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The numpy Generator for the image at a position of a split."""
    return np.random.default_rng((seed, ('train', 'val').index(split), index))


def _json_path(root, split):
    return os.path.join(root, 'annotations', f'instances_{split}.json')


def _image_name(name, index):
    return f'{name}_{index + 1:06d}.png'


def _is_complete(root, name, counts, parameters):
    """Whether the folder has all files. Raises ValueError if it has other files."""
    complete = True
    for split, count in counts.items():
        path = _json_path(root, split)
        if os.path.exists(path):
            check_recorded(path, root, parameters)
        names = {_image_name(name, index) for index in range(count)}
        there = is_there(os.path.join(root, split), names)
        complete = there and os.path.exists(path) and complete
    return complete


def _write_images(root, name, split, count, parameters, draw):
    """Draw and write the images of a split, and return their COCO records."""
    images, annotations = [], []
    for index in tqdm(range(count), desc=f'{name} {split}', unit='image'):
        rng = image_rng(parameters['seed'], split, index)
        picture, instances, more = draw(rng, index)
        file_name, image_id = _image_name(name, index), index + 1
        data = cv2.imencode('.png', picture)[1].tobytes()
        write_file(os.path.join(root, split, file_name), data)
        height, width = picture.shape[:2]
        size = {'width': width, 'height': height}
        images.append({'id': image_id, 'file_name': file_name, **size, **more})
        for instance in instances:
            ids = {'id': len(annotations) + 1, 'image_id': image_id}
            annotations.append({**ids, **_describe(instance)})
    return images, annotations


def _describe(instance):
    """The fields of an object's COCO annotation, without its ids."""
    outline = _run_lengths if instance.is_crowd else _polygons
    return {
        'category_id': instance.label + 1,
        'iscrowd': int(instance.is_crowd),
        'area': float(instance.visible.sum()),
        'bbox': [float(value) for value in box_of(instance.visible)],
        'segmentation': outline(instance.visible),
    }


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Box of a boolean mask: x, y, width and height in pixels."""
    rows, columns = np.nonzero(mask)
    x, y = int(columns.min()), int(rows.min())
    return x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y


def _run_lengths(mask):
    """COCO's uncompressed RLE of a mask. Its ``counts`` are the lengths of runs of
    equal pixels, column by column. The first length counts pixels outside of the mask,
    and can be 0."""
    flat = np.concatenate([[False], mask.ravel(order='F')])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {'counts': counts.tolist(), 'size': list(mask.shape)}


def _polygons(mask):
    """Polygons along the pixel edges of a mask, as flat [x, y, x, y, ...] lists.

    OpenCV returns the centres of the border pixels, not the edges. Therefore the mask
    is first enlarged to twice its size. If the mask has an edge at x, the two pixels
    beside this edge in the enlarged mask have the centres 2x - 1 and 2x. For both
    centres, (centre + 1) // 2 is x.

    COCO's polygons have no holes. So a mask with a hole is cut in two through the hole.
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
