"""Finding and inheriting the configs, from a checkout and from a wheel."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

import prm_mmdet
from prm_mmdet import config_path, load_config

CONFIGS = sorted(
    p.relative_to(ROOT / 'configs').as_posix()
    for p in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in p.parts
)


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


BUILT = [n for n in CONFIGS if n.startswith('demo/') or 'mask-rcnn_r50' in n]
RECIPES = {  # epochs, images a GPU, learning rate, images a step
    '4xb2-1x': (12, 2, 0.01, 8),
    '4xb2-ms-1x': (12, 2, 0.01, 8),
    '4xb1-1x': (12, 1, 0.005, 4),
    '2x': (24, 2, 0.02, 16),
    '1x': (12, 2, 0.02, 16),
}


@pytest.mark.parametrize('name', [n for n in BUILT if 'c3-c5_fpn_1x' in n])
def test_blocks_stand_in_the_stages_that_the_name_says(name):
    register_all_modules()
    cfg = Config.fromfile(config_path(name))
    (plugin,) = cfg.model.backbone.plugins
    model = MODELS.build(cfg.model)
    block = plugin.cfg.type.split('.')[-1]
    stages = [
        n.split('.')[1] for n, m in model.named_modules() if type(m).__name__ == block
    ]
    assert set(stages) == {'layer2', 'layer3', 'layer4'} and len(stages) == 13


@pytest.mark.parametrize('name', [n for n in CONFIGS if not n.startswith('demo/')])
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
    legacy = 'LegacyDeltaXYWHBBoxCoder' in cfg.pretty_text
    assert legacy == (recipe != '1x')

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
    subprocess.run([*pip, *wheel, source], check=True)
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
model = MODELS.build(cfg.model)
print(type(model.backbone.layer2[0].sac_block).__module__, prm_mmdet.__file__)
print(cfg.train_dataloader.batch_size, cfg.optim_wrapper.optimizer.lr)
"""


@pytest.mark.parametrize('text', [CLASSIC, PURE], ids=['classic', 'pure Python'])
def test_inheriting_from_an_installed_package(installed, run_python, tmp_path, text):
    (tmp_path / 'mine.py').write_text(text)
    env = {**os.environ, 'PYTHONPATH': str(installed)}
    output = run_python('-c', CHECK.format(config='mine.py'), env=env).stdout
    where, what = output.splitlines()[-2:]
    assert where.split() == [
        'prm_mmdet.plugins.sac',
        f'{installed}/prm_mmdet/__init__.py',
    ]
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
    'subpackages': """from prm_mmdet.models import Plugged
from prm_mmdet.plugins import LCT, PRM, SAC""",
    'modules': """from prm_mmdet.models.plugged import Plugged
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


def blocks_of(backbone):
    blocks = (prm_mmdet.LCT, prm_mmdet.PRM, prm_mmdet.SAC)
    found = [(n, type(m)) for n, m in backbone.named_modules() if type(m) in blocks]
    assert ('layer2.0.sac_block', prm_mmdet.SAC) in found
    assert ('layer4.2.prm', prm_mmdet.PRM) in found
    assert ('layer4.2.lct', prm_mmdet.LCT) in found
    assert ('sac_block_level.3', prm_mmdet.SAC) in found
    assert len(found) == 13 + 9 + 1 + 4
    return found


@pytest.fixture
def objects(tmp_path):
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
    built = blocks_of(MODELS.build(cfg.model).backbone)
    for copied in (copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert blocks_of(MODELS.build(copied.model).backbone) == built
    cfg.dump(tmp_path / 'dumped.py')  # as MMEngine's Runner does
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    assert dumped.model.backbone.type.endswith('.Plugged')
    assert blocks_of(MODELS.build(dumped.model).backbone) == built


def test_class_objects_train(objects, run_python, demo_options, tmp_path):
    work = tmp_path / 'work'
    train = [ROOT / 'tools' / 'train.py', objects(), '--work-dir', work, *demo_options]
    run_python(*train, 'train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=2')
    weights = torch.load(work / 'epoch_1.pth', weights_only=True)['state_dict']
    model = MODELS.build(Config.fromfile(work / 'mine.py').model)
    blocks_of(model.backbone)
    model.load_state_dict(weights)
    assert model.backbone.sac_block_level[3].transform.weight.any()  # it was zero
