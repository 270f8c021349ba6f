"""Finding and inheriting the configs, from a checkout and from a wheel."""

import copy
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
from conftest import CONFIGS, ROOT
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

import prm_mmdet
from prm_mmdet import config_path, load_config


def test_path_and_content():
    name = 'sac/mask-rcnn_r50-sac-c3-c5_fpn_1x_coco.py'
    assert config_path(name) == str(ROOT / 'configs' / name)
    plugins = load_config(name)['model']['backbone']['plugins']
    assert [p['cfg']['type'] for p in plugins] == ['prm_mmdet.SAC']


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(FileNotFoundError, match='mask-rcnn_r50-sac-c3-c5_fpn_1x_coco'):
        config_path('sac/mask_rcnn_r50_sac_c3_c5_fpn_1x_coco.py')
    with pytest.raises(FileNotFoundError, match='they are in'):
        config_path('../setup.py')


RECIPES = {  # epochs, images a GPU, learning rate, images a step
    '4xb2-1x': (12, 2, 0.01, 8),
    '4xb2-ms-1x': (12, 2, 0.01, 8),
    '4xb1-1x': (12, 1, 0.005, 4),
    '2x': (24, 2, 0.02, 16),
    '1x': (12, 2, 0.02, 16),
}


@pytest.mark.parametrize(
    'name', [n for n in CONFIGS if re.search('/mask-rcnn_r50.*c3-c5_fpn_1x', n)]
)
def test_blocks_stand_in_the_stages_that_the_name_says(name):
    register_all_modules()
    cfg = Config.fromfile(config_path(name)).model.backbone
    with torch.device('meta'):
        model = MODELS.build(cfg)
    (plugin,) = cfg.plugins
    block = plugin.cfg.type.split('.')[-1]
    stages = [
        n.split('.')[0] for n, m in model.named_modules() if type(m).__name__ == block
    ]
    assert set(stages) == {'layer2', 'layer3', 'layer4'} and len(stages) == 13


DETECTORS = [n for n in CONFIGS if not n.startswith(('demo/', 'imagenet/'))]
CLASSIFIERS = [n for n in CONFIGS if n.startswith('imagenet/')]


@pytest.mark.parametrize('name', DETECTORS)
def test_every_row_is_what_its_name_says(name):
    cfg = Config.fromfile(config_path(name))
    detector, backbone, rest = name.split('/')[1].split('_', 2)
    recipe = rest[len('fpn_') : -len('_coco.py')]
    epochs, images, rate, step = RECIPES[recipe]
    if detector == 'retinanet' and recipe in ('1x', '2x'):
        rate = 0.01
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.train_dataloader.batch_size == images
    assert cfg.optim_wrapper.optimizer.lr == rate
    assert cfg.auto_scale_lr.base_batch_size == step
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 0.0001)

    settings = cfg.model.backbone
    if settings.type == 'prm_mmdet.Plugged':
        assert backbone.endswith('c2-c4')
        assert [p['at'] for p in settings.plugins] == ['layer[1-3]']
        settings = settings.model
    assert settings.depth == (50 if backbone.startswith('r50') else 101)
    assert settings.frozen_stages == 1 and settings.norm_eval
    _check_version(cfg, detector, legacy=recipe != '1x')

    plugins = settings.get('plugins') or []
    placed = {'c3-c5': (False, True, True, True), 'c2-c5': (True, True, True, True)}
    expected = [placed[c] for c in placed if backbone.endswith(c)]
    if backbone.endswith('dconv-c3-c5'):
        assert settings.stage_with_dcn == expected.pop()
    assert [tuple(p.stages) for p in plugins] == expected
    for plugin in plugins:
        block = plugin.cfg.type
        position = 'after_conv2' if block == 'prm_mmdet.SAC' else 'after_conv3'
        for stated in ('after-conv2', 'after-conv3'):
            if stated in backbone:
                position = stated.replace('-', '_')
        assert plugin.position == position


def _check_version(cfg, detector, legacy):
    """The settings of MMDetection 1.x, or those of 3."""
    assert ('LegacyDeltaXYWHBBoxCoder' in str(cfg.to_dict())) == legacy
    train_cfg = cfg.model.train_cfg
    if detector == 'retinanet':
        assert train_cfg.allowed_border == -1
        return
    cascade = 'cascade' in detector
    assert train_cfg.rpn.allowed_border == (0 if legacy or cascade else -1)
    stages = train_cfg.rcnn if cascade else [train_cfg.rcnn]
    ious = [(s.assigner.pos_iou_thr, s.assigner.min_pos_iou) for s in stages]
    assert ious == [(0.5, 0.5), (0.6, 0.6), (0.7, 0.7)][: len(stages)]
    for stage in stages:
        # MMDetection 3 keeps low-quality matches in Mask R-CNN alone.
        assert stage.assigner.match_low_quality == (legacy or detector == 'mask-rcnn')
        assert stage.get('mask_size') == (28 if 'mask' in detector else None)
    assert train_cfg.rpn_proposal.max_per_img == (2000 if legacy or cascade else 1000)


