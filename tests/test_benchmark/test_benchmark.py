"""The benchmark runs and reports its measurements. Speed itself is not tested."""

import copy
import json
from functools import partial

import pytest
import torch
from conftest import ROOT
from mmcv.cnn import fuse_conv_bn
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

from prm_mmdet import load_config
from prm_mmdet.benchmark import block_costs, network_costs
from prm_mmdet.benchmark.block_costs import BLOCKS, LEARNT, LIMIT, OURS, PLAIN
from prm_mmdet.benchmark.fps_records import comparable, fps_here
from prm_mmdet.benchmark.measure import Setting

TOOL = ROOT / 'tools' / 'benchmark.py'
SMALL = Setting(torch.device('cpu'), torch.float32, 2, (64, 96))
TINY = Setting(torch.device('cpu'), torch.float32, 1, (32, 32))


def test_maps_of_resnet_50():
    setting = Setting(torch.device('cpu'), torch.float32, 2, (800, 1216))
    shapes = [block_costs.map_shape('PRM', s, setting) for s in block_costs.STAGES]
    assert shapes[0] == (2, 256, 200, 304) and shapes[3] == (2, 2048, 25, 38)
    assert block_costs.map_shape('SAC', 'c2', setting) == (2, 64, 200, 304)


@pytest.mark.parametrize('name', ['PRM', 'LCT', 'SAC'])
def test_opponents_compute_the_same_function(name):
    tensors = [
        tensor.detach().double().requires_grad_()
        for tensor in block_costs.inputs(name, 'c3', SMALL)
    ]
    block = BLOCKS[name]
    results = []
    for function in (block.ours, block.plain):
        y = function(*tensors)
        gradient = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
        results.append((y, *torch.autograd.grad(y, tensors, gradient)))
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('name', ['SE', 'GC'])
def test_compared_blocks_are_those_of_the_configs(name):
    x, *parameters = block_costs.inputs(name, 'c3', SMALL)
    register_all_modules()
    cfg = load_config(network_costs.BLOCKS[name])['plugin']['cfg']
    module = MODELS.build(dict(cfg, in_channels=x.shape[1]))
    # GC's layer norm keeps its initial gain and bias.
    names = [n for n, p in module.named_parameters() if p.dim() == 4]
    names = [n for layer in names for n in (layer, layer.replace('weight', 'bias'))]
    own = dict(module.named_parameters())
    with torch.no_grad():
        for parameter_name, value in zip(names, parameters):
            own[parameter_name].copy_(value.reshape(own[parameter_name].shape))
    assert len(names) == len(parameters)
    torch.testing.assert_close(BLOCKS[name].ours(x, *parameters), module(x))


def test_forms_of_a_block():
    functions = block_costs.forms('SAC', 'c5', SMALL, compiled=False)
    assert {name for name, _ in functions} == {OURS, PLAIN, LIMIT, LEARNT}
    for function in functions.values():
        function()
    forms = {name for name, _ in block_costs.forms('GC', 'c5', SMALL)}
    assert forms == {OURS, LIMIT, LEARNT}


@pytest.fixture
def tool(run_tool):
    """Runs the tool with arguments."""
    return partial(run_tool, 'benchmark.py')


def test_fps_of_detectors(tool, demo_data, tmp_path, capsys):
    names = ['mask-rcnn_r50_fpn_demo', 'mask-rcnn_r50-sac_fpn_demo']
    command = ['fps', *(ROOT / 'configs' / 'demo' / f'{name}.py' for name in names)]
    options = ['--data-root', demo_data, '--work-dirs', tmp_path, '--device', 'cpu']
    tool(*command, *options, '--warmup', 1, '--images', 2)
    text = capsys.readouterr().out
    assert all(f'{name} ' in text for name in names) and text.count('random') == 2
    records = [fps_here(tmp_path, f'demo/{name}.py') for name in names]
    assert all(r['fps'] > 0 and r['random_weights'] for r in records)
    assert comparable(*records) and fps_here(tmp_path, 'demo/other.py') is None
    with pytest.raises(SystemExit, match='at most 4 images, which only warm up'):
        tool(*command[:2], *options, '--warmup', 4)


