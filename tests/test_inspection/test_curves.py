"""Metrics by epoch, from MMEngine's logs."""

import json

import mmcv
import numpy as np
import pytest
from conftest import ROOT

from prm_mmdet.inspection.curves import draw_curves, read_curve

AP = 'coco/bbox_mAP'


def train(work, when, evaluations):
    log = work / when / 'vis_data'
    log.mkdir(parents=True)
    lines = [json.dumps({'loss': 1.5, 'epoch': 1, 'step': 23})]
    lines += [json.dumps({AP: v, 'time': 0.1, 'step': e}) for e, v in evaluations]
    (log / 'scalars.json').write_text('\n'.join([*lines, '{"coco/bbox_mA']))


def test_run(work, when, value):
    (work / when).mkdir(parents=True)
    (work / when / f'{when}.json').write_text(json.dumps({AP: value, 'time': 0.1}))


test_run.__test__ = False


def test_a_run_that_was_resumed(tmp_path):
    train(tmp_path, '20260101_000000', [(1, 0.1), (2, 0.2)])
    train(tmp_path, '20260102_000000', [(2, 0.25), (3, 0.3)])
    assert read_curve(tmp_path, AP) == {1: 0.1, 2: 0.25, 3: 0.3}


def test_epoch_0_is_the_last_test_before(tmp_path):
    test_run(tmp_path, '20260101_000000', 0.5)
    test_run(tmp_path, '20260101_000001', 0.6)
    train(tmp_path, '20260102_000000', [(1, 0.7)])
    test_run(tmp_path, '20260103_000000', 0.8)
    curve = read_curve(tmp_path, AP)
    assert list(curve.items()) == [(0, 0.6), (1, 0.7)]


def test_metrics_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match='no log of an evaluation is there'):
        read_curve(tmp_path / 'nowhere', AP)
    train(tmp_path, '20260101_000000', [(1, 0.1)])
    with pytest.raises(ValueError, match="logged 'accuracy/top1'; there are coco/bbox"):
        read_curve(tmp_path, 'accuracy/top1')


def test_the_picture(tmp_path):
    out = tmp_path / 'new' / 'x.png'
    pictures = []
    for end in (0.2, 0.9):
        draw_curves({'one': {0: 0.1, 1: 0.2}, 'two': {0: 0.1, 1: end}}, AP, out)
        pictures.append(mmcv.imread(out).astype(int))
    assert pictures[0].shape == pictures[1].shape
    assert (np.abs(pictures[0] - pictures[1]) > 60).any()
    assert [p.name for p in out.parent.iterdir()] == ['x.png']
    with pytest.raises(ValueError, match=r'must be a \.png file'):
        draw_curves({'one': {0: 0.1}}, AP, tmp_path / 'x.jpg')


def test_the_tool(run_python, tmp_path):
    test_run(tmp_path / 'a', '20260101_000000', 0.5)
    train(tmp_path / 'a', '20260102_000000', [(1, 0.75)])
    tool = ROOT / 'tools/plot_curves.py'
    shown = run_python(tool, 'kept=a', '--out', 'a.png').stdout.splitlines()
    assert shown == ['kept: coco/bbox_mAP by epoch 0: 0.500, 1: 0.750', 'curves: a.png']
    assert (tmp_path / 'a.png').stat().st_size > 0
    result = run_python(tool, 'x=a', 'y=nowhere', check=False)
    assert result.returncode == 1
    assert result.stdout.startswith('error: no run in nowhere logged')
