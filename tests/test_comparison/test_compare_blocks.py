"""The command line, with real trainings."""

import json

from prm_mmdet.config import config_path

TOOL = config_path('demo/mask-rcnn_r50_fpn_demo.py').split('configs/')[0]
TOOL += 'tools/compare_blocks.py'


def test_a_comparison_from_another_folder(run_python, user_config, tmp_path):
    command = [TOOL, user_config, '--blocks', 'SAC', '--seeds', 1, '--epochs', 1]
    command += ['--rounds', 2, '--work-dir', tmp_path / 'runs']
    plan = run_python(*command, '--dry-run').stdout
    assert 'SAC: plugins of ResNet: after_conv2, c3, c4, c5, 13 blocks' in plan
    assert not (tmp_path / 'runs').exists()
    first = run_python(*command).stdout
    assert 'with one seed' in first
    found = json.loads((tmp_path / 'runs' / 'report.json').read_text())
    none, sac = found['entries']
    seen = [entry['runs'][0]['measured']['data_seen'] for entry in (none, sac)]
    assert seen[0] == seen[1]
    assert sac['cost']['step']['median'] > 0
    assert len(list((tmp_path / 'runs').rglob('epoch_*.pth'))) == 2
    assert (tmp_path / 'runs' / 'report.html').is_file()
    assert (tmp_path / 'runs' / 'report.md').is_file()
    again = run_python(*command).stdout
    assert 'finished before' in again
    assert 'none, seed 0: finished' in run_python(*command, '--list').stdout


def test_mistakes_are_one_line(run_python, user_config):
    result = run_python(TOOL, user_config, '--blocks', 'SACC', check=False)
    assert result.returncode == 1
    assert "error: --blocks: there is no block 'SACC'" in result.stdout
    assert 'Traceback' not in result.stdout
