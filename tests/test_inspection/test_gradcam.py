"""Grad-CAM, against its definition and in detectors of MMDetection."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from torch import nn

from prm_mmdet.inspection.geometry import Frame
from prm_mmdet.inspection.gradcam import ClassCAM, class_cam, draw_cam


class Detector(nn.Module):
    """One map, and detections whose scores are known functions of it."""

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 4, 3, 2, 1).double()
        self.requires_grad_(False)  # as in a frozen stage
        self.head = torch.randn(2, 4, 6, 5, dtype=torch.float64) * scale

    def forward(self, inputs):
        features = self.backbone(inputs)
        logits = (self.head * features).sum((1, 2, 3)).detach()  # as one-stage heads do
        found = InstanceData(
            scores=logits.sigmoid(),
            labels=torch.tensor([1, 0]),
            bboxes=torch.tensor([[0.0, 0, 4, 4], [2, 2, 8, 6]]),
        )
        return [SimpleNamespace(pred_instances=found)]

    def test_step(self, data):
        return self(**data)


@pytest.mark.parametrize('detection', [0, 1])
def test_the_definition(detection):
    model = Detector()
    image = torch.randn(1, 3, 12, 10, dtype=torch.float64)
    cam = class_cam(model, dict(inputs=image), detection)
    # d score / d map = s (1 - s) head; its sign and shape are those of head.
    weights = model.head[detection].mean((1, 2))
    features = model.backbone(image)[0]
    expected = (weights[:, None, None] * features).sum(0).relu().numpy()
    ((grid, values),) = cam.maps
    assert values == pytest.approx(expected / expected.max())
    assert grid.stride == (2, 2) and grid.offset == (0, 0)
    assert cam.label == 1 - detection and 0 < cam.score < 1
    assert cam.box.tolist() == [[0, 0, 4, 4], [2, 2, 8, 6]][detection]
    assert not model.backbone._forward_hooks and not model.backbone._forward_pre_hooks
    assert not model._forward_pre_hooks


def test_no_detection_or_one_without_gradient():
    image = torch.randn(1, 3, 12, 10, dtype=torch.float64)
    assert class_cam(Detector(), dict(inputs=image), rank=2) is None
    assert class_cam(Detector(scale=1e4), dict(inputs=image)) is None


@pytest.fixture(scope='module', params=['two stages', 'one stage'])
def detector(request):
    register_all_modules()
    cfg = Config.fromfile(ROOT / 'configs/demo/mask-rcnn_r50-prm_fpn_demo.py').model
    if request.param == 'one stage':
        head = dict(cfg.rpn_head, type='RetinaHead', num_classes=4, stacked_convs=1)
        settings = dict(nms_pre=100, min_bbox_size=0, score_thr=0.0)
        cfg = dict(
            type='RetinaNet',
            data_preprocessor=cfg.data_preprocessor,
            backbone=cfg.backbone,
            neck=cfg.neck,
            bbox_head=head,
            test_cfg=ConfigDict(cfg.test_cfg.rcnn, **settings),
        )
    torch.manual_seed(0)
    return MODELS.build(cfg).eval()


def test_detectors(detector):
    data = demo_mm_inputs(1, [(3, 96, 64)])
    with torch.no_grad():
        found = detector.test_step(data)[0].pred_instances
    cam = class_cam(detector, data)
    assert cam.score == pytest.approx(found.scores[0].item(), rel=1e-6)
    assert cam.box == pytest.approx(found.bboxes[0].numpy())
    assert [grid.stage for grid, _ in cam.maps] == ['c2', 'c3', 'c4', 'c5']
    assert [m.shape for _, m in cam.maps] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    assert max(values.max() for _, values in cam.maps) == 1
    assert all((values >= 0).all() for _, values in cam.maps)


def test_the_figure():
    frame = Frame(dict(ori_shape=(12, 10), scale_factor=(1.0, 1.0)))
    image = torch.randn(1, 3, 12, 10, dtype=torch.float64)
    cam = class_cam(Detector(), dict(inputs=image))
    cam.maps.append((cam.maps[0][0], np.zeros((6, 5))))
    picture = np.zeros((12, 10, 3), np.uint8)
    figure = draw_cam(cam, picture, frame, ['cat', 'dog'])
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == [f'dog {cam.score:.2f}', 'c1', 'c1: nowhere']
    assert {axis.images[-1].get_clim() for axis in figure.axes[1:3]} == {(0, 1)}
    assert isinstance(cam, ClassCAM) and figure.axes[0].patches