IMAGENET_RECIPES = {  # images a GPU, images a step, epochs of warm-up
    '8xb32-100e': (32, 256, 0),
    '4xb64-100e': (64, 256, 0),
    '4xb55-100e': (55, 220, 0),
    '4xb64-100e-warmup': (64, 256, 5),
}
NETWORKS = {
    'resnet18': dict(type='mmdet.ResNet', depth=18),
    'resnet50': dict(type='mmdet.ResNet', depth=50),
    'resnet101': dict(type='mmdet.ResNet', depth=101),
    'mobilenet-v2': dict(type='mmdet.MobileNetV2'),
    'mnasnet': dict(type='prm_mmdet.MnasNet'),
}
BLOCKS = {
    **{n: f'prm_mmdet.{n.upper()}' for n in ('prm', 'lct', 'sac', 'se', 'ge', 'sge')},
    **{n: f'prm_mmdet.{n.upper()}' for n in ('gc', 'cbam', 'bam')},
    'da': 'prm_mmdet.DoubleAttention',
}
SWITCHES = {
    'cosine': dict(similarity='cosine'),
    'l1': dict(similarity='l1'),
    'similarity': dict(position_encoding=False, normalization=False),
    'no-norm': dict(normalization=False),
    'no-position': dict(position_encoding=False),
    'no-transform': dict(transform=False),
    'plus': dict(groups=64),
    'w0-b0': dict(init_weight=0, init_bias=0),
    'w1-b0': dict(init_weight=1, init_bias=0),
    **{f'g{g}': dict(groups=g) for g in (1, 4, 8, 16, 32, 128)},
}
CLASSIFIER = re.compile(
    rf'({"|".join(NETWORKS)})(?:-([a-z]+)(?:-({"|".join(SWITCHES)}))?'
    r'(?:-(c\d(?:-c\d)?))?)?_([^_]+)_imagenet\.py'
)


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_every_classifier_is_what_its_name_says(name):
    network, block, switch, stages, recipe = CLASSIFIER.fullmatch(
        name.split('/')[1]
    ).groups()
    cfg = Config.fromfile(config_path(name))
    images, step, warm_up = IMAGENET_RECIPES[recipe]
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr.base_batch_size == step
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0001
    )
    *first, drops = cfg.param_scheduler
    assert (drops.milestones, drops.gamma) == ([30, 60, 90], 0.1)
    assert [s.end for s in first] == ([warm_up] if warm_up else [])

    # LCT and SAC sample their crops from images of 256 x 256.
    crop = cfg.train_dataloader.dataset.pipeline[0]
    assert (crop.size, crop.get('image_size')) == (224, None if images == 32 else 256)

    settings = cfg.model.backbone
    plugins = settings.get('plugins', [])
    plugged = settings.type == 'prm_mmdet.Plugged'
    settings = settings.model if plugged else settings
    expected = NETWORKS[network]
    if (block, stages) == ('sac', 'c2-c4') and network != 'resnet18':
        expected = dict(expected, type='prm_mmdet.LastBlockResNet')
    if block == 'sk':
        expected, block = dict(expected, type='prm_mmdet.SKResNet'), None
    assert {key: settings[key] for key in expected} == expected
    if 'resnet' in network:
        assert not settings.norm_eval and not settings.zero_init_residual

    if block is None:
        assert not plugins
        return
    arguments = SWITCHES.get(switch, {})
    for plugin in plugins:
        found = dict(plugin.cfg)
        assert found.pop('type') == BLOCKS[block]
        assert found.pop('ratio', None) == (1 / 16 if block == 'gc' else None)
        if block in ('prm', 'lct') and network in ('mobilenet-v2', 'mnasnet'):
            assert found.pop('groups') == 8
        elif (network, block) == ('resnet18', 'lct'):
            assert found.pop('groups') == 32
        elif (switch, plugin.get('at')) == ('g128', r'layer1\.\d+\.bn2'):
            assert found.pop('groups') == 64  # no more heads than channels
            continue
        assert found == arguments
    where = [
        (p.get('at'), p.get('blocks'), p.get('position'), p.get('stages'))
        for p in plugins
    ]
    assert where == _places(network, block, switch, stages)


