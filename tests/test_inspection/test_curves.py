"""Metrics by epoch or iteration, from MMEngine's logs."""

import json
from functools import partial

import mmcv
import numpy as np
import pytest

from prm_mmdet.inspection.curves import draw_curves, read_curve

AP = 'coco/bbox_mAP'


def train(work, when, evaluations, **trained):
    log = work / when / 'vis_data'
    log.mkdir(parents=True)
    trained = trained or dict(epoch=1, iter=23)
    lines = [json.dumps({'loss': 1.5, **trained, 'step': trained['iter']})]
    lines += [json.dumps({AP: v, 'time': 0.1, 'step': e}) for e, v in evaluations]
    (log / 'scalars.json').write_text('\n'.join([*lines, '{"coco/bbox_mA']))


def test_run(work, when, value):
    (work / when).mkdir(parents=True)
    (work / when / f'{when}.json').write_text(json.dumps({AP: value, 'time': 0.1}))


test_run.__test__ = False


def test_a_run_that_was_resumed(tmp_path):
    train(tmp_path, '20260101_000000', [(1, 0.1), (2, 0.2)])
    train(tmp_path, '20260102_000000', [(2, 0.25), (3, 0.3)])
    assert read_curve(tmp_path, AP) == ({1: 0.1, 2: 0.25, 3: 0.3}, 'epoch')


def test_epoch_0_is_the_last_test_before(tmp_path):
    test_run(tmp_path, '20260101_000000', 0.5)
    test_run(tmp_path, '20260101_000001', 0.6)
    train(tmp_path, '20260102_000000', [(1, 0.7)])
    test_run(tmp_path, '20260103_000000', 0.8)
    curve, _ = read_curve(tmp_path, AP)
    assert list(curve.items()) == [(0, 0.6), (1, 0.7)]


@pytest.mark.parametrize(
    ('trained', 'steps', 'unit'),
    [
        (dict(iter=950), (1000, 2000), 'iteration'),
        (dict(iter=1000, epoch=3), (1000, 2000), 'iteration'),
        (dict(iter=1, epoch=1), (1,), 'epoch'),
        (dict(iter=40), (1, 2), 'epoch'),  # a log processor by iteration alone
    ],
)
def test_what_a_step_is(tmp_path, trained, steps, unit):
    train(tmp_path, '20260101_000000', [(s, 0.1) for s in steps], **trained)
    assert read_curve(tmp_path, AP) == (dict.fromkeys(steps, 0.1), unit)


def test_epochs_and_iterations_are_not_mixed(tmp_path):
    train(tmp_path, '20260101_000000', [(1, 0.1)])
    train(tmp_path, '20260102_000000', [(1000, 0.1)], iter=1000)
    with pytest.raises(ValueError, match='by epoch and by iteration'):
        read_curve(tmp_path, AP)


def test_what_is_no_number_is_passed_over(tmp_path):
    values = [(1, None), (2, 'x'), (3, [0.1]), ('4', 0.1), (None, 0.1), (5, True)]
    train(tmp_path, '20260101_000000', values)
    with pytest.raises(ValueError, match="logged 'coco/bbox_mAP'"):
        read_curve(tmp_path, AP)
    train(tmp_path, '20260102_000000', [*values, (6, 0.5)])
    test_run(tmp_path, '20251231_000000', None)
    assert read_curve(tmp_path, AP) == ({6: 0.5}, 'epoch')


def test_metrics_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match='nowhere is not a folder'):
        read_curve(tmp_path / 'nowhere', AP)
    with pytest.raises(ValueError, match='the logs have no evaluation'):
        read_curve(tmp_path, AP)
    train(tmp_path, '20260101_000000', [(1, 0.1)])
    with pytest.raises(ValueError, match="'accuracy/top1'; the logs have coco"):
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


def test_the_legend_takes_nothing_from_the_axes(tmp_path):
    def drawn(labels):
        curves = {label: {1: 0.1, 2: 0.2} for label in labels}
        draw_curves(curves, AP, tmp_path / 'x.png')
        return mmcv.imread(tmp_path / 'x.png')

    def axes(picture):
        """Rows between the first and the last line of the axes' frame."""
        frame = np.flatnonzero((picture.max(2) < 100).sum(1) > picture.shape[1] / 2)
        return np.ptp(frame)

    few, many = drawn('ab'), drawn([f'run {i}' for i in range(30)])
    assert abs(axes(few) - axes(many)) < 0.05 * axes(few)
    assert many.shape[0] > few.shape[0]
    # Each label is to be seen: with an underscore, of TeX's signs, too long for two.
    none = drawn([' ', '  '])
    for label in ('_hid', '$x', '$\\frac$', 'W' * 50):
        assert (drawn([label, ' ']) < 200).sum() > (none < 200).sum() + 100


def test_the_tool(run_tool, tmp_path, monkeypatch, capsys):
    tool = partial(run_tool, 'plot_curves.py')
    monkeypatch.chdir(tmp_path)
    test_run(tmp_path / 'a', '20260101_000000', 0.5)
    train(tmp_path / 'a', '20260102_000000', [(1, 0.75)])
    tool('kept=a', '--out', 'a.png')
    shown = capsys.readouterr().out.splitlines()
    assert shown == ['kept: coco/bbox_mAP by epoch 0: 0.500, 1: 0.750', 'curves: a.png']
    assert (tmp_path / 'a.png').stat().st_size > 0
    train(tmp_path / 'b', '20260102_000000', [(1000, 0.75)], iter=1000)
    with pytest.raises(SystemExit, match='x: epoch, y: iteration'):
        tool('x=a', 'y=b')
    with pytest.raises(SystemExit, match='error: nowhere is not a folder'):
        tool('x=a', 'y=nowhere')
    with pytest.raises(SystemExit, match="LABEL=WORK_DIR: got 'a'"):
        tool('a')
