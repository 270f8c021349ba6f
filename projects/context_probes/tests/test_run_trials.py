"""Each trial is run once, and gets one record."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from context_probes import records, run_trials
from context_probes.measurements import count_right
from context_probes.trials import Trial
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

from prm_mmdet.experiments import Outcome, state
from prm_mmdet.experiments.records import begin_record, finish_record
from prm_mmdet.launch import TrainRunner

TRIAL = Trial('far-cue', 'sac', seed=1)


@pytest.fixture
def few(monkeypatch):
    """Two images for training and two for validation. Configs are not formatted by
    yapf, because this takes long."""
    monkeypatch.setattr(
        'mmengine.config.config.FormatCode',
        lambda text, **style: (text, True),
        raising=False,  # onedl-mmengine uses no yapf
    )
    monkeypatch.setattr(records, 'NUM_TRAIN', 2)
    monkeypatch.setattr(records, 'NUM_VAL', 2)
    records.fingerprint.cache_clear()
    yield
    records.fingerprint.cache_clear()


def test_a_trial_becomes_a_record(few, tmp_path, monkeypatch):
    trial_config = records.trial_config
    longer = dataclasses.replace(TRIAL, epochs=12)

    def short(trial, data_root, work_dirs):
        cfg = trial_config(trial, data_root, work_dirs)
        cfg.train_cfg.update(max_epochs=1)
        cfg.param_scheduler = cfg.param_scheduler[:1]
        # Untrained scores are low. Keep all detections, because AP requires some.
        cfg.model.test_cfg.rcnn.score_thr = 0.0
        return cfg

    def run_here(cells, launch, on_record):
        """Train in this process, in place of ``run_cells``, which starts processes."""
        for cell in cells:
            assert str(records.RECORDS.parent) in cell.env['PYTHONPATH']
            cell.prepare()
            cfg = Config.fromfile(cell.config)
            cfg.work_dir = str(cell.work_dir)
            # Visualizers need different names. Otherwise, MMEngine returns the
            # visualizer of the earlier run.
            cfg.visualizer.name = cell.name
            TrainRunner.from_cfg(cfg).train()
            assert state(cell) == 'finished'
            record = finish_record(begin_record(cell, 1), cell.work_dir)
            on_record(cell, dict(record, seconds=1.0))
        return {cell.name: Outcome('ok') for cell in cells}

    monkeypatch.setattr(run_trials, 'run_cells', run_here)
    monkeypatch.setattr(records, 'trial_config', short)
    path, work_dirs = tmp_path / 'records.jsonl', tmp_path / 'work_dirs'
    args = [longer], path, str(tmp_path / 'data'), str(work_dirs)
    assert run_trials.run_trials(*args)
    found = records.read_records(path)
    assert set(found) == {longer.name, longer.base.name}
    record = found[longer.name]
    assert len(path.read_text()) < 40_000
    assert records.trial_of(record) == longer
    (right, one), (also_right, two) = record['right'].values()
    assert 0 <= right <= one
    assert 0 <= also_right <= two
    annotations = tmp_path / 'data' / 'far-cue' / 'annotations/instances_val.json'
    assert one + two == len(json.loads(annotations.read_text())['annotations'])
    assert 0 <= record['ap'] <= record['ap50'] <= 1
    assert record['parameters'] > 700_000
    assert record['seconds'] > 0
    assert set(record['versions']) >= {'prm_mmdet', 'mmdet', 'torch'}
    example = record['example']
    assert len(example['boxes']) == len(example['labels']) == len(example['scores'])

    # The trial's base network, without the block, was trained first.
    file = records.weights_path(longer.base, work_dirs)
    weights = torch.load(file, weights_only=True)['state_dict']
    assert 'backbone.layer1.0.conv1.weight' in weights
    assert not any('sac' in name for name in weights)
    assert record['base'] == records.digits(file.read_bytes())
    assert set(record['largest']) == {
        f'{layer}.{kind}'
        for layer in ('attention', 'customization', 'transform')
        for kind in ('weight', 'bias')
    }
    # The last convolution of a fresh SAC is zero, so the value shows the training.
    assert record['largest']['transform.weight'] > 0


def test_trials_with_a_record_are_not_run_again(few, tmp_path, monkeypatch):
    ran = []

    def stand_in(cells, launch, on_record):
        ran.append([(cell.name, cell.after) for cell in cells])
        for cell in cells:
            metrics = {'coco/bbox_mAP': 0.4, 'coco/bbox_mAP_50': 0.5}
            record = dict(metrics=metrics, ended='2026-01-01T', seconds=1, versions={})
            if 'lct' not in cell.name:
                on_record(cell, dict(record, measured={}))
        return {c.name: Outcome('failed' if 'lct' in c.name else 'ok') for c in cells}

    monkeypatch.setattr(run_trials, 'run_cells', stand_in)
    lct, none = (Trial('control', name) for name in ('lct', 'none'))
    args = [lct, none], tmp_path / 'r.jsonl', str(tmp_path / 'data'), str(tmp_path)
    assert not run_trials.run_trials(*args)
    base = lct.base.name
    assert ran == [[(base, ()), (lct.name, (base,)), (none.name, (base,))]]
    assert set(records.read_records(args[1])) == {base, none.name}
    run_trials.run_trials(*args)
    # run_cells gets the base network again, and skips it, because it is finished.
    assert ran[1] == [(base, ()), (lct.name, (base,))]

    text = args[1].read_text()
    args[1].write_text(text.replace('"config": "', '"config": "older'))
    run_trials.run_trials(*args)
    assert ran[2] == ran[0]


def test_right_objects_are_those_whose_best_detection_has_their_class():
    """``count_right`` and a loop over random detections give the same numbers, in
    images with objects of one class and of two classes."""
    rng = np.random.default_rng(0)

    def sample(classes, found):
        boxes = rng.uniform(0, 60, (len(classes), 2))
        truth = InstanceData(labels=torch.tensor(classes))
        truth.bboxes = torch.tensor(np.hstack([boxes, boxes + 20]))
        near = boxes[rng.integers(len(boxes), size=found)]
        near = near + rng.normal(0, 4, near.shape)
        result = InstanceData(scores=torch.tensor(rng.uniform(size=found)))
        result.bboxes = torch.tensor(np.hstack([near, near + 20]))
        result.labels = torch.tensor(rng.integers(2, size=found))
        return DetDataSample(gt_instances=truth, pred_instances=result)

    def overlap(a, b):
        w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
        both = max(w, 0) * max(h, 0)
        return both / (800 - both)

    samples = [sample([1, 1], 9), sample([0, 1, 1], 9), sample([0, 0, 0], 9)]
    samples += [sample([0, 1], 0), sample([0], 1)]
    expected = dict(one=[0, 0], two=[0, 0])
    for s in samples:
        truth, found = s.gt_instances, s.pred_instances
        both = len(set(truth.labels.tolist())) == 2
        for box, label in zip(truth.bboxes.tolist(), truth.labels.tolist()):
            best, called = 0, None
            for box_found, score, label_found in zip(
                *(found[k].tolist() for k in ('bboxes', 'scores', 'labels'))
            ):
                if overlap(box, box_found) > 0.5 and score > best:
                    best, called = score, label_found
            expected['two' if both else 'one'][0] += called == label
            expected['two' if both else 'one'][1] += 1
    assert 0 < expected['one'][0] < expected['one'][1]
    model = SimpleNamespace(test_step=lambda batch: batch)
    runner = SimpleNamespace(model=model, val_dataloader=[samples[:2], samples[2:]])
    assert count_right(runner) == expected


@pytest.mark.parametrize('line', ['half', '[]', '{}', '{"probe": "far-cue"}'])
def test_lines_that_are_no_records_are_named(tmp_path, line):
    path = tmp_path / 'some.jsonl'
    records.add_records([dict(dataclasses.asdict(TRIAL), config='0')], path)
    with path.open('a') as file:
        file.write(line)
    with pytest.raises(ValueError, match=r'line 2 of .*some\.jsonl is not a record'):
        records.read_records(path)


def test_records_of_former_networks_are_left_out(tmp_path):
    path = tmp_path / 'some.jsonl'
    former = dict(dataclasses.asdict(TRIAL), network='former', config='0')
    records.add_records([former], path)
    assert records.read_records(path) == {}
    # If a record is written, records of networks without a config stay in the file.
    records.add_records([dict(dataclasses.asdict(TRIAL), config='0')], path)
    assert len(path.read_text().splitlines()) == 2


def test_writing_records_again_changes_nothing(tmp_path):
    path = tmp_path / 'records.jsonl'
    path.write_bytes(records.RECORDS.read_bytes())
    records.add_records([], path)
    assert path.read_bytes() == records.RECORDS.read_bytes()


def test_fingerprint_changes_with_what_a_result_depends_on(monkeypatch):
    trials = [TRIAL, Trial('far-cue', 'sac', seed=2), Trial('far-cue', 'sac', 1e-3, 1)]
    trials += [Trial('far-cue', 'gc', seed=1), dataclasses.replace(TRIAL, epochs=12)]
    trials += [TRIAL.base, Trial('far-cue', 'none-wide', seed=1).base]
    before = [records.fingerprint(trial) for trial in trials]
    assert len(set(before)) == 7
    assert [records.fingerprint(trial) for trial in trials] == before
    with monkeypatch.context() as patch:
        patch.setattr(records.data, 'VERSION', 1000)
        records.fingerprint.cache_clear()
        assert records.fingerprint(TRIAL) not in before
    records.fingerprint.cache_clear()
    optimizer = records._network_config('base')['optim_wrapper']['optimizer']
    optimizer['weight_decay'] = 0.1
    try:
        assert records.fingerprint(TRIAL) not in before
    finally:
        records._network_config.cache_clear()
        records.fingerprint.cache_clear()
