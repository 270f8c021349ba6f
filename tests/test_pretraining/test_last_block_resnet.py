"""ResNet with plugins in the last block of a stage."""

import pytest
import torch
from mmdet.registry import MODELS

from prm_mmdet import SAC

CFG = dict(depth=50, base_channels=8, plugins=None)


def build(kind, **settings):
    plugin = dict(
        cfg=dict(type='prm_mmdet.SAC', reduction=4),
        stages=(True, False, True, False),
        position='after_conv2',
    )
    return MODELS.build(dict(CFG, type=kind, plugins=[plugin], **settings))


def test_plugins_are_in_the_last_block_of_their_stages():
    network = build('prm_mmdet.LastBlockResNet')
    found = [n for n, m in network.named_modules() if isinstance(m, SAC)]
    assert found == ['layer1.2.sac_block', 'layer3.5.sac_block']


def test_the_block_takes_the_map_after_the_relu_of_the_3x3():
    network = build('prm_mmdet.LastBlockResNet')
    network.eval()
    inputs = []
    block = network.layer1[-1]
    block.sac_block.register_forward_hook(lambda m, x, y: inputs.append(x[0]))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        network(x)
        x = network.maxpool(network.relu(network.norm1(network.conv1(x))))
        for before in list(network.layer1)[:-1]:
            x = before(x)
        x = block.relu(block.norm1(block.conv1(x)))
        expected = block.relu(block.norm2(block.conv2(x)))
    torch.testing.assert_close(inputs[0], expected)


def test_without_plugins_it_is_mmdetections_resnet():
    networks = []
    for kind in ('prm_mmdet.LastBlockResNet', 'mmdet.ResNet'):
        torch.manual_seed(0)
        networks.append(MODELS.build(dict(CFG, type=kind)))
        networks[-1].eval()
    x = torch.randn(1, 3, 32, 32)
    for a, b in zip(*(network(x) for network in networks)):
        assert torch.equal(a, b)


@pytest.mark.parametrize('kind', ['prm_mmdet.LastBlockResNet', 'mmdet.ResNet'])
def test_keys_are_those_of_mmdetections_plugins(kind):
    keys = {k for k in build(kind).state_dict() if 'sac_block' in k}
    last = {k for k in keys if k.startswith(('layer1.2.', 'layer3.5.'))}
    assert len(last) == 2 * 6
    assert (keys == last) == (kind == 'prm_mmdet.LastBlockResNet')
