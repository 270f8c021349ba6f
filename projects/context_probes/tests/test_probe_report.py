"""The probes' page, drawn from records."""

import csv
import json

import matplotlib.image
import pytest
from context_probes.cells import Cell
from context_probes.probe_report import collect, verdict, write_report
from context_probes.records import fingerprint


def record(cell, ap50):
    example = dict(boxes=[[10.0, 20.0, 40.0, 50.0]], labels=[1], scores=[0.9])
    content = dict(
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
        base='0123456789ab',
        largest={'attention.weight': 0.25},
    )
    if cell.epochs == 12:
        content.update(epochs=12, right=dict(one=[7, 8], two=[9, 10]))
    return content


RECORDS = [
    record(Cell('far-cue', 'none'), 0.5),
    record(Cell('far-cue', 'sac', seed=1), 0.94),
    record(Cell('far-cue', 'sac'), 1.0),
    record(Cell('control', 'none'), 0.9),
    record(Cell('control', 'gc'), 0.86),
    record(Cell('control', 'se'), 0.84),
    record(Cell('scene', 'sac'), 0.6),
    record(Cell('scene', 'sac', 1e-3), 0.95),
    record(Cell('scene', 'sac', epochs=12), 0.97),
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
    assert verdict(cells, 'control', 'gc') is True  # beside the network without a block
    assert verdict(cells, 'control', 'se') is False
    alone = {k: v for k, v in cells.items() if k.network != 'none'}
    assert verdict(alone, 'control', 'gc') is None


def test_page(folder):
    lines = (folder / 'README.md').read_text().splitlines()
    assert '| SAC | 0.97 (0.87), 0.94-1.00 | 0.60 (0.50) |  |  |  | 1.25 M |' in lines
    assert '| SAC |  | 0.95 (0.85) |  |  |  | 1.25 M |' in lines  # the other rate
    assert (
        '| SAC | seen; agreed | seen; **not agreed** | not seen; not measured | '
        'seen; not measured | no harm; not measured |'
    ) in lines
    assert any(
        line.startswith('| SE |') and 'no harm; **not agreed**' in line
        for line in lines
    )
    # What disagrees is followed by what was found.
    (position,) = (
        i for i, line in enumerate(lines) if line.startswith('- SAC, scene: ')
    )
    assert 'attention.weight 0.25' in lines[position + 1]
    assert '| SAC, scene | 0 | 0.60 | 0.97 | 7 of 8 | 9 of 10 |' in lines
    assert not any(line.startswith('- SAC, far-cue: ') for line in lines)
    assert any(line.startswith('  - SAC: Eq. 2 selects') for line in lines)
    assert any(
        '9 of 250 runs (seeds: 0, 1) from 1 bases' in line and '2026-01-02' in line
        for line in lines
    )


def test_table_has_every_run_of_the_present_configs(folder):
    with (folder / 'table.csv').open() as file:
        rows = list(csv.DictReader(file))
    found = sorted(float(row['ap50']) for row in rows)
    assert found == sorted(r['ap50'] for r in RECORDS)
    assert [row['ap50'] for row in rows if row['epochs'] == '12'] == ['0.97']
    assert {row['epochs'] for row in rows} == {'6', '12'}


def test_pictures(folder):
    for name in ('ap50.png', 'examples.png'):
        picture = matplotlib.image.imread(folder / name)
        assert picture.shape[1] > 300
        assert picture.std() > 0.05


def test_no_records(tmp_path):
    with pytest.raises(ValueError, match='holds no record'):
        write_report(tmp_path)
