"""Plans of comparisons, and what they refuse before the first run."""

import copy
import dataclasses
import types
from contextlib import nullcontext

import pytest
import torch
from mmengine.config import Config

from prm_mmdet.comparison import plan
from prm_mmdet.comparison.blocks import read_blocks
from prm_mmdet.comparison.placement import place
from prm_mmdet.comparison.plan import make_comparison
from prm_mmdet.comparison.rehearsal import (
    Rehearsal,
    Rehearsed,
    _check_fit,
    write_start,
)
from prm_mmdet.launch import MissingInput

pytestmark = pytest.mark.usefixtures('unformatted_configs')

SCHEDULE = dict(
    train_cfg=dict(max_epochs=12, val_interval=12),
    optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.02)),
    param_scheduler=[
        dict(type='LinearLR', by_epoch=False, begin=0, end=500),
        dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11]),
        dict(type='CosineAnnealingLR', T_max=12, eta_min=0.001),
    ],
    custom_hooks=[dict(type='mmdet.PipelineSwitchHook', switch_epoch=8)],
)


def comparison(user_config, tmp_path, *blocks, **arguments):
    return make_comparison(
        str(user_config),
        read_blocks(blocks or ['SAC']),
        work_dir=tmp_path,
        **dict(dict(seeds=2, rehearse=False), **arguments),
    )


def test_a_shorter_training_keeps_the_schedules_proportions():
    cfg = Config(copy.deepcopy(SCHEDULE))
    changes = plan._shortened(cfg, 3)
    assert changes['train_cfg.max_epochs'] == 3
    assert changes['train_cfg.val_interval'] == 3
    warmup, steps, cosine = changes['param_scheduler']
    assert warmup['end'] == 500  # iterations
    assert (steps['end'], steps['milestones']) == (3, [2, 3])
    assert cosine['T_max'] == 3
    assert cfg.custom_hooks[0]['switch_epoch'] == 2


def test_parts_of_a_schedule_without_a_step_are_left_out():
    cfg = Config(copy.deepcopy(SCHEDULE))
    cfg.param_scheduler.append(dict(type='ConstantLR', begin=11, end=12, factor=1))
    changes = plan._shortened(cfg, 1)
    names = [scheduler['type'] for scheduler in changes['param_scheduler']]
    assert names == ['LinearLR', 'MultiStepLR', 'CosineAnnealingLR']


def test_another_rate_scales_the_schedules_absolute_rates():
    cfg = Config(copy.deepcopy(SCHEDULE))
    changes = plan._at_rate(cfg, {}, 0.01)
    assert changes['optim_wrapper.optimizer.lr'] == 0.01
    assert changes['param_scheduler'][2]['eta_min'] == pytest.approx(0.0005)
    with pytest.raises(ValueError, match='no optim_wrapper'):
        plan._at_rate(Config(dict()), {}, 0.01)


def test_a_warm_up_that_outlasts_the_training_is_a_warning():
    cfg = Config(dict(copy.deepcopy(SCHEDULE), train_dataloader=dict(batch_size=8)))
    (warning,) = plan._warnings(cfg, {'train_cfg.max_epochs': 3}, 292, ranks=2)
    assert '500 iterations, and the training has about 54' in warning
    assert plan._warnings(cfg, {}, 100_000, ranks=2) == []


