"""Runs of one seed start from the same weights and see the same data."""

import copy
import json

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from prm_mmdet.comparison.blocks import read_blocks
from prm_mmdet.comparison.placement import place
from prm_mmdet.launch import TrainRunner


@HOOKS.register_module()
class Witness(Hook):
    """Notes a run's first weights, and a random number of each iteration."""

    priority = 'LOWEST'

    def before_train_epoch(self, runner):
        if runner.iter == 0:
            state = runner.model.state_dict()
            runner.first_weights = {k: v.clone() for k, v in state.items()}
        if not hasattr(runner, 'drawn'):
            runner.drawn = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.drawn.append(float(torch.rand(())) + float(np.random.rand()))


def trained(cfg, work_dir, model=None, epochs=2, seed=3, resume=False, load_from=None):
    cfg = copy.deepcopy(cfg)
    hook = dict(type='prm_mmdet.PairedRun', control=copy.deepcopy(cfg.model))
    cfg.model = copy.deepcopy(model or cfg.model)
    cfg.merge_from_dict(
        dict(
            work_dir=str(work_dir),
            custom_hooks=[hook, dict(type='Witness')],
            randomness=dict(seed=seed),
            resume=resume,
            load_from=load_from,
            val_dataloader=None,
            val_evaluator=None,
            val_cfg=None,
        )
    )
    cfg.train_cfg.max_epochs = epochs
    # By default the schedule ends with the training, and --resume keeps that end.
    cfg.param_scheduler[1].end = 12
    runner = TrainRunner.from_cfg(cfg)
    runner.train()
    return runner


def seen(work_dir):
    return json.loads((work_dir / 'measured.json').read_text())['data_seen']


@pytest.fixture(scope='module')
def control(user_cfg, tmp_path_factory, unformatted_configs):
    work_dir = tmp_path_factory.mktemp('control')
    return work_dir, trained(user_cfg, work_dir)


def test_a_block_shifts_neither_weights_nor_data(user_cfg, control, tmp_path):
    folder, plain = control
    placed = place(user_cfg.model, read_blocks(['SAC'])[0])
    runner = trained(user_cfg, tmp_path, placed.model)
    assert len(runner.first_weights) > len(plain.first_weights)
    for name, value in plain.first_weights.items():
        assert torch.equal(runner.first_weights[name], value), name
    assert runner.drawn == plain.drawn
    assert len(set(plain.drawn)) == 4
    assert seen(tmp_path) == seen(folder)


def test_another_seed_sees_other_data(user_cfg, control, tmp_path):
    trained(user_cfg, tmp_path, seed=4)
    assert seen(tmp_path) != seen(control[0])


@pytest.mark.parametrize('workers', [0, 1])
def test_a_continued_run_is_equal_to_an_uninterrupted_one(
    user_cfg, control, tmp_path, workers
):
    cfg = copy.deepcopy(user_cfg)
    cfg.train_dataloader.num_workers = workers
    folder, plain = control
    if workers:
        folder = tmp_path / 'uninterrupted'
        plain = trained(cfg, folder)
    first = trained(cfg, tmp_path, epochs=1)
    second = trained(cfg, tmp_path, resume=True)
    assert seen(tmp_path) == seen(folder)
    assert first.drawn + second.drawn == plain.drawn
    torch.testing.assert_close(
        second.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0
    )


def test_a_loaded_network_keeps_its_function(user_cfg, control, tmp_path):
    folder, plain = control
    placed = place(user_cfg.model, read_blocks(['PRM'])[0])
    file = str(folder / 'epoch_2.pth')
    runner = trained(user_cfg, tmp_path, placed.model, epochs=1, load_from=file)
    scaled = runner.first_weights['backbone.layer4.2.bn3.weight']
    before = plain.model.state_dict()['backbone.layer4.2.bn3.weight']
    assert torch.allclose(scaled, before / torch.sigmoid(torch.ones(())))
