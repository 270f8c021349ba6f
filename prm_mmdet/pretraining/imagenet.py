"""ImageNet, or other images with a folder for each class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mmengine.dist
import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..registry import DATASETS, HOOKS
from .label_file import read_labels

EXTENSIONS = ('.jpeg', '.jpg', '.png', '.bmp', '.webp')
#: In evaluation, the label of an image that cannot be read. Accuracy ignores the image.
NO_LABEL = -1


@DATASETS.register_module()
class ImageNet(BaseDataset):
    """Images in one folder for each class, or in one folder with a file of labels.

    A class has the name of its folder. In ImageNet, this is a wnid (WordNet's ID, such
    as n01440764). The label of a class is the index of its name in the sorted names. To
    give all splits the same labels, the names are read from the folder of the training
    images.

    If an image cannot be read in training, another image and the label of the other
    image are used. In evaluation, the label of the unreadable image becomes -1, which
    :class:`prm_mmdet.Accuracy` ignores.
    :class:`ReportUnreadableImages` reports how many images could not be read.

    Args:
        data_root (str): Folder of the data set.
        data_prefix (dict): ``img_path``: folder of the images, below ``data_root``.
        ann_file (str): File of labels below ``data_root``, if all images are in one
            folder: see :func:`.label_file.read_labels`. Default: '', folders name the
            classes.
        classes_from: Folder below ``data_root`` whose folders name the classes. If
            ``classes_from`` is missing, the folder of the images is used. To name the
            classes yourself, set ``metainfo=dict(classes=...)``. Default: 'train'.
        kwargs: Further arguments of MMEngine's BaseDataset.

    Raises:
        FileNotFoundError: The folder does not exist, or has no images.
        ValueError: An image has no known class, or a class has no training image.
    """

    def __init__(self, classes_from: str = 'train', **kwargs: Any):
        self.classes_from = classes_from
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        folder = self.data_prefix['img_path']
        if not os.path.isdir(folder):
            raise FileNotFoundError(f'there is no folder of images {folder!r}')
        home = os.path.join(self.data_root, self.classes_from)
        if 'classes' not in self._metainfo:
            names = find_classes(home if os.path.isdir(home) else folder)
            if not names:
                raise ValueError(self._flat(folder))
            self._metainfo['classes'] = tuple(names)
        classes = self._metainfo['classes']
        if self.ann_file:
            return self._listed(folder, classes)
        images = self._in_folders(folder, classes)
        empty = set(range(len(classes))) - {i['gt_label'] for i in images}
        if empty and not self.test_mode:
            raise ValueError(
                f'{folder} has no images of {len(empty)} of its {len(classes)} '
                f'classes, such as {classes[min(empty)]}: unpack them, or remove the '
                'empty folders'
            )
        return images

    def full_init(self) -> None:
        super().full_init()
        # Workers mark the images that they cannot read, and the main process reads the
        # marks. So the marks are in shared memory.
        self.unreadable = torch.zeros(len(self), dtype=torch.uint8).share_memory_()

    def prepare_data(self, idx: int) -> dict | None:
        data = super().prepare_data(idx)
        if data is not None:
            return data
        self.unreadable[idx] = 1
        if not self.test_mode:
            return None  # tells BaseDataset to draw another image
        for other in range(idx + 1, idx + len(self)):
            data = super().prepare_data(other % len(self))
            if data is not None:
                return dict(data, data_samples=NO_LABEL)
        raise FileNotFoundError(
            f'none of the {len(self)} images in {self.data_prefix["img_path"]} can be '
            'read'
        )

    def _in_folders(self, folder, classes):
        names = find_classes(folder)
        if unknown := sorted(set(names) - set(classes)):
            raise ValueError(
                f'{folder} has {len(unknown)} folder(s) that name no class, such as '
                f'{unknown[0]!r}. The {len(classes)} classes ({classes[0]}, ..., '
                f'{classes[-1]}) come from metainfo.classes or from the folders of '
                f'{os.path.join(self.data_root, self.classes_from)}'
            )
        labels = {name: i for i, name in enumerate(classes)}
        images = [
            dict(img_path=os.path.join(folder, name, image), gt_label=labels[name])
            for name in names
            for image in _images(os.path.join(folder, name))
        ]
        if not images:
            raise FileNotFoundError(self._flat(folder))
        return images

    def _listed(self, folder, classes):
        labels = read_labels(self.ann_file, classes)
        present = _images(folder)
        # In a label file, names of images are with or without their extension.
        stems = {name: Path(name).stem for name in present}
        found = {n: labels.get(n, labels.get(stems[n])) for n in present}
        for name, stem in stems.items():
            if labels.get(stem, found[name]) != found[name]:
                raise ValueError(
                    f'{self.ann_file} names {name!r} and {stem!r}, the same image, '
                    f'with two classes, {classes[found[name]]} and '
                    f'{classes[labels[stem]]}: remove the wrong one'
                )
        unlabelled = [name for name, label in found.items() if label is None]
        missing = sorted(set(labels) - set(present) - set(stems.values()))
        for names, what in (
            (unlabelled, f'image(s) in {folder} are not in {self.ann_file}'),
            (missing, f'image(s) in {self.ann_file} are not in {folder}'),
        ):
            if names:
                raise ValueError(
                    f'{len(names)} {what}, such as {names[0]!r}: both must have the '
                    'same images'
                )
        return [
            dict(img_path=os.path.join(folder, name), gt_label=label)
            for name, label in found.items()
        ]

    def _flat(self, folder):
        count = len(_images(folder))
        if not count:
            return f'{folder} has no folders with images'
        return (
            f'{folder} has {count} images, but no folders of classes. Set ann_file to '
            'a file of labels, such as LOC_val_solution.csv, or a file with lines '
            '"image wnid"'
        )


@HOOKS.register_module()
class ReportUnreadableImages(Hook):
    """Warn at the end of each epoch about images that could not be read so far.

    The hook works for a data set, such as :class:`ImageNet`, whose ``unreadable`` has
    one number for each image. The number is not 0 if the image could not be read. If
    the warning stays the same, MMEngine's logger does not repeat it.
    """

    def _after_epoch(self, runner: Runner, mode: str = 'train') -> None:
        dataset = getattr(runner, f'{mode}_dataloader').dataset
        phase = dict(train='training', val='validation', test='test')[mode]
        if not hasattr(dataset, 'unreadable'):
            return
        marks = dataset.unreadable.clone()
        mmengine.dist.all_reduce(marks, op='max')
        found = marks.nonzero().flatten().tolist()
        if found:
            names = [dataset.get_data_info(i)['img_path'] for i in found[:3]]
            more = ', ...' if len(found) > len(names) else ''
            runner.logger.warning(
                f'{len(found)} of the {len(dataset)} {phase} images could not be read '
                f'and were skipped: {", ".join(names)}{more}'
            )


@HOOKS.register_module()
class CheckNumClasses(Hook):
    """Check before training that the classifier has as many classes as its data.

    MMDetection's NumClassCheckHook checks this, too. But its message does not say what
    to change.

    Raises:
        ValueError: The numbers of classes differ.
    """

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        classes = runner.train_dataloader.dataset.metainfo['classes']
        if model.num_classes != len(classes):
            raise ValueError(
                f'the model has {model.num_classes} classes, the training images '
                f'{len(classes)} ({classes[0]}, ..., {classes[-1]}): set '
                f'--cfg-options model.num_classes={len(classes)}, or look for folders '
                'that are missing'
            )


def find_classes(folder: str) -> list[str]:
    """Names of the folders in a folder, sorted. Hidden folders are left out."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_dir() and not e.name.startswith('.')]
    return sorted(names)


def _images(folder):
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.lower().endswith(EXTENSIONS)]
    return sorted(n for n in names if not n.startswith('.'))
