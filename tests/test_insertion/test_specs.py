"""Specs that are wrong: what the message names."""

import pytest
import torch
from mmdet.models import ResNet
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from prm_mmdet import SAC, Plugged, attach_plugins

register_all_modules()

SAC_CFG = dict(type='prm_mmdet.SAC')
PRM_CFG = dict(type='prm_mmdet.PRM', groups=4)


def attach(spec, **settings):
    model = ResNet(18, base_channels=8)
    attach_plugins(model, [dict(dict(cfg=SAC_CFG, at='layer2'), **spec)], **settings)


def refused(words, spec, **settings):
    with pytest.raises(ValueError) as error:
        attach(spec, **settings)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('prm_mmdet.SCA', ["type='prm_mmdet.SCA' is not", 'near it: prm_mmdet.SAC']),
        ('prm_mmdet.sac', ['near it: prm_mmdet.SAC']),
        ('SCA', ['near it: SAC, prm_mmdet.SAC']),
        ('mmdet.FNP', ['near it:', 'mmdet.FPN']),
        ('nowhere.SAC', ["type='nowhere.SAC' is not in the registry"]),
        ('prm_mmdet.Plugged', ['must be a class or the name of one', 'Plugged']),
        (3, ['must be a class or the name of one, got 3']),
    ],
)
def test_types_that_are_no_plugin(kind, words):
    refused(["plugins[0], at='layer2': ", *words], dict(cfg=dict(type=kind)))


@pytest.mark.parametrize(
    ('cfg', 'words'),
    [
        (
            dict(PRM_CFG, group=8),
            ["PRM has no option 'group'; its options are groups, similarity,"],
        ),
        # MMCV's SAC is a convolution.
        (dict(type='SAC'), ["SAConv2d missing a required argument: 'out_channels'"]),
        (dict(SAC_CFG, in_channels=8), ['in_channels is found by itself; leave it']),
        ('prm_mmdet.SAC', ["such as dict(type='prm_mmdet.SAC'), got 'prm_mmdet.SAC'"]),
        (dict(groups=4), ['must be a dict with a type']),
        (None, ['must be a dict with a type', 'got None']),
        # Its class takes any keyword and fails inside.
        (dict(type='NonLocal2d', foo=1), ['of ResNet: 16 channels: NonLocal', "'foo'"]),
        (dict(type='NonLocal2d', mode='x'), ["NonLocal2d: Mode should be in 'gaus"]),
        (dict(SAC_CFG, reduction='x'), ['reduction must be', "got 'x'"]),
        (dict(SAC_CFG, postfix='.'), ["postfix='.' must not contain a dot"]),
        (dict(PRM_CFG, groups=7), ['of ResNet: 16 channels: PRM: groups=7']),
    ],
)
def test_options_that_a_plugin_does_not_take(cfg, words):
    refused(['plugins[0]', "'layer2'", *words], dict(cfg=cfg))


@pytest.mark.parametrize(
    ('spec', 'words'),
    [
        (dict(at=None), ['at must be a regular expression', 'got None']),
        (dict(at=['layer1']), ["such as 'layer[23]', got ['layer1']"]),
        (dict(blocks=0), ["must be 'last' or a list of indices, got 0"]),
        (dict(blocks=[]), ['indices, got []']),
        (dict(blocks=[True]), ['indices, got [True]']),
        (dict(blocks={0: 1}), ['indices, got {0: 1}']),
        (dict(stage=1), ['unknown stage; the known keys are cfg, at, blocks, levels']),
        (dict(levels=1), ['levels must be a list of indices, got 1']),
        (dict(levels=[]), ['levels must be a list of indices, got []']),
        (dict(levels=[0]), ["'layer2' of ResNet: levels chooses", 'returns one map']),
        (dict(at='', levels=[4]), ['levels=[4] is out of range: it returns 4 maps']),
        (dict(at='layer5'), ["plugins[0]: at='layer5' matches no", "'layer4'"]),
        (dict(at=r'layer2\.1\.bn3'), ['matches no submodule', "'layer2.1.bn2'"]),
        (dict(at='layer2.*'), ["'layer2' and 'layer2.0' in it"]),
        (dict(at='.*'), ["'' (the model itself) and 'conv1' in it"]),
        (dict(at='layer('), ['no regular expression', 'unterminated']),
        (dict(at=r'layer2\.\d', blocks=[2]), ['2 matches', 'layer2.0, layer2.1']),
        (dict(at=r'layer2\.\d', blocks='first'), ["'last' or a list", "'first'"]),
        (
            dict(at='', cfg=dict(PRM_CFG, groups=16)),
            ['8 channels: PRM: groups=16', 'groups=2 or 4 or 8, which fits all of'],
        ),
    ],
)
def test_places_that_are_none(spec, words):
    refused(['plugins[0]', *words], spec)


