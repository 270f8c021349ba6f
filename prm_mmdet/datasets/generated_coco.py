"""Generated data sets as COCO-format files: images, and instances by what is visible.

Each file appears whole or not at all, the annotation files last, so that a folder
without both of them is not complete, and writing again completes it.
"""

import json
import os
from dataclasses import dataclass

import cv2
import numpy as np
from tqdm import tqdm

from ..files.atomic import write_file
from .generated import check_recorded, is_there


@dataclass
class Instance:
    """One annotation in the making; ``visible`` is a boolean (height, width) mask."""

    label: int
    is_crowd: bool
    full_area: float  # pixels, with what is covered or outside the image
    visible: np.ndarray


def write_coco(root, name, parameters, classes, draw):
    """Write ``annotations/instances_{train,val}.json`` and ``{train,val}/*.png``,
    unless they are there already.

    Args:
        root (str or os.PathLike): Folder of the data set; created if missing.
        name (str): What images' names begin with.
        parameters (dict): All that the images depend on, recorded as JSON; among it
            ``num_train``, ``num_val`` and ``seed``.
        classes (Sequence[str]): Names; ``category_id`` is the position plus one.
        draw (callable): Of a numpy Generator, from :func:`image_rng`, and the position
            in the split: the picture, (H, W, 3) uint8 BGR, a list of
            :class:`Instance`, and what else to record of the image, a dict.

    Raises:
        ValueError: ``root`` holds a data set of other parameters or files that are no
            part of this data set.
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
    os.makedirs(os.path.join(root, 'annotations'), exist_ok=True)
    for split, content in contents.items():
        text = json.dumps(content, separators=(',', ':')) + '\n'
        write_file(_json_path(root, split), text.encode())


def image_rng(seed, split, index):
    """The numpy Generator that the image at an index of a split is drawn with."""
    return np.random.default_rng((seed, ('train', 'val').index(split), index))


def _json_path(root, split):
    return os.path.join(root, 'annotations', f'instances_{split}.json')


def _image_name(name, index):
    return f'{name}_{index + 1:06d}.png'


def _is_complete(root, name, counts, parameters):
    """Whether all files are there; raises ValueError if others are in their place."""
    complete = True
    for split, count in counts.items():
        path = _json_path(root, split)
        if os.path.exists(path):
            check_recorded(path, root, parameters)
        else:
            complete = False
        names = {_image_name(name, index) for index in range(count)}
        complete = is_there(os.path.join(root, split), names) and complete
    return complete


def _write_images(root, name, split, count, parameters, draw):
    """Draw and write the images of a split; returns their COCO annotations."""
    folder = os.path.join(root, split)
    os.makedirs(folder, exist_ok=True)
    images, annotations = [], []
    for index in tqdm(range(count), desc=f'{name} {split}', unit='image'):
        rng = image_rng(parameters['seed'], split, index)
        picture, instances, more = draw(rng, index)
        file_name, image_id = _image_name(name, index), index + 1
        data = cv2.imencode('.png', picture)[1].tobytes()
        write_file(os.path.join(folder, file_name), data)
        height, width = picture.shape[:2]
        size = {'width': width, 'height': height}
        images.append({'id': image_id, 'file_name': file_name, **size, **more})
        for instance in instances:
            annotation = {'id': len(annotations) + 1, 'image_id': image_id}
            annotation.update(_describe(instance))
            annotations.append(annotation)
    return images, annotations


def _describe(instance):
    """The fields of a COCO annotation that the visible mask determines."""
    outline = _run_lengths if instance.is_crowd else _polygons
    return {
        'category_id': instance.label + 1,
        'iscrowd': int(instance.is_crowd),
        'area': float(instance.visible.sum()),
        'bbox': [float(value) for value in box_of(instance.visible)],
        'segmentation': outline(instance.visible),
    }


def box_of(mask):
    """Box of a boolean mask: x, y, width, height in pixels, ints."""
    rows, columns = np.nonzero(mask)
    x, y = int(columns.min()), int(rows.min())
    return x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y


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
