"""The config of a row's smoke run: everything that the row does, on less."""

import functools
import json
import os
from pathlib import Path

from mmengine.config import Config

from ..config import config_path
from ..pretraining.imagenet import find_classes


def write_smoke_config(config, folder, ranks):
    """Write the config of a row's smoke run: the row's own, with less of everything.

    Args:
        config (str): Path below ``configs/``.
        folder (Path): Where to; the config bears the row's name.
        ranks (int): Processes that will run it.
    """
    base = config_path(config)
    cfg = Config.fromfile(base).to_dict()
    # PyTorch's own initial weights: in MMDetection's, ResNeXt's numbers overflow.
    backbone = dict(init_cfg=[])
    if cfg['model']['backbone']['type'] == 'prm_mmdet.Plugged':
        backbone = dict(model=backbone)
    model = dict(backbone=backbone)
    for name in ('train_cfg', 'test_cfg'):  # a detector's
        if name in cfg['model']:
            model[name] = _few(cfg['model'][name])
    settings = dict(
        _base_=base,
        model=model,
        train_cfg=dict(max_epochs=1),
        default_hooks=dict(logger=dict(interval=1)),
    )
    # Two iterations of two images a rank, or four of one.
    for phase, images in (('train', 4 * ranks), ('val', 2), ('test', 2)):
        loader = settings[f'{phase}_dataloader'] = {}
        row = cfg[f'{phase}_dataloader']
        data = row['dataset']
        loader['dataset'] = dict(pipeline=[_small_step(s) for s in data['pipeline']])
        if 'ann_file' not in data:  # folders of images
            loader['batch_size'] = min(2, row['batch_size'])
            loader['dataset']['indices'] = images
            classes = os.path.join(data['data_root'], 'train')
            if os.path.isdir(classes):  # else train.py tells what is missing
                model['num_classes'] = len(find_classes(classes))
            continue
        annotations = os.path.join(data['data_root'], data['ann_file'])
        subset = _write_subset(annotations, images, folder)
        loader['dataset']['ann_file'] = subset
        if phase != 'train':
            settings[f'{phase}_evaluator'] = dict(ann_file=subset)
    text = ''.join(f'{name} = {value!r}\n' for name, value in settings.items())
    (folder / f'{Path(config).stem}.py').write_text(text, encoding='utf-8')


@functools.lru_cache
def _write_subset(annotations, images, folder):
    """A COCO file's first few images that have objects: the path of their own file.

    Reading the annotations of all of COCO would take each row a minute.
    """
    coco = json.loads(Path(annotations).read_text(encoding='utf-8'))
    full = {a['image_id'] for a in coco['annotations'] if not a.get('iscrowd')}
    coco['images'] = [i for i in coco['images'] if i['id'] in full][:images]
    kept = {i['id'] for i in coco['images']}
    coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] in kept]
    path = Path(folder, Path(annotations).name).absolute()
    partial = path.with_suffix(f'.{os.getpid()}')
    partial.write_text(json.dumps(coco), encoding='utf-8')
    partial.replace(path)  # another process may be reading it
    return str(path)


def _few(settings):
    """A detector's train_cfg or test_cfg with few proposals and no threshold: untrained
    scores are low, and MMDetection evaluates nothing where there is nothing."""
    if isinstance(settings, list):
        return [_few(s) for s in settings]
    if not isinstance(settings, dict):
        return settings
    few = dict(max_per_img=20, num=32, score_thr=0.0)
    return {key: few.get(key, _few(value)) for key, value in settings.items()}


def _small_step(step):
    """A transform whose sizes are made small."""
    sizes = ('scale', 'size', 'short_edge', 'crop_size')
    return {k: _small(v) if k in sizes else v for k, v in step.items()}


def _small(size):
    """A size in pixels, or a list of them: 1333 becomes 160, and 224 becomes 27."""
    if isinstance(size, (list, tuple)):
        return type(size)(map(_small, size))
    return round(0.12 * size)
