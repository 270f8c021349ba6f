"""Running cells: one record each, and none twice."""

import dataclasses
import json
from concurrent.futures import Executor, Future
from types import SimpleNamespace

import filelock
import numpy as np
import pytest
import torch
from context_probes import probe_runs as run
from context_probes import records
from context_probes.cells import Cell
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from prm_mmdet.files.checkpoints import write_checkpoint

ANNOTATIONS = 'annotations/instances_val.json'
CELL = Cell('far-cue', 'sac', seed=1)


class Here(Executor):
    """Runs what is submitted at once, in this process, whose output it redirects."""

    def __init__(self, *_):
        pass

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        future.set_result(function(*args, **kwargs))
        return future


@pytest.fixture
def few(monkeypatch):
    """Two images of each split, in this process."""
    monkeypatch.setattr(records, 'NUM_TRAIN', 2)
    monkeypatch.setattr(records, 'NUM_VAL', 2)
    monkeypatch.setattr(run, 'ProcessPoolExecutor', Here)


def test_a_cell_becomes_a_record(few, tmp_path, monkeypatch):
    cell_config = records.cell_config
    longer = dataclasses.replace(CELL, epochs=12)
    starts = {}

    def short(cell, data_root, work_dirs):
        cfg = cell_config(cell, data_root, work_dirs)
        starts[cell] = cfg.load_from
        cfg.train_cfg.update(max_epochs=1)
        cfg.param_scheduler = cfg.param_scheduler[:1]
        # Untrained scores are low, and nothing is evaluated where nothing is found.
        cfg.model.test_cfg.rcnn.score_thr = 0.0
        return cfg

    monkeypatch.setattr(records, 'cell_config', short)
    folders = tmp_path / 'records', tmp_path / 'data', tmp_path / 'work_dirs'
    assert run.run_cells([longer], *folders) == 0
    record = records.read_records(folders[0])[longer.name]
    text = (folders[0] / f'{longer.name}.json').read_text()
    assert json.loads(text) == record
    assert len(text) < 20_000
    assert {k: record[k] for k in ('probe', 'network', 'rate', 'seed')} == {
        'probe': 'far-cue',
        'network': 'sac',
        'rate': 3e-3,
        'seed': 1,
    }
    assert record['epochs'] == 12
    (right, one), (also_right, two) = record['right'].values()
    assert 0 <= right <= one
    assert 0 <= also_right <= two
    images = json.loads((folders[1] / longer.probe / ANNOTATIONS).read_text())
    assert one + two == len(images['annotations'])
    assert 0 <= record['ap'] <= record['ap50'] <= 1
    assert record['parameters'] > 700_000
    assert record['seconds'] > 0
    assert set(record['versions']) >= {'prm_mmdet', 'mmdet', 'torch'}
    example = record['example']
    assert len(example['boxes']) == len(example['labels']) == len(example['scores'])

    # Its base went before it, without the block.
    assert starts[longer.base] is None
    weights = torch.load(starts[longer], weights_only=True)['state_dict']
    assert 'backbone.layer1.0.conv1.weight' in weights
    assert not any('sac' in name for name in weights)
    assert records.read_records(folders[0])[longer.base.name]['network'] == 'base'
    assert len(record['base']) == 12
    assert set(record['largest']) == {
        f'{layer}.{kind}'
        for layer in ('attention', 'customization', 'transform')
        for kind in ('weight', 'bias')
    }
    assert record['largest']['transform.weight'] > 0  # it starts at zero


def test_right_objects_are_those_whose_best_detection_has_their_class():
    """Counted by a loop over random detections, for images of one class and of two."""
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
    assert run._right(runner) == expected


