"""MnasNet's structure, training and freezing."""

import pytest
import torch
from mmdet.utils import register_all_modules
from torch import nn

from prm_mmdet.pretraining import MnasNet

register_all_modules()


def test_mnasnet_stage_by_stage():
    with torch.device('meta'):
        model = MnasNet(out_indices=range(8))
        maps = model(torch.empty(1, 3, 224, 224))
    shapes = [(m.shape[1], 224 // m.shape[2]) for m in maps]
    strides = (2, 4, 8, 16, 16, 32, 32, 32)
    assert shapes == list(zip((16, 24, 40, 80, 96, 192, 320, 1280), strides))
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    kernels = [layer.kernel_size[0] for layer in layers if layer.groups > 1]
    assert kernels == [3] + [3] * 3 + [5] * 6 + [3] * 2 + [5] * 4 + [3]
    assert not any(isinstance(m, nn.ReLU6) for m in model.modules())
    assert not model.layer2[0].linear_conv.with_activation


@pytest.mark.parametrize('indices', [(1, 2, 4, 7), (6,)])
def test_mnasnet_trains_and_freezes(indices):
    model = MnasNet(out_indices=indices, frozen_stages=2)
    model.init_weights()
    model.train()
    maps = model(torch.randn(2, 3, 32, 32))
    assert len(maps) == len(indices)
    sum(m.square().mean() for m in maps).backward()
    frozen = ('conv1.', 'layer1.', 'layer2.')
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
        if indices == (1, 2, 4, 7) and parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