def test_all_runs_share_everything_but_the_block(user_config, tmp_path):
    before = user_config.read_bytes()
    found = comparison(user_config, tmp_path, 'SAC', 'PRM', epochs=1, rates=[1e-3])
    cells = found.cells()
    assert [cell.name for cell in cells[:3]] == [
        'none at learning rate 0.001, seed 0',
        'SAC at learning rate 0.001, seed 0',
        'PRM at learning rate 0.001, seed 0',
    ]
    assert len(cells) == 6
    configs = []
    for cell in cells[:2]:
        cell.prepare()
        configs.append(Config.fromfile(cell.config).to_dict())
    for cfg, cell in zip(configs, cells):
        assert cfg['randomness']['seed'] == 0
        assert cfg['train_cfg']['max_epochs'] == 1
        assert cfg['optim_wrapper']['optimizer']['lr'] == 1e-3
        assert cfg['default_hooks']['checkpoint']['max_keep_ckpts'] == 1
        assert cell.work_dir.is_relative_to(tmp_path)
    none, sac = configs
    assert none != sac
    assert sac['model'].pop('backbone')['plugins']
    none['model'].pop('backbone')
    assert none == sac
    assert user_config.read_bytes() == before


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(seeds=0), '--seeds must be at least 1'),
        (dict(epochs=0), '--epochs must be at least 1'),
        (dict(rates=[-1.0]), '--lr must be above 0'),
        (dict(options={'val_evaluator': None}), 'no val_evaluator'),
    ],
)
def test_arguments_that_cannot_be(user_config, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        comparison(user_config, tmp_path, **arguments)


def test_missing_data(user_config, tmp_path):
    options = {'train_dataloader.dataset.data_root': '/nowhere/'}
    with pytest.raises(MissingInput, match='/nowhere/'):
        comparison(user_config, tmp_path, options=options)


@pytest.fixture(scope='module')
def rehearsal(user_cfg):
    return Rehearsal(user_cfg, None)


def test_the_rehearsal_counts_and_names_metrics(rehearsal, user_cfg):
    assert 'coco/bbox_mAP' in rehearsal.metrics
    assert 'coco/segm_mAP_50' in rehearsal.metrics
    shown = rehearsal.block(place(user_cfg.model, read_blocks(['SE'])[0]))
    # Two linear layers with bias, of C and C / 16 channels, in 4, 6 and 3 blocks.
    widths = [128] * 4 + [256] * 6 + [512] * 3
    added = sum(2 * c * (c // 16) + c // 16 + c for c in widths)
    assert shown.parameters - rehearsal.control.parameters == added
    assert shown.multiply_adds > rehearsal.control.multiply_adds > 0


def test_a_metric_that_the_evaluator_does_not_give(rehearsal):
    with pytest.raises(ValueError, match="no metric 'coco/box'"):
        plan.main_metric('coco/box', rehearsal.metrics)
    assert plan.main_metric(None, rehearsal.metrics) == 'coco/bbox_mAP'
    assert plan.main_metric(None, ['accuracy/top1']) == 'accuracy/top1'


def test_blocks_that_would_never_be_trained(rehearsal, user_cfg):
    cfg = copy.deepcopy(user_cfg)
    cfg.model.backbone.frozen_stages = 2
    placed = place(cfg.model, read_blocks(['SAC'])[0])
    with pytest.raises(ValueError, match=r'layer2.0.sac_block is in a frozen stage'):
        rehearsal.block(placed)


def test_blocks_whose_output_nothing_uses(rehearsal, user_cfg):
    cfg = copy.deepcopy(user_cfg)
    cfg.model.neck.update(start_level=1, num_outs=5)
    block = read_blocks(['SAC'], at='')[0]  # also behind the unused first map
    with pytest.raises(ValueError, match='gets no gradient'):
        rehearsal.block(place(cfg.model, block))


def test_blocks_in_trained_weights(user_cfg, tmp_path):
    path, part = tmp_path / 'start.pth', tmp_path / 'part.pth'
    torch.save({'backbone.bn1.weight': torch.full((16,), 2.0)}, part)
    write_start(path, user_cfg.model, str(part), 0)
    weights = torch.load(path)['state_dict']
    assert (weights['backbone.bn1.weight'] == 2).all()
    for name, value in weights.items():
        if name.endswith('bn3.weight'):  # zero before training, which hides any block
            value.fill_(1)
    torch.save(dict(state_dict=weights), path)
    found = Rehearsal(user_cfg, str(path))
    prm, se = (place(user_cfg.model, b) for b in read_blocks(['PRM', 'SE']))
    assert found.block(prm).start == 'keeps what the network computes'
    shown = found.block(se)
    assert shown.start == 'changes the network at step 0 (13 blocks)'
    assert len(shown.changed) == 13


@pytest.mark.parametrize(
    ('weights', 'partial', 'message'),
    [
        (dict(weight=torch.ones(2, 3), bias=torch.ones(2)), False, ''),
        (dict(weight=torch.ones(2, 3)), False, r'bias.*--allow-partial'),
        (
            dict(weight=torch.ones(9, 3), bias=torch.ones(2)),
            False,
            r'weight\).*--allow-partial',
        ),
        (dict(weight=torch.ones(2, 3)), True, ''),
        (dict(other=torch.ones(1)), True, 'does not hold the weights'),
    ],
)
def test_checkpoints_that_do_not_fit(weights, partial, message):
    expected = pytest.raises(ValueError, match=message) if message else nullcontext()
    with expected:
        _check_fit('a.pth', weights, torch.nn.Linear(3, 2), partial)


def test_work_dirs_that_cannot_be_written(user_config, tmp_path):
    (tmp_path / 'file').touch()
    found = comparison(user_config, tmp_path)
    found = dataclasses.replace(found, work_dir=tmp_path / 'file' / 'runs')
    with pytest.raises(ValueError, match='file is not a folder; name another folder'):
        plan._check_space(found)


def test_too_little_space(user_config, tmp_path, monkeypatch):
    found = comparison(user_config, tmp_path)
    found.variants[:] = [
        dataclasses.replace(variant, rehearsed=Rehearsed(10**7, 1))
        for variant in found.variants
    ]
    usage = types.SimpleNamespace(free=6e8)
    monkeypatch.setattr(plan.shutil, 'disk_usage', lambda path: usage)
    # Two seeds of two variants, and one more file while it is written.
    plan._check_space(found)
    usage.free -= 1
    with pytest.raises(ValueError, match=r'need 0\.6 GB, and .* has 0\.6 GB left'):
        plan._check_space(found)
