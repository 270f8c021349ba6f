"""Backbones with plugins as ONNX files, exported programs and traces: at other sizes
than they were exported at, and without this package."""

import pytest
import torch
from mmdet.models import ResNet
from mmdet.utils import register_all_modules
from onnx_cases import OPSET, agree, exercise, session, to_onnx

from prm_mmdet import LCT, PRM, SAC, attach_plugins
from prm_mmdet.plugins import BAM, CBAM, SE, DoubleAttention

register_all_modules()

pytestmark = pytest.mark.usefixtures('quiet_export')

BLOCKS = {
    'PRM': dict(type='prm_mmdet.PRM', groups=4),
    'LCT': dict(type='prm_mmdet.LCT', groups=4),
    'SAC': dict(type='prm_mmdet.SAC'),
}
# Exported at the first.
SIZES = [
    (2, 3, 64, 96),
    (1, 3, 65, 97),
    (3, 3, 96, 64),
    (1, 3, 33, 161),
    (1, 3, 32, 32),
]
DYNAMIC = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)


def resnet(**settings):
    torch.manual_seed(0)
    return ResNet(**dict(dict(depth=18, base_channels=16), **settings))


def with_attached(block):
    """Inside blocks, behind them, beside a stage, and at the end: one block's output is
    the next one's input."""
    cfg = BLOCKS[block]
    places = (r'layer2\.\d\.bn2', r'layer3\.\d', 'layer[23]', '')
    return exercise(attach_plugins(resnet(), [dict(cfg=cfg, at=at) for at in places]))


@pytest.fixture(scope='module')
def model():
    """One stage, with each block at its end."""
    specs = [dict(cfg=cfg, at=r'layer1\.1') for cfg in BLOCKS.values()]
    small = resnet(num_stages=1, strides=(2,), dilations=(1,), out_indices=(0,))
    return exercise(attach_plugins(small, specs))


@pytest.fixture(scope='module')
def exported(model):
    return torch.export.export(model, (image(),), dynamic_shapes=(DYNAMIC,))


@pytest.fixture(scope='module')
def traced(model):
    return torch.jit.trace(model, image(), check_trace=False)


def image(size=SIZES[0]):
    return torch.randn(size)


def same(outputs, model, x):
    with torch.no_grad():
        expected = model(x)
    assert len(outputs) == len(expected)
    for y, e in zip(outputs, expected):
        torch.testing.assert_close(y, e, rtol=0, atol=1e-5 * e.abs().max().item())


def check(function, model):
    for shape in SIZES:
        x = image(shape)
        with torch.no_grad():
            same(function(x), model, x)


every = pytest.mark.parametrize('block', BLOCKS)


@every
def test_onnx(block):
    model = with_attached(block)
    runner = session(to_onnx(model, image()))
    for shape in SIZES:
        assert agree(runner, model, image(shape)), shape


def test_traced(traced, model):
    check(traced, model)


def test_exported_program(exported, model):
    check(exported.module(), model)


def test_onnx_by_the_exporter_of_exported_programs(exported, model):
    program = torch.onnx.export(exported, dynamo=True, verbose=False)
    runner = session(program.model_proto.SerializeToString())
    for shape in SIZES:
        assert agree(runner, model, image(shape)), shape


# Run where neither this package nor MMDetection is imported.
RUN = """
import sys
import torch

x = torch.load('x.pt')
maps = [torch.jit.load('traced.pt')(x), torch.export.load('program.pt2').module()(x)]
assert not {'prm_mmdet', 'mmdet', 'mmcv'} & set(sys.modules)
torch.save([[y.detach() for y in ys] for ys in maps], 'y.pt')
"""


def test_files_run_without_the_package(exported, traced, model, run_python, tmp_path):
    torch.export.save(exported, tmp_path / 'program.pt2')
    traced.save(tmp_path / 'traced.pt')
    x = image(SIZES[1])
    torch.save(x, tmp_path / 'x.pt')
    run_python('-c', RUN)
    of_trace, of_program = torch.load(tmp_path / 'y.pt')
    same(of_trace, model, x)
    same(of_program, model, x)


def hooked():
    """A SAC whose convolutions are called."""
    block = SAC(32)
    block.attention.register_forward_hook(lambda *_: None)
    return block


SWITCHES = {
    'PRM l1': lambda: PRM(32, groups=4, similarity='l1'),
    'PRM cosine': lambda: PRM(32, groups=8, similarity='cosine'),
    'PRM without encoding': lambda: PRM(32, groups=4, position_encoding=False),
    'PRM unnormalised': lambda: PRM(32, groups=4, normalization=False),
    'LCT unnormalised': lambda: LCT(32, groups=4, normalization=False),
    'LCT untransformed': lambda: LCT(32, groups=4, transform=False),
    'SAC of several contexts': lambda: SAC(32, reduction=8),
    'SAC softmax': lambda: SAC(32, reduction=8, softmax=True),
    'SAC bottleneck': lambda: SAC(32, transform='bottleneck'),
    'SAC without context': lambda: SAC(32, context=False),
    'SAC hooked': hooked,
    'SE': lambda: SE(32),
    'CBAM': lambda: CBAM(32),
    'BAM': lambda: BAM(32),
    'DoubleAttention': lambda: DoubleAttention(32),
}


@pytest.mark.parametrize('name', SWITCHES)
def test_onnx_of_every_switch(name):
    # Twice, with a convolution between: a frozen size would meet another one.
    first, second = SWITCHES[name](), SWITCHES[name]()
    layers = (first, torch.nn.Conv2d(32, 32, 3, 2, 1), second)
    model = exercise(torch.nn.Sequential(*layers))
    runner = session(to_onnx(model, image((2, 32, 9, 8))))
    for shape in [(2, 32, 9, 8), (1, 32, 5, 13), (3, 32, 1, 1)]:
        assert agree(runner, model, image(shape)), shape


@every
@pytest.mark.parametrize('opset', [14, OPSET, 20])
def test_opsets(opset, block):
    kind = {'PRM': PRM, 'LCT': LCT}.get(block)
    module = SAC(32) if kind is None else kind(32, groups=4)
    model = exercise(torch.nn.Sequential(module))
    runner = session(to_onnx(model, image((2, 32, 9, 8)), opset))
    assert agree(runner, model, image((1, 32, 5, 13)))
