"""Generator of a small data set of image classes, in folders like those of ImageNet.

Each image shows one shape of :data:`~prm_mmdet.datasets.drawing.SHAPES` over a textured
background. A class has one shape and its own range of hues. A small network learns the
classes in minutes. A detector for the demo data set of boxes can start from the weights
of this small network.
"""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
from tqdm import tqdm

from ..files.atomic import write_file
from .drawing import coverage_of, paint, random_colours, random_polygon, texture
from .generated import MAX_SEED, check_integers, check_recorded, is_there

#: Raise this by one whenever the drawing changes. A data set of an older version then
#: raises an error.
VERSION = 1

# The side of a shape is the square root of its area. This is the range of sides, as
# fractions of the image size.
SIDE = (0.3, 0.6)
JPEG_QUALITY = 95


def generate_demo_classes(
    root: str | os.PathLike[str],
    num_classes: int = 8,
    num_train: int = 60,
    num_val: int = 20,
    image_size: int = 64,
    seed: int = 0,
) -> None:
    """Write the data set, unless it is complete already.

    The files are ``{train,val}/<wnid>/<wnid>_<number>.JPEG`` with the wnids
    ``n00000000`` and so on. ``classes.json`` records the parameters and is written
    last. An image depends on ``seed``, its split, its class and its number only. Each
    file is written whole or not at all. A second call completes an interrupted run.

    Args:
        root: Folder of the data set. It is created if it is missing.
        num_classes: From 2 to 64. Default: 8.
        num_train: Training images of each class, at least 1. Default: 60.
        num_val: Validation images of each class, at least 1. Default: 20.
        image_size: Side of the square images in pixels, at least 32. Default: 64.
        seed: From 0 to 2**32 - 1. Default: 0.

    Raises:
        ValueError: An argument is out of its range, or ``root`` holds a data set of
            other parameters, or other files.
    """
    parameters = check_integers(
        version=(VERSION, 1, None),
        num_classes=(num_classes, 2, 64),
        num_train=(num_train, 1, None),
        num_val=(num_val, 1, None),
        image_size=(image_size, 32, None),
        seed=(seed, 0, MAX_SEED),
    )
    root = os.fspath(root)
    record = os.path.join(root, 'classes.json')
    wnids = [f'n{label:08d}' for label in range(parameters['num_classes'])]
    folders = {}  # names of the images, by (folder, split, label)
    complete = os.path.exists(record)
    if complete:
        check_recorded(record, root, parameters)
    for split in ('train', 'val'):
        is_there(os.path.join(root, split), set(wnids))
        for label, wnid in enumerate(wnids):
            folder = os.path.join(root, split, wnid)
            names = [f'{wnid}_{i + 1}.JPEG' for i in range(parameters[f'num_{split}'])]
            folders[folder, split, label] = names
            complete = is_there(folder, set(names)) and complete
    if complete:
        print(f'The data set in {root!r} is already complete.')
        return

    total = sum(map(len, folders.values()))
    with tqdm(total=total, desc='demo classes', unit='image') as progress:
        for (folder, split, label), names in folders.items():
            for index, name in enumerate(names):
                stream = (parameters['seed'], split == 'val', label, index)
                picture = _draw(np.random.default_rng(stream), label, parameters)
                quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
                data = cv2.imencode('.jpg', picture, quality)[1].tobytes()
                write_file(os.path.join(folder, name), data)
                progress.update()
    content = {'info': {'parameters': parameters}, 'classes': wnids}
    write_file(record, json.dumps(content) + '\n')


def _draw(rng, label, parameters):
    """A picture of a class, (image_size, image_size, 3) uint8 BGR."""
    size = parameters['image_size']
    colours = random_colours(rng, (0, 360), (0.0, 0.2), (0.3, 0.8), 2)
    canvas = texture(rng, size, *colours)
    side = size * rng.uniform(*SIDE)
    centre = rng.uniform(side / 2, size - side / 2, 2)
    coverage = coverage_of(random_polygon(rng, label, side, centre), size)
    canvas = paint(rng, canvas, coverage, label, parameters['num_classes'])
    grain = rng.normal(0, 2.5, canvas.shape)
    return np.clip(canvas + grain, 0, 255).astype(np.uint8)
