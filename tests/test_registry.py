"""The names users write."""

import pytest
from mmcv.cnn import build_plugin_layer
from mmcv.ops import SAConv2d
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope

import prm_mmdet

BUILD = """
from mmcv.cnn import build_plugin_layer
from mmengine.registry import DefaultScope
DefaultScope.get_instance('somewhere', scope_name={scope!r})
for kind in ('PRM', 'LCT', 'SAC'):
    cfg = dict(type='prm_mmdet.' + kind)
    name, block = build_plugin_layer(cfg, in_channels=128)
    print(name, type(block).__module__)
"""


@pytest.mark.parametrize('scope', ['mmdet', 'mmengine'])
def test_scoped_names_need_no_import(run_python, scope):
    output = run_python('-c', BUILD.format(scope=scope), fork=True)
    assert output.stdout.splitlines()[-3:] == [
        'prm prm_mmdet.plugins.prm',
        'lct prm_mmdet.plugins.lct',
        'sac_block prm_mmdet.plugins.sac',
    ]


@pytest.mark.parametrize(
    ('name', 'block'),
    [('PRM', prm_mmdet.PRM), ('LCT', prm_mmdet.LCT), ('SACBlock', prm_mmdet.SAC)],
)
def test_plain_names_after_import(name, block):
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert type(build_plugin_layer(dict(type=name), in_channels=128)[1]) is block


@pytest.mark.parametrize('scope', [None, 'mmdet'])
def test_plain_sac_stays_switchable_atrous_convolution(scope):
    with (
        DefaultScope.overwrite_default_scope(scope),
        ROOT_MODELS.switch_scope_and_registry(None) as registry,
    ):
        assert registry.get('SAC') is SAConv2d


def test_a_detectors_config_still_builds():
    register_all_modules()
    # Through '::', as another project's config would name it.
    path, _ = Config._get_cfg_path(
        'mmdet::detectors/detectors_cascade-rcnn_r50_1x_coco.py', ''
    )
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    cfg.model.neck.rfp_backbone.pretrained = None
    model = ROOT_MODELS.build(cfg.model)
    assert any(isinstance(m, SAConv2d) for m in model.backbone.modules())


def test_a_misspelt_block_in_a_config_is_named():
    register_all_modules()
    plugin = dict(
        cfg=dict(type='prm_mmdet.SACC'),
        stages=(False, True, True, True),
        position='after_conv3',
    )
    with pytest.raises(
        KeyError, match=r'prm_mmdet\.SACC is not .* near it: prm_mmdet\.SAC'
    ):
        ROOT_MODELS.build(dict(type='mmdet.ResNet', depth=50, plugins=[plugin]))


WITHOUT_MMDET = """
import importlib.util, sys
find = importlib.util.find_spec
missing = ('mmengine', 'mmcv', 'mmdet')
importlib.util.find_spec = lambda name: None if name in missing else find(name)
sys.modules.update(dict.fromkeys(missing))
import torch
import prm_mmdet
from prm_mmdet import ops
print(tuple(ops.lct(torch.ones(1, 4, 2, 2), torch.ones(4), torch.ones(4), 2).shape))
for name in ('SAC', 'attach_plugins', 'something'):
    try:
        getattr(prm_mmdet, name)
    except (ModuleNotFoundError, AttributeError) as error:
        print(error)
"""


def test_without_mmdetection_the_package_says_what_to_install(run_python):
    shape, *messages = run_python('-c', WITHOUT_MMDET).stdout.splitlines()
    assert shape == '(1, 4, 2, 2)'
    for name, message in zip(('SAC', 'attach_plugins'), messages):
        assert message.startswith(f'prm_mmdet.{name} requires mmengine, mmcv, mmdet,')
        assert 'Install MMDetection 3 with MMCV and MMEngine' in message
    assert "no attribute 'something'" in messages[2]
