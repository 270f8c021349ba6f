"""Configs of smoke runs: short trials of the trainings in the papers' tables."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..config import config_path
from ..files.atomic import write_file
from ..pretraining.imagenet import find_classes


def write_smoke_config(config: str, folder: Path, ranks: int) -> None:
    """Write a config for a short trial (smoke run) of a training in a paper's table.

    The trial uses few and small images. If a detector needs a backbone that was
    pre-trained with a block, it loads the weights from ``folder``, where the smoke run
    of that pre-training has written them.

    Args:
        config: Config of the training, as a path below ``configs/``.
        folder: Folder of the smoke runs. The new config is written into it, with the
            file name of ``config``.
        ranks: Number of processes of the smoke run.
    """
    base = config_path(config)
    cfg = Config.fromfile(base).to_dict()
    backbone = cfg['model']['backbone']
    checkpoint = (backbone.get('init_cfg') or {}).get('checkpoint', '')
    # Smoke runs do not load public weights. With MMDetection's initial weights, numbers
    # in ResNeXt overflow. ``init_cfg=[]`` leaves PyTorch's own initial weights.
    start: dict = dict(init_cfg=[])
    if checkpoint.startswith('checkpoints/'):
        start = dict(init_cfg=dict(checkpoint=str(folder / checkpoint)))
    elif backbone['type'] == 'prm_mmdet.Plugged':
        start = dict(model=start)
    elif config.startswith('imagenet/') and 'depth' in backbone:
        # A detector may start from this classifier. After only two steps, the running
        # statistics of batch norm are so wrong that numbers may overflow in the
        # detector. Residual branches that start at zero keep numbers finite.
        start = dict(zero_init_residual=True)
    model: dict = dict(backbone=start)
    # A detector gets settings for few proposals. The model of a classifier has no such
    # settings.
    for name in ('train_cfg', 'test_cfg'):
        if name in cfg['model']:
            model[name] = _few(cfg['model'][name])
    settings = dict(
        _base_=base,
        model=model,
        train_cfg=dict(max_epochs=1),
        default_hooks=dict(logger=dict(interval=1)),
    )
    # Each rank (process) trains on four images, in two batches of two or four batches
    # of one.
    for phase, images in (('train', 4 * ranks), ('val', 2), ('test', 2)):
        loader: dict[str, Any] = {}
        settings[f'{phase}_dataloader'] = loader
        row = cfg[f'{phase}_dataloader']
        data = row['dataset']
        loader['dataset'] = dict(pipeline=[_small_step(s) for s in data['pipeline']])
        if 'ann_file' not in data:  # folders of images, as in ImageNet
            loader['batch_size'] = min(2, row['batch_size'])
            loader['dataset']['indices'] = images
            classes = os.path.join(data['data_root'], 'train')
            # Without the folder, classes cannot be counted. train.py then reports that
            # the folder is missing.
            if os.path.isdir(classes):
                model['num_classes'] = len(find_classes(classes))
            continue
        annotations = os.path.join(data['data_root'], data['ann_file'])
        subset = _write_subset(annotations, images, folder)
        loader['dataset']['ann_file'] = subset
        if phase != 'train':
            settings[f'{phase}_evaluator'] = dict(ann_file=subset)
    text = ''.join(f'{name} = {value!r}\n' for name, value in settings.items())
    write_file(folder / f'{Path(config).stem}.py', text)


@functools.lru_cache
def _write_subset(annotations: str, images: int, folder: Path) -> str:
    """Write a COCO file with the first images that have objects, and return its path.

    Reading all annotations of COCO would take a minute in each run.
    """
    coco = json.loads(Path(annotations).read_text(encoding='utf-8'))
    full = {a['image_id'] for a in coco['annotations'] if not a.get('iscrowd')}
    coco['images'] = [i for i in coco['images'] if i['id'] in full][:images]
    kept = {i['id'] for i in coco['images']}
    coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] in kept]
    path = Path(folder, Path(annotations).name).absolute()
    write_file(path, json.dumps(coco))
    return str(path)


def _few(settings: object) -> object:
    """A detector's train_cfg or test_cfg with few proposals and no score threshold.

    Untrained detectors have low scores, and without detections there is no AP.
    """
    if isinstance(settings, list):
        return [_few(s) for s in settings]
    if not isinstance(settings, dict):
        return settings
    few = dict(max_per_img=20, num=32, score_thr=0.0)
    return {key: few.get(key, _few(value)) for key, value in settings.items()}


def _small_step(step: dict) -> dict:
    """A transform of a pipeline, with its image sizes made small."""
    sizes = ('scale', 'size', 'short_edge', 'crop_size')
    return {k: _small(v) if k in sizes else v for k, v in step.items()}


def _small(size: int | list | tuple) -> int | list | tuple:
    """A size in pixels times 0.12, rounded: 1333 becomes 160. If ``size`` is a list or
    a tuple, each of its numbers becomes smaller."""
    if isinstance(size, (list, tuple)):
        return type(size)(map(_small, size))
    return round(0.12 * size)
