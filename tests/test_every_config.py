"""Every config: one training step and one test step. Run by ``make test-configs``."""

import pytest
import torch
from conftest import CONFIGS, ROOT
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper


@pytest.mark.configs
@pytest.mark.parametrize('name', CONFIGS)
def test_steps(name):
    register_all_modules()
    cfg = Config.fromfile(ROOT / 'configs' / name)
    backbone = cfg.model.backbone
    if backbone.type == 'prm_mmdet.Plugged':
        backbone = backbone.model
    backbone.init_cfg = None  # nothing to be downloaded
    model = MODELS.build(cfg.model)
    model.init_weights()
    # A first step is taken at the rate that the warm-up, if there is one, starts with.
    warm_up = cfg.param_scheduler[0].get('start_factor', 1)
    cfg.optim_wrapper.optimizer.lr *= warm_up
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    classifies = cfg.model.type == 'prm_mmdet.ImageClassifier'
    if classifies:
        images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
        inputs = dict(inputs=images, data_samples=torch.tensor([0, 1]))
    else:
        inputs = demo_mm_inputs(1, [(3, 96, 128)], num_classes=2, with_mask=True)

    model.train()
    losses = model.train_step(inputs, optim_wrapper)
    assert losses['loss'].isfinite()
    assert all(p.isfinite().all() for p in model.parameters())

    model.eval()
    with torch.no_grad():
        result = model.test_step(inputs)[0]
    found = result['pred_scores'] if classifies else result.pred_instances.bboxes
    assert found.isfinite().all()
