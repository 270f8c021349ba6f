"""Networks of MMDetection with plugins where it cannot put them.

``pytest -v tests/test_insertion/test_networks.py`` prints a line for every network:
built with unchanged keys, trained a step, and ONNX equal.
"""

import itertools

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from onnx_cases import agree, exercise, session, to_onnx

register_all_modules()

# Groups that divide the few channels of the narrow networks here.
BLOCKS = {
    'PRM': dict(type='prm_mmdet.PRM', groups=4),
    'LCT': dict(type='prm_mmdet.LCT', groups=4),
    'SAC': dict(type='prm_mmdet.SAC'),
}


def stage(name, branches, blocks=1, block='BASIC'):
    settings = dict(num_modules=1, num_branches=branches, block=block)
    channels = [8 << i for i in range(branches)]
    settings.update(num_blocks=[blocks] * branches, num_channels=channels)
    return {name: settings}


CHANNELS = [8, 16, 32, 64]
LAST = dict(at=r'layer[2-4]\.\d+', blocks='last')
# Two stages of a narrow ResNet-50.
SHORT = dict(depth=50, base_channels=16, num_stages=2, out_indices=(0, 1))
SHORT.update(strides=(1, 2), dilations=(1, 1))
# Each network with what its plugins follow.
NETWORKS = {
    'ResNet-18': (
        dict(type='ResNet', depth=18, base_channels=16),
        dict(at=r'layer[2-4]\.\d+\.bn2'),
    ),
    'ResNeXt': (dict(SHORT, type='ResNeXt', groups=4, base_width=4), LAST),
    'RegNet': (dict(type='RegNet', arch='regnetx_400mf'), LAST),
    'Res2Net': (dict(SHORT, type='Res2Net', scales=4, base_width=26), LAST),
    'ResNeSt': (dict(SHORT, type='ResNeSt', stem_channels=16, radix=2), LAST),
    'HRNet': (
        dict(
            type='HRNet',
            extra=dict(
                **stage('stage1', 1, 1, 'BOTTLENECK'),
                **stage('stage2', 2),
                **stage('stage3', 3),
                **stage('stage4', 4),
            ),
        ),
        dict(at=r'stage[2-4]\.0'),  # each returns a list of maps
    ),
    'MobileNetV2': (
        dict(type='MobileNetV2', widen_factor=0.5),
        dict(at=r'layer[3-7]\.\d+', blocks='last'),
    ),
    'CSPDarknet': (
        dict(type='CSPDarknet', deepen_factor=0.33, widen_factor=0.25),
        dict(at=r'stage[2-4]\.\d+', blocks='last'),
    ),
    'CSPNeXt': (
        dict(type='CSPNeXt', deepen_factor=0.167, widen_factor=0.25),
        dict(at=r'stage[2-4]\.\d+', blocks='last'),
    ),
    'Swin': (
        dict(
            type='SwinTransformer',
            embed_dims=16,
            depths=(1, 1, 1, 1),
            num_heads=(1, 1, 1, 1),
        ),
        dict(at=''),
    ),
    'PVT': (
        dict(
            type='PyramidVisionTransformer',
            embed_dims=8,
            num_layers=(1, 1, 1, 1),
            num_heads=(1, 1, 1, 1),
            pretrain_img_size=64,
        ),
        dict(at=''),
    ),
    'EfficientNet': (dict(type='EfficientNet', arch='b0'), dict(at=r'layers\.[3-5]')),
    'FPN': (
        dict(type='FPN', in_channels=CHANNELS, out_channels=16, num_outs=5),
        dict(at=''),
    ),
    'PAFPN': (
        dict(type='PAFPN', in_channels=CHANNELS, out_channels=16, num_outs=5),
        dict(at=r'pafpn_convs\.\d'),
    ),
    'YOLOXPAFPN': (
        dict(type='YOLOXPAFPN', in_channels=CHANNELS[1:], out_channels=16),
        dict(at=''),
    ),
    'CSPNeXtPAFPN': (
        dict(type='CSPNeXtPAFPN', in_channels=CHANNELS[1:], out_channels=16),
        dict(at=r'(top_down|bottom_up)_blocks\.\d'),
    ),
}

# What MMDetection computes in Python and TorchScript's exporter makes a constant: these
# networks run from ONNX files at the size of the export alone, with plugins or without.
TIED = {
    'Swin': 'numbers of windows, and from them the batch',
    'PVT': 'heights and widths of the token maps',
    'EfficientNet': 'the padding of its convolutions',
}

