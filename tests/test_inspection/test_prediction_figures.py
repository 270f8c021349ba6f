"""Pictures of predictions beside ground truth."""

import mmcv
import mmengine
import numpy as np
import pycocotools.mask as mask_utils
import pytest
from conftest import ROOT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.config import Config
from pycocotools.coco import COCO

from prm_mmdet.inspection.prediction_figures import (
    compare_predictions,
    draw_predictions,
)


@pytest.fixture
def cfg(demo_data):
    cfg = Config.fromfile(ROOT / 'configs/demo/mask-rcnn_r50-sac_fpn_demo.py')
    cfg.test_dataloader.dataset.data_root = f'{demo_data}/'
    return cfg


@pytest.fixture
def predictions(demo_data, tmp_path):
    """The ground truth itself, as tools/test.py --out would write it."""
    coco = COCO(demo_data / 'annotations/instances_val.json')
    results = []
    for image in coco.loadImgs(coco.getImgIds()):
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        boxes = np.array([a['bbox'] for a in annotations]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [np.asfortranarray(coco.annToMask(a)) for a in annotations]
        results.append(
            dict(
                img_id=image['id'],
                img_path=str(demo_data / 'val' / image['file_name']),
                pred_instances=dict(
                    bboxes=boxes,
                    labels=np.array([a['category_id'] - 1 for a in annotations]),
                    scores=np.linspace(0.6, 0.9, len(annotations)),
                    masks=[mask_utils.encode(m) for m in masks],
                ),
            )
        )
    path = tmp_path / 'predictions.pkl'
    mmengine.dump(results, path)
    return path


def panels(picture):
    """Left and right panel of a picture of one image, less titles."""
    height, width = picture.shape[:2]
    quarter = width // 4
    body = picture[height // 8 :].astype(int)
    return body[:, :quarter], body[:, quarter : 2 * quarter]


def test_perfect_predictions_look_like_the_truth(cfg, predictions, tmp_path):
    out = tmp_path / 'new' / 'picture.png'
    draw_predictions(cfg, predictions, out, num_images=1)
    picture = mmcv.imread(out)
    truth, prediction = panels(picture)
    # The labels differ (scores), the boxes and masks do not.
    assert truth.std() > 10
    assert (np.abs(truth - prediction).max(2) > 40).mean() < 0.2
    assert [p.name for p in out.parent.iterdir()] == ['picture.png']


def test_low_scores_are_left_out(cfg, predictions, tmp_path):
    out = tmp_path / 'picture.png'
    draw_predictions(cfg, predictions, out, num_images=1, score_thr=0.95)
    truth, prediction = panels(mmcv.imread(out))
    assert (np.abs(truth - prediction).max(2) > 40).mean() > 0.05


def test_other_files_are_refused(cfg, predictions, tmp_path):
    empty = tmp_path / 'empty.pkl'
    mmengine.dump([], empty)
    with pytest.raises(ValueError, match='has no predictions'):
        draw_predictions(cfg, empty, tmp_path / 'picture.png')
    foreign = tmp_path / 'foreign.pkl'
    mmengine.dump([dict(img_id=10**6, pred_instances={})], foreign)
    with pytest.raises(ValueError, match='no predictions for the test set'):
        draw_predictions(cfg, foreign, tmp_path / 'picture.png')
    (tmp_path / 'text.pkl').write_text('no pickle')
    with pytest.raises(ValueError, match='has no predictions'):
        draw_predictions(cfg, tmp_path / 'text.pkl', tmp_path / 'picture.png')
    with pytest.raises(ValueError, match='num_images must be at least 1, got 0'):
        draw_predictions(cfg, foreign, tmp_path / 'picture.png', num_images=0)
    with pytest.raises(ValueError, match=r'must be a \.png file'):
        draw_predictions(cfg, foreign, tmp_path / 'picture.jpg')
    assert not (tmp_path / 'picture.png').exists()


def test_long_titles_fit_one_column():
    stem = 'cascade-mask-rcnn_x101-32x4d-dconv-c3-c5-sac-c3-c5_fpn_4xb2-ms-1x_coco'
    image = np.zeros((40, 60, 3), np.uint8)
    figure = compare_predictions(
        [image], [None], [[[]]], [stem + '\nepoch_12.pth'], ['']
    )
    FigureCanvasAgg(figure)
    figure.canvas.draw()
    box = figure.axes[0].title.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert ''.join(figure.axes[0].get_title().split()) == stem + 'epoch_12.pth'
