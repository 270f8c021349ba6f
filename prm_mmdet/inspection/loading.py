"""Load a model with its weights, and the images that the figures show."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import get_test_pipeline_cfg, register_all_modules
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from torch import nn

from ..files.checkpoints import compare_keys, read_state_dict
from ..pretraining.imagenet import NO_LABEL
from .prediction_figures import spread

_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def load_model(
    cfg: Config, checkpoint: str | None = None, device: str = 'cpu'
) -> nn.Module:
    """Build a config's model for inference.

    Args:
        cfg: A complete config of a detector or a classifier.
        checkpoint: File with the model's weights. Default: None, random weights from
            a fixed seed.
        device: Device of the model. Default: 'cpu'.

    Raises:
        OSError: The checkpoint cannot be opened.
        ValueError: The checkpoint is damaged or has weights of another model, or the
            config's model cannot be built.
    """
    if 'model' not in cfg:
        raise ValueError(f'the config {cfg.filename} has no model')
    register_all_modules()
    torch.manual_seed(0)
    with reported(f'the model of {cfg.filename} cannot be built'):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
    if checkpoint is not None:
        state = read_state_dict(checkpoint)
        problems = compare_keys(state, model.state_dict())
        if problems:
            raise ValueError(
                f'{checkpoint} does not fit the model of the config: {problems}. Use '
                'the config that the checkpoint was trained with'
            )
        # Old checkpoints lack num_batches_tracked, a counter of batch normalisation, so
        # strict loading would fail.
        model.load_state_dict(state, strict=False)
    return model.to(device).eval()


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """In a ``with`` block, turn any error into a ValueError.

    The message is one line that begins with ``what``. MMEngine, MMCV and OpenCV raise
    many types of errors, which do not name the file.
    """
    try:
        yield
    except Exception as error:
        reason = ' '.join(str(error).split()) or 'no reason given'
        raise ValueError(f'{what}: {type(error).__name__}: {reason}') from error


class Images:
    """Images from files or from a data set. The images to be drawn come first.

    Args:
        cfg: A complete config. Its test pipeline prepares the images in ``paths``.
        paths: Image files, and folders of image files.
        split: 'val' or 'test'. If it is given, the images come from this data set of
            the config, and ``paths`` is ignored. Default: None.
        num: Number of images to use, evenly spaced over all images. Default: None, all.
        drawn: How many of the used images the figures show, evenly spaced. Default: 3.

    Raises:
        ValueError: There are no images, or the config does not have the data set.
    """

    def __init__(
        self,
        cfg: Config,
        paths: Sequence[str] = (),
        split: str | None = None,
        num: int | None = None,
        drawn: int = 3,
    ) -> None:
        register_all_modules()
        self.dataset = None
        name = split or 'test'
        loader = cfg.get(f'{name}_dataloader')
        if not loader:
            raise ValueError(f'the config {cfg.filename} has no {name}_dataloader')
        self._sources = [] if split else _files(paths)
        with reported(f'the {name} set of {cfg.filename} cannot be read'):
            if split is None:
                self._pipeline = Compose(get_test_pipeline_cfg(cfg))
                dataset = DATASETS.build(dict(loader.dataset, lazy_init=True))
            else:
                dataset = self.dataset = DATASETS.build(loader.dataset)
                self._sources = list(range(len(dataset)))
        if not self._sources:
            where = ', '.join(map(str, paths)) if split is None else f'the {split} set'
            raise ValueError(f'there are no images in {where}')
        # A data set may read class names from its folder. If the folder is missing, the
        # classes are named by their numbers.
        numbers = range(cfg.model.get('num_classes', 0))
        named = dataset.metainfo.get('classes')
        self.classes = named or [f'class {i}' for i in numbers]
        picks = spread(len(self._sources), num or len(self._sources))
        first = [picks[i] for i in spread(len(picks), drawn)]
        self._order = first + [i for i in picks if i not in first]
        self.drawn = len(first)

    def __len__(self) -> int:
        return len(self._order)

    def data(self, index: int) -> dict:
        """The input of ``test_step`` for one image."""
        source = self._sources[self._order[index]]
        # If the file is not an image, this line raises an error that says what to do.
        self.pixels(index)
        with reported(f'the test pipeline fails on {self.path(index)}'):
            if self.dataset is not None:
                data = self.dataset[source]
            else:
                info = dict(img_path=source, img_id=index, gt_label=NO_LABEL)
                data = self._pipeline(info)
            return {
                key: torch.tensor([v]) if isinstance(v, int) else [v]
                for key, v in data.items()
            }

    def info(self, index: int) -> dict | None:
        """What the data set's ``get_data_info`` returns for an image. None if the
        images come from ``paths``."""
        if self.dataset is None:
            return None
        return self.dataset.get_data_info(self._sources[self._order[index]])

    def path(self, index: int) -> str:
        """The file of an image, found in ``paths`` or named by the data set."""
        info = self.info(index)
        return self._sources[self._order[index]] if info is None else info['img_path']

    def pixels(self, index: int) -> np.ndarray:
        """The original image, RGB, (H, W, 3).

        Raises:
            ValueError: The file is not an image.
        """
        try:
            image = mmcv.imread(self.path(index))
        except cv2.error:  # OpenCV raises cv2.error if the file is empty.
            image = None
        if image is None:
            raise ValueError(
                f'{self.path(index)} cannot be read as an image: remove or replace it'
            )
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
