"""Backbones that MMDetection lacks."""

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from torch import nn

from prm_mmdet.models import MnasNet, SKResNet

register_all_modules()


def with_head(backbone, channels):
    """Parameters with a classifier of 1000 classes."""
    return sum(p.numel() for p in backbone.parameters()) + 1000 * (channels + 1)


def test_mnasnet_has_the_parameters_of_the_prm_papers_table():
    with torch.device('meta'):
        model = MODELS.build(dict(type='prm_mmdet.MnasNet'))
    assert isinstance(model, MnasNet)
    assert with_head(model, 1280) == 4_383_312  # 4.38 M in Table 2


def test_mnasnet_stage_by_stage():
    with torch.device('meta'):
        model = MnasNet(out_indices=range(8))
        maps = model(torch.empty(1, 3, 224, 224))
    shapes = [(m.shape[1], 224 // m.shape[2]) for m in maps]
    assert shapes == [
        (16, 2),
        (24, 4),
        (40, 8),
        (80, 16),
        (96, 16),
        (192, 32),
        (320, 32),
        (1280, 32),
    ]
    kernels = [
        m.kernel_size[0]
        for m in model.modules()
        if isinstance(m, nn.Conv2d) and m.groups > 1
    ]
    assert kernels == [3] + [3] * 3 + [5] * 6 + [3] * 2 + [5] * 4 + [3]
    assert not any(isinstance(m, nn.ReLU6) for m in model.modules())
    assert not model.layer2[0].linear_conv.with_activation


@pytest.mark.parametrize('indices', [(1, 2, 4, 7), (6,)])
def test_mnasnet_trains_and_freezes(indices):
    model = MnasNet(out_indices=indices, frozen_stages=2)
    model.init_weights()
    model.train()
    maps = model(torch.randn(2, 3, 64, 64))
    assert len(maps) == len(indices)
    sum(m.square().mean() for m in maps).backward()
    frozen = ('conv1.', 'layer1.', 'layer2.')
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
        if indices == (1, 2, 4, 7) and parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_sk_resnet_has_the_parameters_of_the_prm_papers_table():
    with torch.device('meta'):
        model = MODELS.build(dict(type='prm_mmdet.SKResNet', depth=50))
    assert round(with_head(model, 2048) / 1e6, 3) == 26.154
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
    maps = model(torch.randn(2, 3, 64, 64))
    assert [m.shape[2:] for m in maps] == [(16, 16), (8, 8), (4, 4), (4, 4)]
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


def test_gc_keeps_its_zeros_in_a_backbone_from_nothing():
    keys = []
    for block in ('ContextBlock', 'prm_mmdet.GC'):
        plugin = dict(cfg=dict(type=block, ratio=1 / 16), position='after_conv3')
        model = ResNet(50, base_channels=16, plugins=[plugin])
        model.init_weights()
        keys.append(list(model.state_dict()))
    assert keys[0] == keys[1]
    for stage in model.res_layers:
        for bottleneck in getattr(model, stage):
            x = torch.randn(1, bottleneck.planes * 4, 3, 4)
            assert torch.equal(bottleneck.context_block(x), x)


def test_sk_resnet_refuses_deformable_convolutions():
    with pytest.raises(ValueError, match=r"dcn=\{'type': 'DCNv2'\} would replace"):
        SKResNet(50, dcn=dict(type='DCNv2'))
