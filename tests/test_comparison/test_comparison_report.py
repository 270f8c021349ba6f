"""Reports, from records as the runner writes them."""

import dataclasses
import json

import pytest

from prm_mmdet.comparison.blocks import read_blocks
from prm_mmdet.comparison.comparison_page import as_page
from prm_mmdet.comparison.comparison_report import as_markdown, collect
from prm_mmdet.comparison.plan import make_comparison

AP = 'coco/bbox_mAP'
AR = 'coco/bbox_mAP_s'
CONTROL = [0.300, 0.310, 0.320]
RESULTS = dict(
    none=CONTROL,
    SAC=[ap + gain for ap, gain in zip(CONTROL, (0.011, 0.012, 0.013))],
    PRM=[ap + gain for ap, gain in zip(CONTROL, (-0.02, 0.03, 0.01))],
)


def record(ap, seen=7):
    evaluations = [{'step': 1, AP: ap / 2}, {'step': 2, AP: ap}]
    return dict(
        settings={},
        begun='',
        seconds=60.0,
        unit='epoch',
        step=2,
        metrics={AP: ap, AR: -1.0},
        evaluations=evaluations,
        measured=dict(data_seen=seen),
    )


def write_records(comparison, folder):
    """The same comparison in another folder, with finished runs."""
    comparison = dataclasses.replace(comparison, work_dir=folder)
    for variant in comparison.variants:
        for seed in comparison.seeds:
            cell = comparison.cell_dir(variant, seed)
            cell.mkdir(parents=True)
            value = record(RESULTS[variant.label][seed])
            (cell / 'record.json').write_text(json.dumps(value))
    return comparison


def planned(config, blocks, rates=()):
    return make_comparison(
        str(config), blocks, seeds=3, work_dir='', rates=rates, rehearse=False
    )


@pytest.fixture(scope='module')
def plan(user_config):
    return planned(user_config, read_blocks(['SAC', 'PRM']))


@pytest.fixture
def comparison(plan, tmp_path):
    return write_records(plan, tmp_path)


def rewrite(comparison, number, **changes):
    cell = comparison.cells()[number]
    value = {**json.loads((cell.work_dir / 'record.json').read_text()), **changes}
    (cell.work_dir / 'record.json').write_text(json.dumps(value))
    return cell


def test_numbers_of_a_report(comparison):
    found = collect(comparison)
    none, sac, prm = found['entries']
    assert none['metrics'][AP]['mean'] == pytest.approx(0.31)
    assert none['metrics'][AP]['deviation'] == pytest.approx(0.01)
    difference = sac['metrics'][AP]['difference']
    # 4.3027 and 6.2053: Student's t with 2 degrees of freedom, 97.5% and 98.75%.
    # The values are rounded to 0.001, which adds a variance of 0.001**2 / 6.
    half = 0.001 * (7 / 6) ** 0.5 / 3**0.5
    assert difference['interval'][0] == pytest.approx(0.012 - 4.3027 * half, 1e-4)
    assert difference['corrected'][0] == pytest.approx(0.012 - 6.2053 * half, 1e-4)
    assert sac['verdict'] == 'SAC gains 1.2 AP (0.9 to 1.5).'
    assert prm['verdict'].startswith('PRM: no difference that three seeds can show')
    assert 'difference' not in none['metrics'][AP]
    assert sac['other_data'] == []
    assert none['metrics'][AR] == dict(values={})  # COCO's -1 is no value
    json.dumps(found)


def test_markdown(comparison):
    text = as_markdown(collect(comparison), pictures=False)
    row = next(line for line in text.splitlines() if line.startswith('| SAC  '))
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert cells[:5] == ['SAC', '32.2 ± 1.1', '3', '+1.2', '+0.9 to +1.5']
    assert 'looks better than it is' in text
    assert '.png' not in text
    assert '(report.png)' in as_markdown(collect(comparison))
    assert '-100' not in text


def test_the_page_needs_no_other_file(comparison):
    page = as_page(collect(comparison))
    assert page.count('src="data:image/png;base64,') == 1
    assert 'SAC gains 1.2 AP (0.9 to 1.5).' in page
    assert 'href' not in page


def test_costs(comparison):
    ratio = dict(median=1.25, low=1.2, high=1.3)
    blocks = {b: dict(step=ratio, inference=ratio, memory=1.1) for b in ('SAC', 'PRM')}
    cost = dict(device='CPU', rounds=10, batches=[4, 1], blocks=blocks)
    found = collect(comparison, cost)
    assert found['entries'][1]['cost'] == blocks['SAC']
    assert '10 interleaved rounds on CPU' in as_markdown(found)


def test_one_seed(comparison):
    text = as_markdown(collect(dataclasses.replace(comparison, seeds=[0])))
    assert 'gains' not in text
    assert 'no intervals and no verdicts' in text


def test_rates_are_compared_each_with_its_own_control(user_config, tmp_path):
    plan = planned(user_config, read_blocks(['SAC']), rates=[1e-3, 3e-3])
    comparison = write_records(plan, tmp_path)
    rewrite(comparison, 2, metrics={AP: 0.4})  # the control's at 3e-3, seed 0
    entries = collect(comparison)['entries']
    differences = [e['metrics'][AP].get('difference') for e in entries]
    assert differences[1]['mean'] == pytest.approx(0.012)
    assert differences[3]['mean'] == pytest.approx((-0.089 + 0.025) / 3)
    assert collect(comparison)['comparisons'] == 2


def test_unfinished_runs_are_named_and_left_out(comparison):
    cell = comparison.cells()[-1]  # PRM's with seed 2
    (cell.work_dir / 'record.json').unlink()
    found = collect(comparison)
    assert found['entries'][2]['metrics'][AP]['difference']['count'] == 2
    assert 'Not finished: PRM, seed 2.' in as_markdown(found)


def test_runs_that_saw_other_data_are_named(comparison):
    rewrite(comparison, 1, measured=dict(data_seen=8))
    assert collect(comparison)['entries'][1]['other_data'] == [0]
    assert 'seen by: SAC, seed 0' in as_markdown(collect(comparison))
