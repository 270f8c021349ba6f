"""Where a block goes in configs that know nothing of it."""

import copy

import pytest
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from prm_mmdet.comparison.blocks import read_blocks
from prm_mmdet.comparison.placement import place

RESNET = dict(type='mmdet.ResNet', depth=50, base_channels=8)
BASIC = dict(type='mmdet.ResNet', depth=18, base_channels=16)
CSP = dict(type='mmdet.CSPNeXt', deepen_factor=0.167, widen_factor=0.25)
MOBILE = dict(type='mmdet.MobileNetV2', out_indices=(1, 2, 4, 6), widen_factor=0.5)


def placed(backbone, text, **where):
    model = ConfigDict(type='FasterRCNN', backbone=copy.deepcopy(backbone))
    before = copy.deepcopy(model)
    found = place(model, read_blocks([text], **where)[0])
    assert model == before  # the user's config stays as it is
    return found


def module(found, name):
    """A module of the backbone with the block."""
    return MODELS.build(found.model['backbone']).get_submodule(name)


def test_plugins_get_the_block_at_its_papers_place():
    sac = placed(RESNET, 'SAC')
    assert sac.model['backbone']['plugins'] == [
        dict(
            cfg=dict(type='prm_mmdet.SAC'),
            stages=(False, True, True, True),
            position='after_conv2',
        )
    ]
    assert module(sac, 'layer2.0.sac_block').in_channels == 16
    assert sac.count == 4 + 6 + 3
    prm = placed(RESNET, 'PRM')
    assert prm.model['backbone']['plugins'][0]['position'] == 'after_conv3'
    assert prm.count == 4 + 6 + 3


def test_choices_of_the_user():
    found = placed(RESNET, 'SAC reduction=4', position='after_conv3', stages=['c5'])
    plugin = found.model['backbone']['plugins'][0]
    assert plugin['stages'] == (False, False, False, True)
    assert plugin['position'] == 'after_conv3'
    assert plugin['cfg'] == dict(type='prm_mmdet.SAC', reduction=4)
    own = placed(RESNET, 'SAC position=after_conv1 stages=c3,c4', stages=['c5'])
    plugin = own.model['backbone']['plugins'][0]
    assert plugin['stages'] == (False, True, True, False)
    assert plugin['position'] == 'after_conv1'


def test_a_backbone_that_has_plugins_keeps_them():
    own = dict(cfg=dict(type='mmdet.DropBlock', drop_prob=0.1, block_size=3))
    backbone = dict(RESNET, plugins=[dict(own, position='after_conv1')])
    plugins = placed(backbone, 'SAC').model['backbone']['plugins']
    assert [p['cfg']['type'] for p in plugins] == ['mmdet.DropBlock', 'prm_mmdet.SAC']


@pytest.mark.parametrize(
    ('backbone', 'name', 'count'),
    [(BASIC, 'layer4.1.bn2.lct', 6), (CSP, 'stage4.2.lct', 3)],
)
def test_known_places_without_plugins(backbone, name, count):
    found = placed(backbone, 'LCT')
    assert found.model['backbone']['type'] == 'prm_mmdet.Plugged'
    assert type(module(found, name)).__name__ == 'LCT'
    assert found.count == count


def test_other_backbones_get_the_block_behind_their_maps():
    found = placed(MOBILE, 'LCT')
    assert 'output maps of MobileNetV2: c3, c4, c5' in found.where
    assert found.count == 3
    # The largest number of groups that fits 16, 48 and 160 channels.
    assert found.chosen == dict(groups=8)
    assert placed(dict(RESNET, base_channels=32), 'PRM groups=8').chosen == {}
    assert placed(dict(RESNET, base_channels=32), 'PRM').chosen == {}
    neck = dict(type='FPN', start_level=2)  # leaves two maps out
    found = place(ConfigDict(backbone=MOBILE, neck=neck), read_blocks(['SAC'])[0])
    assert found.where.endswith('c4, c5')


@pytest.mark.parametrize(
    ('backbone', 'text', 'where', 'message'),
    [
        (RESNET, 'PRM groups=7', {}, 'groups=7'),
        (RESNET, 'SAC reduktion=2', {}, "no option 'reduktion'; .* reduction, "),
        (RESNET, 'SAC', dict(stages=['c7']), "no stage 'c7'. Choose from c2, c3"),
        (RESNET, 'SAC', dict(at=r'layer9'), 'layer9'),
        (MOBILE, 'SAC', dict(stages=['c6']), "no stage 'c6'"),
    ],
)
def test_what_cannot_be_placed(backbone, text, where, message):
    with pytest.raises(ValueError, match=message):
        placed(backbone, text, **where)


def test_a_detector_without_backbone():
    with pytest.raises(ValueError, match='no backbone'):
        place(ConfigDict(type='Something'), read_blocks(['SAC'])[0])


def test_a_backbone_inside_another_model():
    model = ConfigDict(type='SoftTeacher', detector=dict(backbone=RESNET))
    found = place(model, read_blocks(['SAC'])[0])
    assert found.model['detector']['backbone']['plugins']


@pytest.mark.parametrize(
    ('texts', 'message'),
    [
        (['SACC'], "no block 'SACC'. Choose from BAM, CBAM"),
        (['SAC', 'SAC'], 'twice'),
        (['SAC reduction'], "'reduction' in 'SAC reduction'"),
        (['none'], 'always run'),
    ],
)
def test_texts_that_name_no_block(texts, message):
    with pytest.raises(ValueError, match=message):
        read_blocks(texts)


def test_a_foreign_plugin():
    found = placed(RESNET, 'ContextBlock ratio=0.25')
    assert found.model['backbone']['plugins'][0]['cfg']['ratio'] == 0.25