# Insertion depends on the network, not on the block: one block for each network.
every_network = pytest.mark.parametrize(
    ('network', 'block'), list(zip(NETWORKS, itertools.cycle(BLOCKS)))
)


def build(network, block=None):
    cfg, where = NETWORKS[network]
    torch.manual_seed(0)
    if block is None:
        return MODELS.build(cfg)
    plugin = dict(where, cfg=BLOCKS[block])
    return MODELS.build(dict(type='prm_mmdet.Plugged', model=cfg, plugins=[plugin]))


def example(network, batch=2, height=64, width=64):
    """An image, or for a neck maps of it, the last of stride 16."""
    torch.manual_seed(1)
    channels = NETWORKS[network][0].get('in_channels')
    if channels is None:
        return torch.randn(batch, 3, height, width)
    return tuple(
        torch.randn(batch, c, height // 16 << i, width // 16 << i)
        for i, c in zip(reversed(range(len(channels))), channels)
    )


def plugin_keys(model):
    """Keys of the model's plugins, by the names of the blocks."""
    words = ('prm', 'lct', 'sac_block')
    return {
        k
        for k in model.state_dict()
        if any(part.endswith(words) for part in k.split('.')[:-1])
    }


@every_network
def test_built_with_unchanged_keys(network, block):
    plain, model = build(network), build(network, block)
    assert type(model) is type(plain)
    keys = plugin_keys(model)
    assert keys
    assert list(plain.state_dict()) == [k for k in model.state_dict() if k not in keys]
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert set(result.missing_keys) == keys and not result.unexpected_keys
    plain.eval()
    model.eval()
    y, expected = model(example(network)), plain(example(network))
    assert type(y) is type(expected)
    for a, b in zip(y, expected):
        assert a.shape == b.shape
        if block == 'SAC':  # a fresh one is the identity
            assert torch.equal(a, b)


@every_network
def test_trained_a_step(network, block):
    model = build(network, block)
    model.init_weights()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sum(y.square().mean() for y in model(example(network))).backward()
    optimizer.step()
    keys = plugin_keys(model)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if name in keys:
            assert parameter.grad is not None, name


@every_network
@pytest.mark.usefixtures('quiet_export')
def test_onnx_equal(network, block):
    model = exercise(build(network, block))
    runner = session(to_onnx(model, example(network)))
    assert agree(runner, model, example(network))
    if network not in TIED:
        assert agree(runner, model, example(network, 3, 96, 160))


@pytest.mark.parametrize('network', TIED)
@pytest.mark.usefixtures('quiet_export')
def test_networks_tied_to_a_size_are_so_without_plugins(network):
    model = exercise(build(network))
    runner = session(to_onnx(model, example(network)))
    assert agree(runner, model, example(network))
    try:
        also = agree(runner, model, example(network, 3, 96, 160))
    except Exception:  # onnxruntime's have no class of their own
        also = False
    assert not also, f'{network} is tied no longer: take it out of TIED'


def test_deformable_detr_trains_a_step():
    name = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
    cfg = Config.fromfile(Config._get_cfg_path(name, '')[0])
    cfg.model.backbone.init_cfg = None  # nothing to be downloaded
    plugins = [dict(LAST, cfg=BLOCKS['PRM'])]
    backbone = dict(type='prm_mmdet.Plugged', model=cfg.model.backbone, plugins=plugins)
    cfg.model.backbone = backbone
    cfg.model.num_queries = 10
    for part in (cfg.model.encoder, cfg.model.decoder):
        part.num_layers = 1
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    plugins = {n: p for n, p in model.named_parameters() if n in plugin_keys(model)}
    before = {name: p.detach().clone() for name, p in plugins.items()}
    inputs = demo_mm_inputs(1, [(3, 64, 64)], num_classes=4)
    losses = model.train_step(inputs, build_optim_wrapper(model, cfg.optim_wrapper))
    assert losses['loss'].isfinite()
    assert all(p.isfinite().all() for p in model.parameters())
    assert {name.split('.')[1] for name in plugins} == {'layer2', 'layer3', 'layer4'}
    for name, parameter in plugins.items():
        moved = not torch.equal(parameter, before[name])
        assert moved or not name.endswith('weight'), name
