"""The benchmark runs and says what it measured; how fast anything is, is not tested."""

import json

import pytest
import torch
from conftest import ROOT
from PIL import Image

from prm_mmdet.benchmark import rounds as run
from prm_mmdet.benchmark.subjects import BLOCKS, Setting, blocks_alone, stages

TOOL = ROOT / 'tools' / 'benchmark.py'
SMALL = Setting(torch.device('cpu'), torch.float32, 1, (64, 96))


def test_maps_of_resnet_50():
    setting = Setting(torch.device('cpu'), torch.float32, 2, (800, 1216))
    shapes = [
        (2, 256, 200, 304),
        (2, 512, 100, 152),
        (2, 1024, 50, 76),
        (2, 2048, 25, 38),
    ]
    assert stages(setting, 'after_conv3') == shapes
    assert stages(setting, 'after_conv2')[0] == (2, 64, 200, 304)


@pytest.mark.parametrize('name', BLOCKS)
def test_every_block_runs_alone(name):
    shape, subjects, _ = blocks_alone(SMALL, name, 3)
    ours = name in ('PRM', 'LCT', 'SAC')
    names = [name, *([f'{name}, reference'] if ours else []), 'x * gate']
    assert list(subjects) == names
    assert shape == (1, 512 if name == 'SAC' else 2048, 2, 3)
    for subject in subjects.values():
        subject.forward()
        subject.step()


@pytest.mark.parametrize('level', ['backbone', 'detector'])
def test_networks_are_measured_against_none(level):
    (group,) = run.LEVELS[level](SMALL, ['SAC'], 2)
    none, sac = group['records']
    assert none['name'] == group['against'] == 'none' and sac['name'] == 'SAC'
    assert none['step_ratio'] == none['forward_ratio'] == dict(median=1, low=1, high=1)
    for record in (none, sac):
        assert (
            record['step']['low'] <= record['step']['median'] <= record['step']['high']
        )
        assert len(record['seconds']['forward']) == 2 and record['memory'] > 0
    if level == 'backbone':  # a detector's heads work on what random weights propose
        assert sac['multiply_adds'] > none['multiply_adds'] > 1e8


def test_the_tool_prints_and_writes(run_python, tmp_path):
    command = [TOOL, 'op', '--blocks', 'PRM', 'SE', '--size', 64, 64, '--rounds', 2]
    text = run_python(*command, '--dtype', 'bfloat16', '--device', 'cpu').stdout
    assert 'PRM on (1, 256, 16, 16); ratios are over PRM, reference' in text
    assert 'implementation: torch' in text
    folder = tmp_path / 'work_dirs' / 'benchmark'
    result = json.loads((folder / 'benchmark.json').read_text())
    assert result['settings']['dtype'] == 'bfloat16'
    assert [len(g['records']) for g in result['groups']] == [3] * 4 + [2] * 4
    # Five passes over (1, 256, 16, 16) numbers of two bytes.
    assert result['groups'][0]['floor_bytes'] == 5 * 256 * 16 * 16 * 2
    for group in result['groups']:
        assert group['copy_bandwidth'] > 0
        for record in group['records']:
            assert record['floor_ratio']['median'] > 0
    image = Image.open(folder / 'benchmark.png')
    assert min(image.size) > 300
    assert not list(folder.glob('*.new'))


@pytest.mark.parametrize(
    'wrong, message',
    [
        (['--rounds', 1], '--rounds must be at least 2'),
        (['--size', 8, 8], '--size must be at least 32'),
        (['--blocks', 'XYZ'], "invalid choice: 'XYZ'"),
        (['--device', 'cuda'], 'there is no CUDA device'),
        (['--out', TOOL], 'File exists'),
    ],
)
def test_wrong_options_are_refused(run_python, wrong, message):
    if 'cuda' in wrong and torch.cuda.is_available():
        wrong, message = ['--batch', 0], '--batch must be at least 1'
    result = run_python(TOOL, 'op', *wrong, check=False)
    assert result.returncode != 0
    assert message in result.stdout and 'Traceback' not in result.stdout
