"""Figures of predictions beside ground truth."""

from __future__ import annotations

import pickle
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import pycocotools.mask as mask_utils
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmdet.evaluation import bbox_overlaps
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData

from ..files.plain_pickle import load_plain_pickle
from .figure_files import COLOURS, check_png, image_rows, new_figure, save_png
from .style import class_name

PANEL = 3.2  # width of a panel, in inches


class Instance(NamedTuple):
    """An object in an image, annotated or predicted."""

    box: Sequence[float]  # x1, y1, x2, y2 in pixels
    mask: np.ndarray | None  # mask of the object, (H, W)
    label: int
    text: str  # text at the box: the class, and the score or '(crowd)'


def draw_predictions(
    cfg: Config,
    predictions: str | Path,
    out: str | Path,
    num_images: int = 6,
    score_thr: float = 0.5,
) -> None:
    """Write one picture: for some test images, ground truth beside predictions.

    Args:
        cfg: Config whose ``test_dataloader`` gave the predictions.
        predictions: Pickle file that ``tools/test.py --out`` wrote. No code in the
            file is executed.
        out: PNG file to write.
        num_images: Number of images, evenly spaced over the test set. Default: 6.
        score_thr: Lowest score of the predictions shown. Default: 0.5.

    Raises:
        ValueError: The file has no predictions, or none for the config's images, or
            an argument is out of range.
    """
    if num_images < 1:
        raise ValueError(f'num_images must be at least 1, got {num_images}')
    check_png(out)
    try:
        with open(predictions, 'rb') as file:
            results = load_plain_pickle(file)
        reason = ''
    except pickle.UnpicklingError as error:
        results, reason = None, f' ({error})'
    if not isinstance(results, list) or not results or 'img_id' not in results[0]:
        raise ValueError(
            f'{predictions} has no predictions of images{reason}. Make it with '
            'tools/test.py CONFIG CHECKPOINT --out FILE.pkl'
        )
    register_all_modules()
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    classes = dataset.metainfo['classes']
    by_id = {result['img_id']: result for result in results}
    # Images without objects are left out, unless all images are without objects.
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    infos = [info for info in infos if info['img_id'] in by_id]
    infos = [info for info in infos if info['instances']] or infos
    if not infos:
        raise ValueError(
            f'{predictions} has no predictions for the test set of '
            f'{cfg.filename}. Use the config that made them'
        )
    picks = spread(len(infos), num_images)
    # A row shows two images. Each image has two panels: ground truth and predictions.
    rows = (len(picks) + 1) // 2
    figure, axes = new_figure(4 * PANEL, rows * (PANEL + 0.3), nrows=rows, ncols=4)
    for pair, pick in zip(axes.reshape(-1, 2), picks):
        result = by_id[infos[pick]['img_id']]
        image = mmcv.imread(result['img_path'], channel_order='rgb')
        found = list(detections(result['pred_instances'], classes, score_thr))
        _draw(pair[0], image, 'ground truth', list(truth(infos[pick], classes)))
        _draw(pair[1], image, 'prediction', found)
    for axis in axes.reshape(-1):
        axis.axis('off')
    save_png(figure, out)