def _places(network, block, switch, stages):
    """Where the plugins of a classifier stand: at, blocks, position and stages."""
    if network in ('mobilenet-v2', 'mnasnet'):
        layers = '[2-7]' if network == 'mnasnet' else '[1-7]'
        last = block == 'sac'
        at = rf'layer{"[235]" if last else layers}\.\d+\.linear_conv'
        return [(at, 'last' if last else None, None, None)]
    one_stage = len(stages) == 2
    if (network, block) == ('resnet18', 'sac'):
        return [(r'layer[1-3]\.\d+\.bn2', 'last', None, None)]
    if block == 'sac':
        ends = (int(stages[1]), int(stages[-1]))
        used = tuple(ends[0] <= stage <= ends[1] for stage in range(2, 6))
        return [(None, None, 'after_conv2', used)]
    if stages == 'c2-c4':
        if block == 'bam':
            return [('layer[1-3]', None, None, None)]
        return [(r'layer[1-3]\.\d+', 'last', None, None)]
    if network == 'resnet18':
        layers = ('1', '[2-4]') if switch == 'g128' else ('[1-4]',)
        return [(rf'layer{n}\.\d+\.bn2', None, None, None) for n in layers]
    only = tuple(i == int(stages[1]) - 2 for i in range(4)) if one_stage else None
    return [(None, None, 'after_conv3', only)]


def test_data_root_from_the_environment(monkeypatch):
    name = config_path('sac/mask-rcnn_r50-sac-c3-c5_fpn_1x_coco.py')
    assert Config.fromfile(name).train_dataloader.dataset.data_root == 'data/coco/'
    monkeypatch.setenv('MMDET_DATASETS', '/somewhere/coco')  # no slash at the end
    cfg = Config.fromfile(name)
    for phase in ('train', 'val', 'test'):
        dataset = cfg[f'{phase}_dataloader'].dataset
        assert dataset.data_root == '/somewhere/coco/'
    annotations = '/somewhere/coco/annotations/instances_val2017.json'
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == annotations


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Folder with the package as a wheel installs it."""
    folder = tmp_path_factory.mktemp('installed')
    wheels = tmp_path_factory.mktemp('wheels')
    pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
    source = tmp_path_factory.mktemp('source') / 'prm_mmdet'
    # From a copy: pip builds in place, and would leave build/ in the checkout.
    tracked = ['prm_mmdet', 'configs', 'tools', 'setup.py', 'pyproject.toml']
    source.mkdir()
    for name in [*tracked, 'README.md', 'MANIFEST.in', 'LICENSE']:
        subprocess.run(['cp', '-r', ROOT / name, source], check=True)
    wheel = ['wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', wheels]
    # Without a compiler, the wheel has no CPU kernels. Their compilation takes long.
    env = {**os.environ, 'CC': 'false', 'CXX': 'false'}
    subprocess.run([*pip, *wheel, source], check=True, env=env)
    install = ['install', '--no-deps', '--no-index', '--target', folder]
    subprocess.run([*pip, *install, *wheels.glob('*.whl')], check=True)
    return folder


CLASSIC = """
_base_ = __import__('prm_mmdet').config_path(
    'sac/mask-rcnn_r50-sac-c3-c5_fpn_1x_coco.py')
model = dict(backbone=dict(init_cfg=None))
"""
PURE = """
from mmengine.config import read_base

with read_base():
    from prm_mmdet.configs.sac.mask_rcnn_r50_sac_c3_c5_fpn_1x_coco import *

