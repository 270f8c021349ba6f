"""ResNet with Selective Kernel units."""

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from torch import nn

from prm_mmdet.pretraining import SKResNet

register_all_modules()


def test_sk_resnet_has_the_parameters_of_the_prm_papers_table():
    with torch.device('meta'):
        model = MODELS.build(dict(type='prm_mmdet.SKResNet', depth=50))
    parameters = sum(p.numel() for p in model.parameters()) + 2049 * 1000
    assert round(parameters / 1e6, 3) == 26.154
    # Everything but the 3x3 and its norm is ResNet-50's, under its names.
    with torch.device('meta'):
        plain = ResNet(50)
    lost = set(plain.state_dict()) - set(model.state_dict())
    assert lost and all('.conv2.' in key or '.bn2.' in key for key in lost)


def test_sk_resnet_trains():
    cfg = dict(depth=50, base_channels=32, dilations=(1, 1, 1, 2), norm_eval=False)
    model = SKResNet(**cfg, strides=(1, 2, 2, 1), frozen_stages=1)
    model.init_weights()
    model.train()
    maps = model(torch.randn(2, 3, 32, 32))
    assert [m.shape[2:] for m in maps] == [(8, 8), (4, 4), (2, 2), (2, 2)]
    sum(m.square().mean() for m in maps).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(('conv1', 'bn1', 'layer1')):
            assert not parameter.requires_grad
        else:
            assert parameter.grad.isfinite().all(), name


def test_the_relu_behind_sk_changes_nothing():
    block = SKResNet(50, base_channels=32).layer2[0].conv2
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert (block(torch.randn(2, 64, 8, 8)) >= 0).all()


def test_sk_resnet_refuses_deformable_convolutions():
    with pytest.raises(ValueError, match=r"dcn=\{'type': 'DCNv2'\} and SK replace"):
        SKResNet(50, dcn=dict(type='DCNv2'))
