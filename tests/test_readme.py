"""The README's examples, as they are printed."""

import re

import pytest
import torch
from conftest import ROOT
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from onnx_cases import agree, session

from prm_mmdet import SAC

README = (ROOT / 'README.md').read_text(encoding='utf-8')
SECTION = README.partition('\n## Anywhere else\n')[2].partition('\n## ')[0]
CONFIG, CALL = re.findall(r'```python\n(.*?)```', SECTION, re.S)
EXPORT = README.partition('\n## Export\n')[2].partition('\n## ')[0]
(EXPORT,) = re.findall(r'```python\n(.*?)```', EXPORT, re.S)
PRETRAINING = README.partition('\n## Pre-training on ImageNet\n')[2].partition('\n## ')[
    0
]
_, PRETRAINED = re.findall(r'```python\n(.*?)```', PRETRAINING, re.S)


def test_the_config_trains_a_step(tmp_path):
    register_all_modules()
    (tmp_path / 'config.py').write_text(CONFIG)
    cfg = Config.fromfile(tmp_path / 'config.py')
    cfg.model.backbone.model.init_cfg = None  # nothing to be downloaded
    model = MODELS.build(cfg.model)
    blocks = [n for n, m in model.named_modules() if isinstance(m, SAC)]
    assert blocks == [
        'backbone.stage2.1.sac_block',
        'backbone.stage3.1.sac_block',
        'backbone.stage4.2.sac_block',
    ]
    model.init_weights()
    model.train()
    inputs = demo_mm_inputs(2, [(3, 64, 64)] * 2, num_classes=4)
    losses = model.train_step(inputs, build_optim_wrapper(model, cfg.optim_wrapper))
    assert losses['loss_cls'].isfinite()
    transform = model.backbone.stage4[2].sac_block.transform
    assert transform.weight.isfinite().all() and transform.weight.any()


def test_a_detector_takes_a_pretrained_backbone_with_sac(tmp_path):
    register_all_modules()
    name = 'resnet50-sac-c2-c4_4xb64-100e-warmup_imagenet.py'
    classifier = MODELS.build(
        Config.fromfile(ROOT / 'configs' / 'imagenet' / name).model
    )
    for value in classifier.state_dict().values():
        value.fill_(3)
    torch.save(dict(state_dict=classifier.state_dict()), tmp_path / 'weights.pth')
    text = PRETRAINED.replace("'configs/", f"'{ROOT}/configs/")
    path = 'checkpoints/resnet50-sac_imagenet-HASH.pth'
    assert path in text
    (tmp_path / 'config.py').write_text(
        text.replace(path, str(tmp_path / 'weights.pth'))
    )
    backbone = MODELS.build(Config.fromfile(tmp_path / 'config.py').model.backbone)
    backbone.init_weights()
    state = backbone.state_dict()
    assert sum('sac_block' in key for key in state) > 3
    assert all((value == 3).all() for value in state.values())


def test_the_call(capsys):
    scope = {}
    exec(CALL, scope)
    assert 'SAC(' in capsys.readouterr().out
    neck = scope['neck']
    maps = [torch.randn(1, c, 8, 8) for c in neck.in_channels]
    assert len(neck(maps)) == len(neck.sac_block) == 5


@pytest.mark.usefixtures('quiet_export')
def test_the_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(EXPORT, scope)
    runner = session('backbone.onnx')
    assert [y.name for y in runner.get_outputs()] == ['c2', 'c3', 'c4', 'c5']
    for size in ((1, 3, 224, 224), (2, 3, 97, 130)):
        assert agree(runner, scope['backbone'], torch.randn(size)), size


@pytest.mark.parametrize(
    'name', re.findall(r'^\| .* \| `(r?\'.*\')` \|$', SECTION, re.M)
)
def test_the_tables_names_are_regular_expressions(name):
    re.compile(eval(name))
