"""Statistics logged during training."""

import json
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from prm_mmdet import PRM, SAC
from prm_mmdet.inspection.hook import BlockStatisticsHook
from prm_mmdet.plugins import CBAM


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.prm = PRM(16, groups=4)
        self.sac = SAC(16, 4)
        self.cbam = CBAM(16, 4)
        self.hooks = []

    def forward(self, inputs, mode):
        self.hooks.append(len(self.prm._forward_hooks))
        y = self.cbam(self.sac(self.prm(self.stem(inputs))))
        return dict(loss=y.square().mean())


def train(folder, model, **hook):
    images = [dict(inputs=torch.rand(3, 8, 8)) for _ in range(14)]
    runner = Runner(
        model,
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=images,
            batch_size=2,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[dict(type='prm_mmdet.BlockStatisticsHook', **hook)],
        default_scope='mmdet',
        experiment_name=folder.name,
    )
    runner.train()
    (log,) = folder.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if any(k.startswith('blocks/') for k in line)]


def test_statistics_are_logged_at_the_interval(tmp_path):
    model = Model()
    first, second = train(tmp_path, model, interval=3)
    assert (first['step'], second['step']) == (3, 6)
    assert model.hooks == [0, 0, 1, 0, 0, 1, 0]
    assert not any(m._forward_hooks for m in model.modules())
    assert {k for k in first if k.startswith('blocks/')} == {
        *(f'blocks/prm/gate_{s}' for s in ('mean', 'std', 'saturated')),
        *(f'blocks/prm/{s}' for s in ('contribution_rate', 'sigma')),
        *(f'blocks/prm/theta_{s}' for s in ('rows', 'columns')),
        'blocks/sac/added',
        *(f'blocks/cbam/channels_gate_{s}' for s in ('mean', 'std', 'saturated')),
        *(f'blocks/cbam/positions_gate_{s}' for s in ('mean', 'std', 'saturated')),
    }
    rows, columns = model.prm.theta.tolist()  # alpha is near 0: theta has hardly moved
    assert second['blocks/prm/theta_rows'] == pytest.approx(rows, abs=1e-3)
    assert second['blocks/prm/theta_columns'] == pytest.approx(columns, abs=1e-3)
    assert first['blocks/prm/gate_mean'] == pytest.approx(0.731, abs=0.01)


def test_everything_logged_is_from_before_the_step():
    hook, model, visualizer = BlockStatisticsHook(1), Model(), Mock()
    runner = SimpleNamespace(model=model, rank=0, iter=0, visualizer=visualizer)
    model.prm.alpha.data.fill_(0.5)
    model.prm.beta.data.fill_(1.5)
    hook.before_train_iter(runner, 0)
    model(torch.rand(2, 3, 8, 8), 'loss')
    model.prm.alpha.data.fill_(1.5)
    hook.after_train_iter(runner, 0)
    (scalars,) = visualizer.add_scalars.call_args.args
    assert scalars['blocks/prm/contribution_rate'] == pytest.approx(0.25)


def test_other_ranks_do_nothing():
    hook, model = BlockStatisticsHook(1), Model()
    runner = SimpleNamespace(model=model, rank=1, iter=0)
    hook.before_train_iter(runner, 0)
    assert not model.prm._forward_hooks
    hook.after_train_iter(runner, 0)


def test_an_iteration_that_raised_leaves_no_hook():
    hook, model = BlockStatisticsHook(2), Model()
    runner = SimpleNamespace(model=model, rank=0, iter=1)
    hook.before_train_iter(runner, 1)
    assert model.prm._forward_hooks
    runner.iter = 2
    hook.before_train_iter(runner, 2)
    assert not model.prm._forward_hooks


def test_refusals():
    for interval in (0, 2.5, None):
        with pytest.raises(ValueError, match='interval must be a positive integer'):
            BlockStatisticsHook(interval)
    with pytest.raises(ValueError, match='Conv2d has none of the blocks'):
        BlockStatisticsHook().before_train(SimpleNamespace(model=nn.Conv2d(1, 1, 1)))
