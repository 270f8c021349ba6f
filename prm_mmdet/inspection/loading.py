"""A model with its weights, and the images to look at."""

import os

import cv2
import mmcv
import torch
from mmcv.transforms import Compose
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import get_test_pipeline_cfg, register_all_modules
from mmengine.model import revert_sync_batchnorm

from ..files.checkpoints import compare_keys, read_state_dict
from .prediction_figures import spread

_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def load_model(cfg, checkpoint=None, device='cpu'):
    """Build a config's model for inference.

    Args:
        cfg (Config): A whole config of a detector.
        checkpoint (str, optional): File with its weights. Default: None, random ones,
            the same at every call.
        device (str): Where to. Default: 'cpu'.

    Raises:
        OSError: The checkpoint cannot be opened.
        ValueError: It is damaged, or holds weights of another model, or the config has
            no model.
    """
    if 'model' not in cfg:
        raise ValueError('the config has no model')
    register_all_modules()
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    if checkpoint is not None:
        _load(model, read_state_dict(checkpoint), checkpoint)
    return model.to(device).eval()


def _load(model, state, checkpoint):
    problems = compare_keys(state, model.state_dict())
    if problems:
        raise ValueError(
            f'{checkpoint} holds the weights of another model than the config builds: '
            f'{problems}; give the config that it was trained with'
        )
    model.load_state_dict(state, strict=False)  # num_batches_tracked may be missing


class Images:
    """Images, as files or of a data set, in the order in which they are to be looked
    at: those to be drawn come first.

    Args:
        cfg (Config): A whole config; its test pipeline prepares files.
        paths (Sequence[str], optional): Image files, and folders of them.
        split (str, optional): 'val' or 'test', to look at that data set instead.
        num (int, optional): Look at so many, evenly spaced. Default: None, all.
        drawn (int): Draw so many of them, evenly spaced. Default: 3.

    Raises:
        ValueError: There are no images, or no such data set.
    """

    def __init__(self, cfg, paths=None, split=None, num=None, drawn=3):
        register_all_modules()
        self.dataset = None
        if split is None:
            self._sources = _files(paths)
            if not cfg.get('test_dataloader'):
                raise ValueError(
                    'the config has no test_dataloader, whose pipeline prepares images'
                )
            self._pipeline = Compose(get_test_pipeline_cfg(cfg))
            config = cfg.test_dataloader.dataset
            metainfo = DATASETS.build(dict(config, lazy_init=True)).metainfo
        else:
            loader = cfg.get(f'{split}_dataloader')
            if not loader:
                raise ValueError(f'the config has no {split}_dataloader')
            self.dataset = DATASETS.build(loader.dataset)
            self._sources = list(range(len(self.dataset)))
            metainfo = self.dataset.metainfo
        if not self._sources:
            where = ', '.join(map(str, paths)) if split is None else f'the {split} set'
            raise ValueError(f'there are no images in {where}')
        self.classes = metainfo['classes']
        picks = spread(len(self._sources), num or len(self._sources))
        first = [picks[i] for i in spread(len(picks), drawn)]
        self._order = first + [i for i in picks if i not in first]
        self.drawn = len(first)

    def __len__(self):
        return len(self._order)

    def data(self, index):
        """What ``test_step`` takes, of one image."""
        source = self._sources[self._order[index]]
        self.pixels(index)  # refuses what is no image
        if self.dataset is not None:
            data = self.dataset[source]
        else:
            data = self._pipeline(dict(img_path=source, img_id=index))
        return {key: [value] for key, value in data.items()}

    def info(self, index):
        """The data set's record of an image, or None for a file."""
        if self.dataset is None:
            return None
        return self.dataset.get_data_info(self._sources[self._order[index]])

    def path(self, index):
        info = self.info(index)
        return self._sources[self._order[index]] if info is None else info['img_path']

    def pixels(self, index):
        """The original image, RGB, (H, W, 3).

        Raises:
            ValueError: The file is no image.
        """
        try:
            image = mmcv.imread(self.path(index))
        except cv2.error:  # of an empty file
            image = None
        if image is None:
            raise ValueError(f'{self.path(index)} cannot be read as an image')
        return image[..., ::-1]


def _files(paths):
    files = []
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(os.listdir(path))
            inside = [name for name in inside if name.lower().endswith(_SUFFIXES)]
            files += [os.path.join(path, name) for name in inside]
        elif os.path.exists(path):
            files.append(path)
        else:
            raise ValueError(f'there is no image {path}')
    return files
