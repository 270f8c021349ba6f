"""What loading ImageNet's images costs one core: a whole pipeline, and step by step."""

import os
import time

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.fileio import get
from mmengine.registry import TRANSFORMS
from tqdm import tqdm

from ..config import config_path
from ..pretraining.imagenet import EXTENSIONS
from ..pretraining.transforms import LoadImage, decode, read_shape
from .measure import Spread, interleave

#: Those of ImageNet's training images have 108 kB on average: 138 GB, 1.28 million.
SIZE = (375, 500)
TRAINING, VALIDATION = 'training pipeline', 'validation pipeline'
_BATCH = 32  # images, as a worker of the configs puts together


def write_photos(folder, count, size=SIZE, seed=0):
    """Write JPEGs that cost about as much as photographs of their size: noise of all
    frequencies, falling as in natural images.

    Args:
        folder (str): Where to; must exist.
        count (int): How many.
        size (tuple[int]): Height and width in pixels. Default: (375, 500).
        seed (int): Default: 0.

    Returns:
        list[str]: Their paths.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    paths = []
    for i in range(count):
        picture = np.full((height, width, 3), 120.0)
        for cell in (1, 2, 4, 8, 16, 32, 64, 128):
            grid = rng.normal(size=(-(-height // cell), -(-width // cell), 3))
            grid += rng.normal(size=(*grid.shape[:2], 1))  # channels go together
            grid = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
            picture += 4.5 * cell**0.4 * grid
        paths.append(os.path.join(folder, f'{i}.jpg'))
        cv2.imwrite(paths[-1], picture.clip(0, 255).astype(np.uint8))
    return paths


def find_images(folder, count):
    """The first images below a folder, in the order of their paths.

    Raises:
        ValueError: There are none.
    """
    found = [
        os.path.join(parent, name)
        for parent, _, names in sorted(os.walk(folder))
        for name in sorted(names)
        if name.lower().endswith(EXTENSIONS)
    ]
    if not found:
        raise ValueError(f'there are no images in {folder}')
    return found[:count]


def measure(paths, rounds):
    """Time the pipelines of the ImageNet configs and the training one's steps on one
    core.

    Args:
        paths (Sequence[str]): Images.
        rounds (int): Timings of each.

    Returns:
        dict: Names of pipelines and steps to Spreads of seconds of the core an image.
        Waiting for a disk is not among them.

    Raises:
        ValueError: Images that cannot be read; the message names the first.
    """
    load = LoadImage()
    damaged = [path for path in paths if load(dict(img_path=path)) is None]
    if damaged:
        raise ValueError(
            f'{len(damaged)} of {len(paths)} images cannot be read, such as '
            f'{damaged[0]}: remove them, or name another folder'
        )
    # As in the loaders' workers.
    opencv_threads, torch_threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        functions = {**_pipelines(paths), **_steps(paths)}
        with tqdm(total=rounds, desc='data', unit='round', leave=False) as bar:
            # The process's own time: what else runs on the machine does not count.
            clock = time.process_time
            cpu = torch.device('cpu')
            times = interleave(functions, cpu, rounds, bar.update, clock)
    finally:
        cv2.setNumThreads(opencv_threads)
        torch.set_num_threads(torch_threads)
    return {k: Spread.of([t / len(paths) for t in v]) for k, v in times.items()}


def _pipelines(paths):
    cfg = Config.fromfile(config_path('_base_/datasets/imagenet.py'))

    def runs(pipeline):
        pipeline = Compose(pipeline)

        def run():
            for start in range(0, len(paths), _BATCH):
                batch = [
                    pipeline(dict(img_path=path, gt_label=0))
                    for path in paths[start : start + _BATCH]
                ]
                default_collate(batch)

        return run

    return {TRAINING: runs(cfg.train_pipeline), VALIDATION: runs(cfg.test_pipeline)}


def _steps(paths):
    """The steps of the training pipeline, each on what the ones before it returned."""
    cfg = Config.fromfile(config_path('_base_/datasets/imagenet.py'))
    load, flip, pack = map(TRANSFORMS.build, cfg.train_pipeline)
    files = [get(path) for path in paths]
    shapes = [read_shape(data) for data in files]
    parts = [load.draw(*shape) for shape in shapes]
    images = [decode(data, load.reduction(p)) for data, p in zip(files, parts)]
    cuts = [load.cut(*args) for args in zip(images, shapes, parts)]
    packed = [pack(dict(img=image, gt_label=0)) for image in cuts]
    return {
        'read': lambda: [get(path) for path in paths],
        'size and orientation': lambda: [read_shape(data) for data in files],
        'decode': lambda: [
            decode(data, load.reduction(part)) for data, part in zip(files, parts)
        ],
        'crop and resize': lambda: [
            load.cut(*args) for args in zip(images, shapes, parts)
        ],
        'flip': lambda: [
            flip(dict(img=image, img_shape=image.shape[:2])) for image in cuts
        ],
        'to tensor': lambda: [pack(dict(img=image, gt_label=0)) for image in cuts],
        'collate': lambda: [
            default_collate(packed[i : i + _BATCH])
            for i in range(0, len(packed), _BATCH)
        ],
    }


def table(spreads):
    """Text of what :func:`measure` returned."""
    lines = []
    for name in (TRAINING, VALIDATION):
        rate = [1 / t for t in (spreads[name].median, spreads[name].high)]
        rate.append(1 / spreads[name].low)
        lines.append(
            f'{name}: {rate[0]:.0f} images/s a core ({rate[1]:.0f}-{rate[2]:.0f})'
        )
    steps = {k: v.median for k, v in spreads.items() if k not in (TRAINING, VALIDATION)}
    total = sum(steps.values())
    lines.append('steps of the training pipeline, ms an image, and their share:')
    for name, seconds in steps.items():
        lines.append(f'  {name:<21}{1e3 * seconds:7.3f}  {seconds / total:4.0%}')
    lines.append(
        'cores that a GPU needs = images/s that it trains / '
        f'{1 / spreads[TRAINING].median:.0f}'
    )
    return '\n'.join(lines) + '\n'