def spread(length: int, count: int) -> list[int]:
    """At most ``count`` indices, evenly spaced over a sequence."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()


def compare_predictions(
    images: Sequence[np.ndarray],
    truths: Sequence[list[Instance] | None],
    found: Sequence[Sequence[list[Instance]]],
    titles: Sequence[str],
    names: Sequence[str],
) -> Figure:
    """Predictions of one or two models beside ground truth, one row for each image.

    Boxes that only one of two models predicts have thick lines.

    Args:
        images: RGB, (H, W, 3).
        truths: Annotated objects of each image. None for each image if the images have
            no annotations.
        found: For each model, the predicted objects of each image.
        titles: Titles of the models.
        names: Names of the images, which are drawn at the left of the rows.
    """
    columns = len(found) + (truths[0] is not None)
    figure, axes = image_rows(images, columns, PANEL)
    for i, (row, image, instances, *models) in enumerate(
        zip(axes, images, truths, *found)
    ):
        panels: list[tuple] = []
        if instances is not None:
            panels.append(('ground truth', instances, None))
        for j, (title, boxes) in enumerate(zip(titles, models)):
            alone = None if len(models) == 1 else unmatched(boxes, models[1 - j])
            panels.append((title, boxes, alone))
        for axis, (title, boxes, thick) in zip(row, panels):
            _draw(axis, image, _fitted(title) if i == 0 else '', boxes, thick)
    for axis in axes.flat:
        axis.axis('off')
    for axis, name in zip(axes[:, 0], names):
        name = name if len(name) <= 30 else f'...{name[-27:]}'
        look = dict(rotation=90, ha='right', va='center', fontsize=7)
        axis.text(-0.02, 0.5, name, transform=axis.transAxes, **look)
    return figure


def compare_classes(
    images: Sequence[np.ndarray],
    truths: Sequence[str],
    found: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    classes: Sequence[str],
) -> Figure:
    """The five most probable classes by one or two models, one row for each image.

    Args:
        images: RGB, (H, W, 3).
        truths: Name of the class of each image, '' if it is not known.
        found: For each model, the class probabilities (classes,) of each image.
        titles: Titles of the models.
        classes: Names of the classes.
    """
    figure, axes = image_rows(images, 1 + len(found), PANEL)
    for i, (row, image, name, *of_image) in enumerate(
        zip(axes, images, truths, *found)
    ):
        row[0].imshow(image)
        row[0].set_title(name, fontsize=9)
        row[0].axis('off')
        for axis, title, probabilities in zip(row[1:], titles, of_image):
            best = probabilities.argsort()[::-1][:5]
            names = [class_name(classes, k) for k in best]
            colours = [COLOURS[5 if n == name else 4] for n in names]
            axis.barh(range(len(best)), probabilities[best], color=colours)
            axis.set_yticks(range(len(best)), names, fontsize=8)
            axis.invert_yaxis()
            axis.set_xlim(0, 1)
            axis.set_xlabel('probability', fontsize=8)
            axis.set_title(_fitted(title) if i == 0 else '', fontsize=9)
    return figure


def _fitted(title):
    """A title, broken into lines that fit the width of a panel."""
    return '\n'.join(textwrap.fill(line, 36) for line in title.splitlines())


def unmatched(instances: Sequence[Instance], others: Sequence[Instance]) -> set[int]:
    """Indices of the instances without a match in ``others``.

    A match has the same label and an IoU of 0.5 or more. Instances are matched one
    after the other. Each of ``others`` can match only one instance.
    """
    free, alone = list(others), set()
    for i, instance in enumerate(instances):
        same = [other for other in free if other.label == instance.label]
        boxes = np.array([instance.box, *(other.box for other in same)], np.float32)
        ious = bbox_overlaps(boxes[:1], boxes[1:])
        if same and ious.max() >= 0.5:
            free = [other for other in free if other is not same[int(ious.argmax())]]
        else:
            alone.add(i)
    return alone


def truth(info: Mapping[str, Any], classes: Sequence[str]) -> Iterator[Instance]:
    """The annotated objects of an image.

    Args:
        info: Result of a data set's ``get_data_info``.
        classes: Names of the classes.
    """
    for instance in info['instances']:
        mask = instance.get('mask')
        if mask is not None:
            mask = mask_utils.frPyObjects(mask, info['height'], info['width'])
            mask = mask_utils.merge(mask) if isinstance(mask, list) else mask
            mask = mask_utils.decode(mask)
        name = class_name(classes, instance['bbox_label'])
        crowd = ' (crowd)' if instance.get('ignore_flag') else ''
        yield Instance(instance['bbox'], mask, instance['bbox_label'], name + crowd)


def detections(
    found: Mapping[str, Any] | InstanceData, classes: Sequence[str], score_thr: float
) -> Iterator[Instance]:
    """The objects that a detector predicts in an image.

    Args:
        found: ``bboxes``, ``labels``, ``scores`` and optional ``masks``, which are
            dense or run-length encoded.
        classes: Names of the classes.
        score_thr: Lowest score of the predictions returned.
    """
    boxes, labels, scores = (
        np.asarray(found[key]) for key in ('bboxes', 'labels', 'scores')
    )
    masks = found.get('masks', [None] * len(boxes))
    for box, mask, label, score in zip(boxes, masks, labels, scores):
        if score >= score_thr:
            if isinstance(mask, dict):
                mask = mask_utils.decode(mask)
            elif isinstance(mask, torch.Tensor):
                mask = mask.numpy()
            text = f'{class_name(classes, label)} {score:.2f}'
            yield Instance(box, mask, int(label), text)


def _draw(axis, image, title, instances, thick=None):
    """Draw instances over an image. Lines are thick for the indices in ``thick``."""
    axis.imshow(image)
    axis.set_title(title, fontsize=9)
    for i, ((x1, y1, x2, y2), mask, label, text) in enumerate(instances):
        colour = COLOURS[label % len(COLOURS)]
        look = dict(ec=colour, lw=1.5 if thick is None else 2.5 if i in thick else 0.7)
        corner = (x1 - 0.5, y1 - 0.5)
        axis.add_patch(Rectangle(corner, x2 - x1, y2 - y1, fill=False, **look))
        if mask is not None and mask.any():
            axis.contourf(mask, levels=[0.5, 1], colors=[colour], alpha=0.45)
        look = dict(bbox=dict(fc=colour, ec='none', pad=0.8, alpha=0.85), fontsize=7)
        top = max(y1 - 1, 0.05 * len(image))
        axis.text(x1, top, text, va='bottom', clip_on=True, **look)
