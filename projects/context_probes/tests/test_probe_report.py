"""The page of results of the context probes, written from records of trials."""

import csv
import json

import matplotlib.image
import pytest
from context_probes.probe_report import collect, verdict, write_report
from context_probes.records import fingerprint, read_records
from context_probes.trials import Trial, all_trials


def record(trial, ap50):
    example = dict(boxes=[[10.0, 20.0, 40.0, 50.0]], labels=[1], scores=[0.9])
    content = dict(
        probe=trial.probe,
        network=trial.network,
        rate=trial.rate,
        seed=trial.seed,
        ap=ap50 - 0.1,
        ap50=ap50,
        parameters=1_250_000,
        seconds=90.0,
        date='2026-01-02',
        versions=dict(torch='2.6.0'),
        config=fingerprint(trial),
        example=example,
        base='0123456789ab',
        largest={'attention.weight': 0.25},
    )
    if trial.epochs == 12:
        content.update(epochs=12, right=dict(one=[7, 8], two=[9, 10]))
    return content


RECORDS = [
    record(Trial('far-cue', 'none'), 0.5),
    record(Trial('far-cue', 'sac', seed=1), 0.94),
    record(Trial('far-cue', 'sac'), 1.0),
    record(Trial('control', 'none'), 0.9),
    record(Trial('control', 'gc'), 0.86),
    record(Trial('control', 'se'), 0.84),
    record(Trial('scene', 'sac'), 0.6),
    record(Trial('scene', 'sac', 1e-3), 0.95),
    record(Trial('scene', 'sac', epochs=12), 0.97),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('page')
    outdated = dict(RECORDS[0], network='lct', ap50=0.99, config='0123456789ab')
    lines = [json.dumps(content) + '\n' for content in [*RECORDS, outdated]]
    (folder / 'records.jsonl').write_text(''.join(lines))
    write_report(folder, folder / 'records.jsonl')
    return folder


def test_verdicts_are_of_the_mean_at_the_rate_of_the_configs():
    trials = collect(RECORDS)
    assert verdict(trials, 'far-cue', 'sac') is True
    assert verdict(trials, 'far-cue', 'none') is False
    assert verdict(trials, 'scene', 'sac') is False
    assert verdict(trials, 'control', 'sac') is None
    # On control, a verdict compares a network with 'none', the network without a block.
    assert verdict(trials, 'control', 'gc') is True
    assert verdict(trials, 'control', 'se') is False
    alone = {k: v for k, v in trials.items() if k.network != 'none'}
    assert verdict(alone, 'control', 'gc') is None


def test_page(folder):
    lines = (folder / 'probes.md').read_text().splitlines()
    assert '| SAC | 0.97 (0.87), 0.94-1.00 | 0.60 (0.50) |  |  |  | 1.25 M |' in lines
    # A second table has the trials with the other learning rate.
    assert '| SAC |  | 0.95 (0.85) |  |  |  | 1.25 M |' in lines
    assert (
        '| SAC | seen; agreed | seen; **not agreed** | not seen; not measured | '
        'seen; not measured | no harm; not measured |'
    ) in lines
    assert any(
        line.startswith('| SE |') and 'no harm; **not agreed**' in line
        for line in lines
    )
    # The page explains each prediction that the trials contradict.
    (position,) = (
        i for i, line in enumerate(lines) if line.startswith('- SAC, scene: ')
    )
    assert 'attention.weight 0.25' in lines[position + 1]
    assert '| SAC, scene | 0 | 0.60 | 0.97 | 7 of 8 | 9 of 10 |' in lines
    assert not any(line.startswith('- SAC, far-cue: ') for line in lines)
    assert any(line.startswith('  - SAC: Eq. 2 selects') for line in lines)
    assert any(
        line.startswith('9 of 250 trials (seeds: 0, 1) from 1 bases')
        and '2026-01-02' in line
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


def test_the_committed_records_are_of_the_present_configs():
    assert set(read_records()) >= {trial.name for trial in all_trials()}
    assert len(read_records()) == 256


def test_no_records(tmp_path):
    with pytest.raises(ValueError, match='has no record of a present config'):
        write_report(tmp_path, tmp_path / 'records.jsonl')