def test_cells_with_a_record_are_skipped_and_failures_stop_no_other(
    few, tmp_path, monkeypatch, capsys
):
    ran = []

    def stand_in(cell, data_root, work_dirs):
        ran.append(cell)
        if cell.network == 'lct':
            raise RuntimeError('out of luck')
        if not cell.base:
            write_checkpoint({'state_dict': {}}, records.weights_path(cell, work_dirs))
        config = records.fingerprint(cell)
        result = dict(ap=0.4, ap50=0.5, seconds=1, config=config)
        return {**dataclasses.asdict(cell), **result}

    monkeypatch.setattr(run, 'run_cell', stand_in)
    cells = [Cell('control', name) for name in ('lct', 'none')]
    folders = tmp_path / 'records', tmp_path / 'data', tmp_path / 'work_dirs'
    assert run.run_cells(cells, *folders) == 1
    said = capsys.readouterr().out
    assert f'{cells[0].name}: failed; see' in said
    log = tmp_path / 'work_dirs' / f'{cells[0].name}.log'
    assert 'out of luck' in log.read_text()
    assert ran == [cells[0].base, *cells]  # one base for both
    assert set(records.read_records(folders[0])) == {ran[0].name, cells[1].name}

    ran.clear()
    assert run.run_cells(cells, *folders) == 1
    assert ran == [cells[0]]
    assert '1 of 2 cells have their record' in capsys.readouterr().out

    record = folders[0] / f'{cells[1].name}.json'
    record.write_text(record.read_text().replace('"config": "', '"config": "older'))
    ran.clear()
    run.run_cells(cells, *folders)
    assert ran == cells

    # A base whose weights are damaged is trained again.
    records.weights_path(cells[0].base, folders[2]).write_bytes(b'half')
    ran.clear()
    run.run_cells(cells, *folders)
    assert ran == [cells[0].base, cells[0]]


def test_cells_of_a_failed_base_are_left_out(few, tmp_path, monkeypatch, capsys):
    def stand_in(cell, data_root, work_dirs):
        raise RuntimeError('out of luck')

    monkeypatch.setattr(run, 'run_cell', stand_in)
    cells = [Cell('control', name) for name in ('lct', 'none')]
    folders = tmp_path / 'records', tmp_path / 'data', tmp_path / 'work_dirs'
    assert run.run_cells(cells, *folders) == 2
    assert '2 cells are left out: their base failed' in capsys.readouterr().out


def test_two_runs_do_not_share_a_folder(few, tmp_path):
    folders = tmp_path / 'records', tmp_path / 'data', tmp_path / 'work_dirs'
    folders[2].mkdir()
    used = pytest.raises(OSError, match='work_dirs is in use by another run')
    with filelock.FileLock(folders[2] / 'lock'), used:
        run.run_cells([CELL], *folders)
    assert list(folders[0].iterdir()) == []


@pytest.mark.parametrize('content', ['', '[]', '{}', '{"probe": "far-cue"}'])
def test_files_that_are_no_records_are_named(tmp_path, content):
    (tmp_path / 'some.json').write_text(content)
    with pytest.raises(
        ValueError, match=r'some\.json is no record of a run: remove it'
    ):
        records.read_records(tmp_path)


def test_records_of_networks_that_are_no_more_are_left_out(tmp_path):
    content = dict(dataclasses.asdict(CELL), network='former', config='0')
    (tmp_path / 'some.json').write_text(json.dumps(content))
    assert records.read_records(tmp_path) == {}


def test_fingerprint_changes_with_what_a_result_depends_on(monkeypatch):
    cells = [CELL, Cell('far-cue', 'sac', seed=2), Cell('far-cue', 'sac', 1e-3, 1)]
    cells += [Cell('far-cue', 'gc', seed=1), dataclasses.replace(CELL, epochs=12)]
    cells += [CELL.base, Cell('far-cue', 'none-wide', seed=1).base]
    before = [records.fingerprint(cell) for cell in cells]
    assert len(set(before)) == 7
    assert [records.fingerprint(cell) for cell in cells] == before
    with monkeypatch.context() as patch:
        patch.setattr(records.data, 'VERSION', 1000)
        assert records.fingerprint(CELL) not in before
    records._network_config('base').optim_wrapper.optimizer.weight_decay = 0.1
    try:
        assert records.fingerprint(CELL) not in before
    finally:
        records._network_config.cache_clear()
