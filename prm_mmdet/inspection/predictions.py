"""Predictions beside ground truth."""

import pickle

import mmcv
import mmengine
import numpy as np
import pycocotools.mask as mask_utils
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules

from .figures import COLOURS, check_png, save_png

PANEL = 3.2  # inches


def draw_predictions(cfg, predictions, out, num_images=6, score_thr=0.5):
    """Write one picture: for some test images, ground truth beside predictions.

    Args:
        cfg (Config): The config whose ``test_dataloader`` gave the predictions.
        predictions (str): Pickle file that ``tools/test.py --out`` wrote. Pickle can
            run code: open only your own.
        out (str): PNG file to write.
        num_images (int): Images to show, evenly spaced over the test set. Default: 6.
        score_thr (float): Predictions under this score are left out. Default: 0.5.

    Raises:
        ValueError: The file holds no predictions, or none for the config's images, or
            an argument is out of range.
    """
    if num_images < 1:
        raise ValueError(f'num_images must be at least 1, got {num_images}')
    check_png(out)
    try:
        results = mmengine.load(predictions, file_format='pkl')
    except (pickle.UnpicklingError, EOFError):
        results = None
    if not isinstance(results, list) or not results or 'img_id' not in results[0]:
        raise ValueError(
            f'{predictions} holds no predictions of images; make it with '
            'tools/test.py CONFIG CHECKPOINT --out FILE.pkl'
        )
    register_all_modules()
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    coco = COCO(dataset.ann_file)  # the data set gave its own copy up
    by_id = {result['img_id']: result for result in results}
    # Images with something to see first, if there are enough of them.
    ids = [i for i in coco.get_img_ids() if i in by_id]
    ids = [i for i in ids if coco.get_ann_ids(img_ids=[i])] or ids
    if not ids:
        raise ValueError(
            f'{predictions} holds no image of the test set of this config; '
            'were they made with another config?'
        )
    picks = np.linspace(0, len(ids) - 1, min(num_images, len(ids))).round().astype(int)
    # Two images a row, each with its two panels.
    rows = (len(picks) + 1) // 2
    figure = Figure(figsize=(4 * PANEL, rows * (PANEL + 0.3)), layout='constrained')
    axes = figure.subplots(rows, 4, squeeze=False).reshape(-1, 2)
    for pair, pick in zip(axes, picks):
        result = by_id[ids[pick]]
        image = mmcv.imread(result['img_path'], channel_order='rgb')
        _draw(pair[0], image, 'ground truth', _truth(dataset, coco, ids[pick]))
        _draw(pair[1], image, 'prediction', _detections(dataset, result, score_thr))
    for axis in axes.reshape(-1):
        axis.axis('off')
    save_png(figure, out)


def _truth(dataset, coco, image_id):
    """(box, mask, class index, text) of each annotation of an image."""
    for annotation in coco.load_anns(coco.get_ann_ids(img_ids=[image_id])):
        if annotation['category_id'] not in dataset.cat2label:
            continue
        label = dataset.cat2label[annotation['category_id']]
        name = dataset.metainfo['classes'][label]
        crowd = ' (crowd)' if annotation.get('iscrowd') else ''
        yield annotation['bbox'], coco.annToMask(annotation), label, name + crowd


def _detections(dataset, result, score_thr):
    """(box, mask or None, class index, text) of each prediction of an image."""
    found = result['pred_instances']
    boxes = np.asarray(found['bboxes']).reshape(-1, 4)
    boxes = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    masks = found.get('masks', [None] * len(boxes))
    labels, scores = (np.asarray(found[key]) for key in ('labels', 'scores'))
    for box, mask, label, score in zip(boxes, masks, labels, scores):
        if score >= score_thr:
            mask = None if mask is None else mask_utils.decode(mask)
            name = dataset.metainfo['classes'][label]
            yield box, mask, label, f'{name} {score:.2f}'


def _draw(axis, image, title, instances):
    axis.imshow(image)
    axis.set_title(title, fontsize=10)
    for (x, y, width, height), mask, label, text in instances:
        colour = COLOURS[label % len(COLOURS)]
        axis.add_patch(
            Rectangle((x - 0.5, y - 0.5), width, height, fill=False, ec=colour, lw=1.5)
        )
        if mask is not None and mask.any():
            axis.contourf(mask, levels=[0.5, 1], colors=[colour], alpha=0.45)
        axis.text(
            *(x, max(y - 1, 0.05 * len(image)), text),
            fontsize=7,
            va='bottom',
            clip_on=True,
            bbox=dict(fc=colour, ec='none', pad=0.8, alpha=0.85),
        )
