"""The command line, with real trainings."""

import json
import logging
import runpy
import sys
import warnings

import pytest
from conftest import ROOT
from mmengine.config import Config

from prm_mmdet.comparison import plan
from prm_mmdet.experiments import runner
from prm_mmdet.launch import TrainRunner

pytestmark = pytest.mark.usefixtures('unformatted_configs')


start = runner._Experiment._wait_for


def train(experiment, cell, command, log):
    """Trains SAC by train.py, and the control in this process."""
    if cell.name.startswith('SAC'):
        return (yield from start(experiment, cell, command, log))
    cfg = Config.fromfile(cell.config)
    # With one name, MMEngine would return the earlier run's visualizer.
    cfg.visualizer.name = cfg.experiment_name = cell.work_dir.parent.name
    cfg.work_dir = str(cell.work_dir)
    TrainRunner.from_cfg(cfg).train()
    yield
    return 0


@pytest.fixture
def tool(monkeypatch, capsys, tmp_path):
    """Runs the tool in another folder; returns its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')  # the tool sets it
    monkeypatch.setattr(runner._Experiment, '_wait_for', train)
    made, rehearse = [], plan.Rehearsal

    def once(*arguments):
        """All calls of a test have the same networks."""
        if not made:
            made.append(rehearse(*arguments))
        return made[0]

    monkeypatch.setattr(plan, 'Rehearsal', once)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['compare_blocks.py', *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / 'tools/compare_blocks.py'), run_name='__main__')
        return ended.value.code, capsys.readouterr().out

    yield run
    logging.disable(logging.NOTSET)


def test_a_comparison(tool, user_config, tmp_path):
    command = [user_config, '--blocks', 'SAC', '--seeds', 1, '--epochs', 1]
    command += ['--rounds', 2, '--work-dir', 'runs']
    status, text = tool(*command, '--dry-run')
    assert 'SAC: plugins of ResNet: after_conv2, c3, c4, c5, 13 blocks' in text
    assert status == 0
    folder = tmp_path / 'runs'
    assert not folder.exists()
    status, text = tool(*command)
    assert 'SAC: coco/bbox_mAP is 0 in all runs' in text
    assert status == 0
    found = json.loads((folder / 'report.json').read_text())
    none, sac = found['entries']
    seen = [entry['runs'][0]['measured']['data_seen'] for entry in (none, sac)]
    assert seen[0] == seen[1]
    assert sac['cost']['step']['median'] > 0
    assert len(list(folder.rglob('epoch_*.pth'))) == 2
    assert {f'report.{end}' for end in ('html', 'md', 'png')} <= {
        path.name for path in folder.iterdir()
    }
    assert 'finished before' in tool(*command)[1]
    assert 'none, seed 0: finished' in tool(*command, '--list')[1]
    assert tool(*command, '--report')[0] == 0
    assert json.loads((folder / 'report.json').read_text()) == found
    config = (folder / 'none/seed0.py').read_text()
    changed = [*command, '--cfg-options', 'optim_wrapper.optimizer.lr=0.5']
    refused, text = tool(*changed)
    assert 'none/seed0 has begun with other settings' in refused
    assert 'report:' not in text
    assert (folder / 'none/seed0.py').read_text() == config
    other = tool(*command, '--report', '--metric', 'coco/box')[0]
    assert "error: the evaluator gives no metric 'coco/box'" in other


def test_mistakes_are_one_line(tool, user_config, tmp_path):
    message, _ = tool(user_config, '--blocks', 'SACC')
    assert message.startswith("error: --blocks: there is no block 'SACC'")
    message, _ = tool(tmp_path, '--blocks', 'SAC')
    assert message == f'error: {tmp_path} is not a file; name a config file'