@pytest.mark.parametrize(
    'shape', [64, (), 'abc', (3, 0, 2), (3, 64), [(3, 64, 64), 3], [], (3, 64.0, 64)]
)
def test_input_shapes_that_are_none(shape):
    refused(
        [
            'input_shape must be (C, H, W), or a sequence of such shapes',
            f'got {shape!r}',
        ],
        {},
        input_shape=shape,
    )


@pytest.mark.parametrize(
    ('specs', 'message'),
    [
        (None, 'must be a list of dicts with cfg and at, got None'),
        ('layer2', "must be a list of dicts with cfg and at, got 'layer2'"),
        (dict(cfg=SAC_CFG, at=''), r"put the dict into one: \[{'cfg': .*}\]$"),
        (['layer2'], r"plugins\[0\]: must be a dict with cfg and at, got 'layer2'"),
        ([dict(cfg=SAC_CFG)], 'must be a dict with cfg and at'),
    ],
)
def test_specs_that_are_no_list_of_dicts(specs, message):
    with pytest.raises(ValueError, match=message):
        attach_plugins(ResNet(18, base_channels=8), specs)


def test_a_module_that_is_none():
    with pytest.raises(ValueError, match=r'must be an nn\.Module, got None'):
        attach_plugins(None, [])


def test_an_assertion_without_words_is_quoted():
    neck = dict(type='ChannelMapper', in_channels=[8, 16], out_channels=4)
    with pytest.raises(
        ValueError, match=r'AssertionError: assert len\(inputs\).*\[\(C, H, W\), \.\.\.'
    ):
        Plugged(neck, [dict(cfg=SAC_CFG, at='')])


def test_a_detectors_heads_can_be_plugged():
    # It gives them train_cfg and test_cfg, and the RPN its number of classes.
    path = Config._get_cfg_path('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '')
    cfg = Config.fromfile(path[0]).model
    cfg.backbone.update(init_cfg=None, depth=18)
    cfg.neck.in_channels = [64, 128, 256, 512]
    plugins = [dict(cfg=SAC_CFG, at='rpn_conv')]
    cfg.rpn_head = dict(type='prm_mmdet.Plugged', model=cfg.rpn_head, plugins=plugins)
    cfg.roi_head = dict(type='prm_mmdet.Plugged', model=cfg.roi_head, plugins=[])
    model = MODELS.build(cfg)
    assert type(model.rpn_head.rpn_conv.sac_block) is SAC
    assert model.rpn_head.train_cfg == cfg.train_cfg.rpn
    assert model.rpn_head.num_classes == 1
    assert model.roi_head.test_cfg == cfg.test_cfg.rcnn
    with torch.no_grad():
        scores, _ = model.rpn_head((torch.zeros(1, 256, 8, 8),))
    assert scores[0].shape == (1, 3, 8, 8)
    # What the model's config says itself, it keeps.
    caffe = dict(type='ResNet', depth=18, style='caffe')
    assert Plugged(caffe, [], style='pytorch').style == 'caffe'