model.update(dict(backbone=dict(init_cfg=None)))
"""
CHECK = """
import prm_mmdet
from mmengine.config import Config
from mmdet.registry import MODELS
cfg = Config.fromfile({config!r})
from mmdet.utils import register_all_modules
register_all_modules()
assert cfg.model.backbone.init_cfg is None
backbone = MODELS.build(cfg.model.backbone)
print(type(backbone.layer2[0].sac_block).__module__, prm_mmdet.__file__)
print(cfg.train_dataloader.batch_size, cfg.optim_wrapper.optimizer.lr)
"""


@pytest.mark.parametrize('text', [CLASSIC, PURE], ids=['classic', 'pure Python'])
def test_inheriting_from_an_installed_package(installed, run_python, tmp_path, text):
    (tmp_path / 'mine.py').write_text(text)
    env = {**os.environ, 'PYTHONPATH': str(installed)}
    output = run_python('-c', CHECK.format(config='mine.py'), env=env).stdout
    where, what = output.splitlines()[-2:]
    assert where == f'prm_mmdet.plugins.sac {installed}/prm_mmdet/__init__.py'
    assert what == '2 0.02'


def test_a_wheel_carries_configs_and_tools(installed):
    mim = installed / 'prm_mmdet' / '.mim'
    for name in CONFIGS:
        assert (mim / 'configs' / name).read_bytes() == (
            ROOT / 'configs' / name
        ).read_bytes()
    shipped = {p.name for p in (mim / 'tools').iterdir()}
    assert {'train.py', 'test.py', 'dist_train.sh', 'slurm_test.sh'} <= shipped
    assert 'setup_env.py' not in shipped
    assert os.access(mim / 'tools' / 'dist_train.sh', os.X_OK)


def test_installing_asks_for_neither_mmcv_nor_a_version_of_torch(installed):
    metadata = next(installed.glob('prm_mmdet-*.dist-info')) / 'METADATA'
    lines = metadata.read_text().splitlines()
    needs = [n.split(':')[1].strip() for n in lines if n.startswith('Requires-Dist')]
    assert not any(n.startswith('mmcv') for n in needs)
    assert [n for n in needs if n.startswith('torch')] == ['torch>=2.0']
    assert 'License: Apache-2.0' in lines and 'Requires-Python: >=3.9' in lines


# Class objects instead of names, from each place that they can be imported from.
IMPORTS = {
    'package': 'from prm_mmdet import LCT, PRM, SAC, Plugged',
    'subpackages': """from prm_mmdet.insertion import Plugged
from prm_mmdet.plugins import LCT, PRM, SAC""",
    'modules': """from prm_mmdet.insertion.attach import Plugged
from prm_mmdet.plugins.lct import LCT
from prm_mmdet.plugins.prm import PRM
from prm_mmdet.plugins.sac import SAC""",
}
OBJECTS = """
from mmdet.models import ResNet
from mmengine.config import read_base
{imports}

with read_base():
    from .base import *

model.backbone = dict(
    type=Plugged,
    model=dict(
        type=ResNet,
        depth=50,
        base_channels=16,
        plugins=[
            dict(
                cfg=dict(type=SAC),
                stages=(False, True, True, True),
                position='after_conv2',
            ),
            dict(
                cfg=dict(type=PRM, groups=4),
                stages=(False, False, True, True),
                position='after_conv3',
            ),
        ],
    ),
    plugins=[
        dict(cfg=dict(type=LCT, groups=8), at=r'layer4\\.\\d+', blocks='last'),
        dict(cfg=dict(type=SAC, postfix='_level'), at=''),
    ],
)
"""


def blocks_of(cfg):
    """Names and types of the blocks in a config's backbone, all of which are there."""
    backbone = MODELS.build(cfg.model.backbone)
    blocks = (prm_mmdet.LCT, prm_mmdet.PRM, prm_mmdet.SAC)
    found = [(n, type(m)) for n, m in backbone.named_modules() if type(m) in blocks]
    assert ('layer2.0.sac_block', prm_mmdet.SAC) in found
    assert ('layer4.2.prm', prm_mmdet.PRM) in found
    assert ('layer4.2.lct', prm_mmdet.LCT) in found
    assert ('sac_block_level.3', prm_mmdet.SAC) in found
    assert len(found) == 13 + 9 + 1 + 4
    return found


@pytest.fixture
def objects(tmp_path, unformatted_configs):
    """A config with class objects, over the demo's."""

    def write(imports='package'):
        base = Config.fromfile(config_path('demo/mask-rcnn_r50_fpn_demo.py'))
        base.dump(tmp_path / 'base.py')
        path = tmp_path / 'mine.py'
        path.write_text(OBJECTS.format(imports=IMPORTS[imports]))
        return path

    return write


@pytest.mark.parametrize('imports', IMPORTS)
def test_class_objects_build_and_survive_dumping(objects, tmp_path, imports):
    register_all_modules()
    cfg = Config.fromfile(objects(imports))
    assert cfg.model.backbone.type is prm_mmdet.Plugged
    cfg.dump(tmp_path / 'dumped.py')  # as MMEngine's Runner does
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    assert dumped.model.backbone.type.endswith('.Plugged')
    built = blocks_of(cfg)
    for copied in (copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg)), dumped):
        assert blocks_of(copied) == built


def test_class_objects_train(objects, run_python, demo_options, tmp_path):
    work = tmp_path / 'work'
    train = [ROOT / 'tools' / 'train.py', objects(), '--work-dir', work, *demo_options]
    run_python(*train, 'train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=2')
    weights = torch.load(work / 'epoch_1.pth', weights_only=True)['state_dict']
    cfg = Config.fromfile(work / 'mine.py')
    blocks_of(cfg)
    model = MODELS.build(cfg.model)
    model.load_state_dict(weights)
    assert model.backbone.sac_block_level[3].transform.weight.any()  # it was zero
