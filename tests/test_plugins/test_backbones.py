"""The plugins inside MMDetection's backbones."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

register_all_modules()

POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')
# Groups that divide the few channels of the narrow networks here.
BLOCKS = {
    'PRM': dict(type='prm_mmdet.PRM', groups=4),
    'LCT': dict(type='prm_mmdet.LCT', groups=4),
    'SAC': dict(type='prm_mmdet.SAC'),
    'SAC bottleneck': dict(type='prm_mmdet.SAC', transform='bottleneck'),
}
NARROW = dict(type='ResNet', depth=50, base_channels=16)
BACKBONES = {
    'ResNet': NARROW,
    'ResNetV1d': dict(NARROW, type='ResNetV1d'),
    'ResNeXt': dict(NARROW, type='ResNeXt', groups=8, base_width=4),
    'Res2Net': dict(NARROW, type='Res2Net', scales=4, base_width=26),
    'RegNet': dict(type='RegNet', arch='regnetx_400mf'),
    'ResNeSt': dict(
        NARROW,
        type='ResNeSt',
        stem_channels=16,
        radix=2,
        reduction_factor=4,
        avg_down_stride=True,
    ),
    'TridentNet': dict(
        NARROW,
        type='TridentResNet',
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        trident_dilations=(1, 2, 3),
        out_indices=(2,),
        num_branch=3,
        test_branch_idx=1,
    ),
    'DetectoRS': dict(
        NARROW,
        type='DetectoRS_ResNet',
        conv_cfg=dict(type='ConvAWS'),
        sac=dict(type='SAC', use_deform=False),
        stage_with_sac=(False, True, True, True),
    ),
}
# MMDetection builds plugins inside the blocks of these two for too few channels.
WRONGLY_SIZED = {
    'Res2Net': BACKBONES['Res2Net'],
    'DetectoRS ResNeXt': dict(
        NARROW,
        type='DetectoRS_ResNeXt',
        groups=8,
        base_width=4,
        conv_cfg=dict(type='ConvAWS'),
    ),
}


def build(backbone, *plugins):
    stages = (False, True, True, True)[: backbone.get('num_stages', 4)]
    plugins = [
        dict(cfg=dict(cfg), stages=stages, position=position)
        for cfg, position in plugins
    ]
    torch.manual_seed(0)
    return MODELS.build(dict(backbone, plugins=plugins))


@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('block', BLOCKS)
def test_steps_from_scratch_stay_finite(block, position):
    # zero_init_residual, the default, makes the map after norm3 exactly zero.
    model = build(NARROW, (BLOCKS[block], position))
    model.init_weights()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(3):
        loss = sum(y.square().mean() for y in model(torch.randn(2, 3, 64, 64)))
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
        optimizer.step()


# Sizes depend on the backbone and the position, not on the block.
@pytest.mark.parametrize(
    ('backbone', 'position', 'block'),
    [
        (backbone, position, ('PRM', 'LCT', 'SAC')[(i + j) % 3])
        for i, backbone in enumerate(BACKBONES)
        for j, position in enumerate(POSITIONS)
        if backbone != 'Res2Net' or position == 'after_conv3'
    ],
)
def test_every_backbone_with_plugins(backbone, position, block):
    model = build(BACKBONES[backbone], (BLOCKS[block], position))
    size = 160 if backbone == 'DetectoRS' else 64
    outputs = model(torch.randn(2, 3, size, size))
    sum(y.square().mean() for y in outputs).backward()
    name = {'SAC': 'sac_block'}.get(block, block.lower())
    found = [p for n, p in model.named_parameters() if f'.{name}.' in n]
    assert found and all(p.grad is not None for p in found)


@pytest.mark.parametrize('backbone', WRONGLY_SIZED)
def test_positions_that_mmdetection_sizes_wrongly_are_refused(backbone):
    model = build(WRONGLY_SIZED[backbone], (BLOCKS['PRM'], 'after_conv2'))
    with pytest.raises(ValueError, match=r'PRM: the input must be of shape .* got'):
        model(torch.randn(2, 3, 160, 160))
    model = build(WRONGLY_SIZED[backbone], (BLOCKS['PRM'], 'after_conv3'))
    assert model(torch.randn(2, 3, 160, 160))[-1].shape[1] == 512


def test_two_plugins_at_once():
    model = build(
        NARROW, (BLOCKS['SAC'], 'after_conv2'), (BLOCKS['PRM'], 'after_conv3')
    )
    block = model.layer3[0]
    assert block.after_conv2_plugin_names == ['sac_block']
    assert block.after_conv3_plugin_names == ['prm']
    assert model(torch.randn(2, 3, 64, 64))[-1].shape == (2, 512, 2, 2)


def test_sac_stays_the_identity_under_the_backbones_initialisation():
    # ResNet(init_cfg=None) gives Kaiming weights to every convolution in it.
    model = build(NARROW, (BLOCKS['SAC'], 'after_conv2'))
    model.init_weights()
    blocks = [m for m in model.modules() if type(m).__name__ == 'SAC']
    assert len(blocks) == 4 + 6 + 3
    for block in blocks:
        x = torch.randn(1, block.in_channels, 3, 4)
        assert torch.equal(block(x), x)
        assert block.attention.weight.any()


def test_frozen_stages_freeze_a_plugin_in_c2():
    plugins = [dict(cfg=BLOCKS['PRM'], position='after_conv3')]
    model = MODELS.build(dict(NARROW, frozen_stages=1, plugins=plugins))
    assert not any(p.requires_grad for p in model.layer1[0].prm.parameters())
    assert all(p.requires_grad for p in model.layer2[0].prm.parameters())
