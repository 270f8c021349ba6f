"""Plugin blocks of a training: whether they are trained, and where they are placed."""

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from tiny_training import run
from torch import nn

from prm_mmdet.launch import RunError, TrainRunner
from prm_mmdet.launch.plugin_blocks import check_stages, plugin_blocks
from prm_mmdet.plugins import LCT


class Network(BaseModel):
    """Blocks of which one is used, one is not, and one is frozen."""

    def __init__(self, used=('used', 'frozen')):
        super().__init__()
        self.conv = ConvModule(4, 4, 1)
        self.blocks = nn.ModuleDict(
            {n: LCT(4, 2) for n in ('used', 'unused', 'frozen')}
        )
        self.blocks['frozen'].requires_grad_(False)
        self.use = used

    def forward(self, inputs, mode='tensor'):
        x = self.conv(torch.stack(list(inputs)))
        for name in self.use:
            x = self.blocks[name](x)
        return dict(loss=x.square().mean()) if mode == 'loss' else list(x)


def log_of(folder, model):
    run(folder, 2, model).train()
    return next(folder.glob('*/*.log')).read_text()


def test_blocks_that_are_not_trained_are_named_once(tmp_path):
    log = log_of(tmp_path, Network())
    assert log.count('got no gradient') == 1
    assert '1 plugin blocks (blocks.unused) got no gradient in the first' in log
    assert '1 plugin blocks (blocks.frozen) are frozen' in log


def test_trained_blocks_are_not_named(tmp_path):
    model = Network(('used', 'unused', 'frozen'))
    model.blocks['frozen'].requires_grad_(True)
    assert 'plugin blocks' not in log_of(tmp_path, model)
    assert not any(p._backward_hooks for p in model.parameters())


def test_layers_of_mmcv_are_no_plugin_blocks():
    found = plugin_blocks(Network())
    assert list(found) == ['blocks.used', 'blocks.unused', 'blocks.frozen']


@pytest.mark.parametrize(
    'backbone, stages, fits',
    [
        (dict(type='TridentResNet', num_stages=3), (False, True, True, True), False),
        (dict(type='mmdet.TridentResNet', num_stages=3), (False, True, True), True),
        (dict(type='ResNet'), (False, True, True), False),
        (dict(type='ResNet'), (False, True, True, True), True),
        (dict(type='ResNet'), None, True),
        (dict(type='SomebodysBackbone'), (True,), True),
    ],
)
def test_stages_of_another_number_are_refused(backbone, stages, fits):
    block = dict(type='prm_mmdet.SAC')
    plugin = dict(cfg=block, stages=stages, position='after_conv2')
    cfg = Config(dict(model=dict(backbone=dict(backbone, plugins=[plugin]))))
    if fits:
        check_stages(cfg)
    else:
        with pytest.raises(RunError, match=r'model\.backbone\.plugins: stages=.* each'):
            check_stages(cfg)


@pytest.mark.parametrize(
    'options, position, message',
    [
        (
            dict(reductoin=4),
            'after_conv2',
            "SAC has no option 'reductoin'; its options are reduction, softmax, ",
        ),
        ({}, 'after_conv9', "the position is 'after_conv9', and must be one of "),
    ],
)
def test_wrong_options_and_positions_are_named(options, position, message):
    plugin = dict(cfg=dict(type='prm_mmdet.SAC', **options), position=position)
    cfg = Config(dict(model=dict(backbone=dict(type='ResNet', plugins=[plugin]))))
    with pytest.raises(RunError, match=rf'model\.backbone\.plugins: {message}'):
        check_stages(cfg)


@pytest.mark.parametrize(
    'block, message',
    [
        (dict(type='prm_mmdet.SACC'), r'near it: prm_mmdet\.SAC'),
        (dict(type='prm_mmdet.LCT', groups=7), 'groups'),
    ],
)
def test_a_wrong_block_stops_a_training_with_a_message(tmp_path, block, message):
    plugin = dict(cfg=block, position='after_conv3')
    model = dict(type='mmdet.ResNet', depth=50, base_channels=4, plugins=[plugin])
    with pytest.raises(RunError, match=f"the config's model cannot be .*{message}"):
        TrainRunner(model, str(tmp_path), experiment_name=tmp_path.name)


def test_an_error_inside_a_models_code_keeps_its_kind(tmp_path):
    @MODELS.register_module(force=True)
    def looks_up_nothing():
        return {}['key']

    with pytest.raises(KeyError, match='key'):
        TrainRunner(dict(type='looks_up_nothing'), str(tmp_path))