def test_network_against_none():
    records = network_costs.measure_backbones(['SAC'], TINY, 2)
    none, sac = records
    assert (none['name'], sac['name']) == ('none', 'SAC')
    assert none['ratios']['step'] == dict(median=1, low=1, high=1)
    for record in records:
        assert len(record['seconds']['step']) == 2 and record['memory'] > 0
    assert sac['multiply_adds'] > none['multiply_adds'] > 1e7


def test_inference_with_and_without_folding():
    records = network_costs.measure_backbones(['LCT'], TINY, 2, inference=True)
    assert [list(r['seconds']) for r in records] == [['inference', 'folded']] * 2
    (record,) = network_costs.measure_detectors([], TINY, 2, inference=True)
    assert list(record['seconds']) == ['inference']


@pytest.mark.parametrize('name', ['PRM', 'LCT', 'SAC'])
def test_batch_norm_folds_into_a_network_with_blocks(name):
    register_all_modules()
    cfg = load_config('_base_/v3/mask-rcnn_r50_fpn.py')['model']['backbone']
    plugins = [load_config(network_costs.BLOCKS[name])['plugin']]
    model = MODELS.build(dict(cfg, plugins=plugins, base_channels=16, init_cfg=None))
    model.eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.5, 2)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        folded = fuse_conv_bn(copy.deepcopy(model))
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
        for y, z in zip(folded(images), expected):
            torch.testing.assert_close(y, z, rtol=1e-3, atol=1e-3 * z.abs().max())


def test_the_tool_prints_one_table(tool, tmp_path, capfd):
    file = tmp_path / 'costs' / 'op.json'
    command = ['op', '--blocks', 'PRM', 'SE', '--size', 64, 64, '--rounds', 2]
    options = ['--dtype', 'bfloat16', '--device', 'cpu', '--no-compile']
    tool(*command, *options, '--json', file)
    text, progress = capfd.readouterr()
    assert 'backend: ' in text and text.count(' / x*gate') == 1
    assert 'PRM c2 1 x 256 x 16 x 16' in text and 'SE c5 1 x 2048 x 2 x 2' in text
    assert len(progress.strip().splitlines()) == 2 * 4  # one line a block and stage
    result = json.loads(file.read_text())
    assert result['settings']['dtype'] == 'bfloat16'
    assert len(result['records']) == 2 * 4 * 2
    for record in result['records']:
        assert record['copy_bandwidth'] > 0 and record['floor']['median'] > 0
        assert len(record['seconds'][OURS]) == 2


@pytest.mark.parametrize(
    'wrong, message',
    [
        (['--rounds', 1], '--rounds must be at least 2'),
        (['--size', 8, 8], '--size must be at least 32'),
        (['--blocks', 'XYZ'], "invalid choice: 'XYZ'"),
    ],
)
def test_wrong_options_are_named(tool, capsys, wrong, message):
    with pytest.raises(SystemExit):
        tool('op', *wrong)
    assert message in capsys.readouterr().err


def test_blocks_are_measured_with_torch_alone(run_python):
    code = """
import importlib.util, sys
find = importlib.util.find_spec
missing = ('mmengine', 'mmcv', 'mmdet', 'tqdm', 'matplotlib', 'cv2')
importlib.util.find_spec = lambda name: None if name in missing else find(name)
sys.modules.update(dict.fromkeys(missing))
sys.argv = ['benchmark.py', 'op', '--blocks', 'LCT', '--stages', 'c5', '--device',
            'cpu', '--size', '64', '64', '--rounds', '2', '--no-compile']
import runpy
runpy.run_path(TOOL, run_name='__main__')
"""
    text = run_python('-c', code.replace('TOOL', repr(str(TOOL)))).stdout
    assert 'LCT c5 1 x 2048 x 2 x 2' in text
