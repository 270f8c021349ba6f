"""Config files of cells, and how far a cell has come."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from prm_mmdet.experiments import Cell, state, write_config

TEXT = """
_base_ = 'parts/base.py'
model = dict(depth=50, block={{_base_.block}})
"""
PURE = """
from mmengine.config import read_base
from mmengine.model import BaseModule
with read_base():
    from .parts.base import *
model = dict(type=BaseModule, depth=50, block=block)
"""
BASE = """
block = dict(type='SE', ratio=16)
train_cfg = dict(max_epochs=12)
randomness = dict(deterministic=True)
"""


@pytest.mark.parametrize('text', [TEXT, PURE])
def test_a_written_config_is_whole(tmp_path, monkeypatch, text):
    for name, content in (('parts/base.py', BASE), ('user.py', text)):
        path = tmp_path / 'project' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    changes = {
        'train_cfg.max_epochs': 3,
        'model': dict(block=dict(_delete_=True, type='SAC')),
        'load_from': 'x.pth',
    }
    out = tmp_path / 'elsewhere' / 'cell.py'
    write_config(out, tmp_path / 'project' / 'user.py', changes, seed=4)
    (tmp_path / 'project').rename(tmp_path / 'gone')
    cfg = Config.fromfile(out)
    assert cfg.model.depth == 50 and cfg.model.block == dict(type='SAC')
    assert cfg.train_cfg.max_epochs == 3 and cfg.load_from == 'x.pth'
    assert cfg.randomness == dict(deterministic=True, seed=4)
    if text == PURE:
        assert cfg.model.type == 'mmengine.model.BaseModule'


def test_the_state_of_a_training_by_iteration(tmp_path):
    config, work_dir = tmp_path / 'config.py', tmp_path / 'run'
    config.write_text('train_cfg = dict(type="IterBasedTrainLoop", max_iters=2000)\n')
    cell = Cell('a', str(config), work_dir)
    assert state(cell) == 'not begun'
    log = work_dir / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)

    def evaluated(step):
        trained = json.dumps(dict(iter=step, loss=0.5))
        log.write_text(f'{trained}\n{json.dumps({"x/AP": 0.5, "step": step})}\n')

    evaluated(1000)
    Path(work_dir, 'last_checkpoint').write_text('iter_1000.pth')
    assert state(cell) == 'after iteration 1000 of 2000'
    Path(work_dir, 'last_checkpoint').write_text('iter_2000.pth')
    assert state(cell) == 'not evaluated'
    evaluated(2000)
    assert state(cell) == 'finished'
    # Without checkpoints, an evaluation after the last iteration is enough.
    Path(work_dir, 'last_checkpoint').unlink()
    assert state(cell) == 'finished'
    evaluated(1000)
    assert state(cell).startswith('begun without a checkpoint')


def test_a_run_that_left_a_record_alone_has_begun(tmp_path):
    (tmp_path / 'record.json').touch()
    found = state(Cell('a', 'config.py', tmp_path))
    assert found == (
        'begun without a checkpoint; unless it is running now, it will start anew'
    )
