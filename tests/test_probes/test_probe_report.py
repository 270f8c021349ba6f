"""The probes' page, drawn from records."""

import csv
import json

import matplotlib.image
import pytest

from prm_mmdet.probes.cells import Cell
from prm_mmdet.probes.report import collect, verdict, write_report
from prm_mmdet.probes.run import fingerprint


def record(cell, ap50):
    example = dict(boxes=[[10.0, 20.0, 40.0, 50.0]], labels=[1], scores=[0.9])
    return dict(
        probe=cell.probe,
        network=cell.network,
        rate=cell.rate,
        seed=cell.seed,
        ap=ap50 - 0.1,
        ap50=ap50,
        parameters=1_250_000,
        seconds=90.0,
        date='2026-01-02',
        versions=dict(torch='2.6.0'),
        config=fingerprint(cell),
        example=example,
    )


RECORDS = [
    record(Cell('far-cue', 'none'), 0.5),
    record(Cell('far-cue', 'sac', seed=1), 0.8),
    record(Cell('far-cue', 'sac'), 0.9),
    record(Cell('scene', 'sac'), 0.6),
    record(Cell('scene', 'sac', 3e-3), 0.95),
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'records').mkdir()
    for i, content in enumerate(RECORDS):
        (tmp_path / 'records' / f'{i}.json').write_text(json.dumps(content))
    outdated = dict(RECORDS[0], network='lct', ap50=0.99, config='0123456789ab')
    (tmp_path / 'records' / 'older.json').write_text(json.dumps(outdated))
    write_report(tmp_path)
    return tmp_path


def test_verdicts_are_of_the_mean_at_the_rate_of_the_configs():
    cells = collect(RECORDS)
    assert verdict(cells, 'far-cue', 'sac') is True
    assert verdict(cells, 'far-cue', 'none') is False
    assert verdict(cells, 'scene', 'sac') is False
    assert verdict(cells, 'control', 'sac') is None


def test_page(folder):
    lines = (folder / 'README.md').read_text().splitlines()
    assert '| SAC | 0.85 (0.75), 0.80-0.90 | 0.60 (0.50) |  |  |  | 1.25 M |' in lines
    assert '| SAC |  | 0.95 (0.85) |  |  |  | 1.25 M |' in lines  # the other rate
    (predicted,) = (line for line in lines if line.startswith('| SAC | scene | '))
    assert predicted.startswith('| SAC | scene | above |')
    assert predicted.endswith('| not above, **not agreed** |')
    (predicted,) = (line for line in lines if line.startswith('| none | far-cue | '))
    assert predicted.endswith('| not above, agreed |')
    assert any(
        '5 of 228 runs (seeds: 0, 1)' in line and '2026-01-02' in line for line in lines
    )


def test_table_has_every_run_of_the_present_configs(folder):
    with (folder / 'table.csv').open() as file:
        rows = list(csv.DictReader(file))
    found = sorted(float(row['ap50']) for row in rows)
    assert found == sorted(r['ap50'] for r in RECORDS)


def test_pictures(folder):
    for name in ('ap50.png', 'examples.png'):
        picture = matplotlib.image.imread(folder / name)
        assert picture.shape[1] > 300
        assert picture.std() > 0.05


def test_no_records(tmp_path):
    with pytest.raises(ValueError, match='holds no record'):
        write_report(tmp_path)
