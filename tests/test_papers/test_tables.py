"""The papers' tables and the configs that stand for their rows."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import ROOT

from prm_mmdet.benchmark.fps_records import record_fps
from prm_mmdet.inspection.prm_figures import accuracy_by_groups
from prm_mmdet.papers import TABLES, Row, Table, find_table
from prm_mmdet.papers.groups_figure import write_groups_figure
from prm_mmdet.papers.table_report import measured, report

ROWS = {row.config for table in TABLES for row in table.rows}
# Gains that the papers print in brackets.
GAINS = {
    'lct-6': [1.3, 1.5, 1.3, 1.5, 1.4, 1.6, 1.1, 1.5],
    'sac-V': [1.3, 2.3, 1.4, 1.6, 1.4, 1.9, 1.3, 1.9],
    'sac-VI': [1.1, 2.0, 1.3, 1.5, 1.5, 2.2, 1.1, 1.9, 1.5, 2.2, 1.3, 1.6],
    'sac-VII': [1.0, 1.6, 0.0, 1.6, 1.3, 2.3],
    'sac-VIII': [1.2, 1.7, 1.0, 1.5, 0.9, 1.4, 0.7, 1.2, 0.6, 1.0, 0.9, 1.2],
}

# Of the cells that were read against the papers, one by one: the sum of each times
# the numbers of its row and column, so that a slip of the pen shows.
SUMS = {
    'prm-4': 64294.960,
    'lct-6': 119318.732,
    'lct-7': 18278.800,
    'sac-I': 233791.200,
    'sac-II': 5687.300,
    'sac-III': 19717.700,
    'sac-IV': 5492.500,
    'sac-V': 99690.700,
    'sac-VI': 201588.600,
    'sac-VII': 67478.100,
    'sac-VIII': 49972.000,
    'prm-1': 13748.4942,
    'prm-2': 2015.9663,
    'prm-3': 5403.2973,
    'prm-5': 3739.7632,
    'lct-1': 13933.7540,
    'lct-2': 5556.0700,
    'lct-3': 1582.3500,
    'lct-4': 1588.7000,
    'lct-5': 1587.2600,
    'sac-IX': 28666.0820,
    'sac-X': 69821.8660,
}


# The same of the gains in accuracy that SAC's Table IX prints, top-1 and top-5.
GAINS_IX = {
    'top1': [0.372, 0.478, 0.412, 0.834, 0.496, 0.810, -0.512, -0.612],
    'top5': [0.198, 0.288, 0.154, 0.536, 0.134, 0.340, -0.106, -0.258],
}


def test_every_row_has_its_config():
    missing = {config for config in ROWS if not (ROOT / 'configs' / config).is_file()}
    assert not missing


def test_every_config_on_the_papers_protocols_is_a_row():
    ours = {
        p.relative_to(ROOT / 'configs').as_posix()
        for folder in ('prm', 'lct', 'sac')
        for p in (ROOT / 'configs' / folder).glob('*.py')
    }
    # The others: MMDetection 3's defaults, and fresh blocks in c3-c5 beside the papers'
    # pre-trained ones.
    companions = {c for c in ours if c.endswith('_fpn_1x_coco.py')}
    companions |= {c for c in ours if c[:3] != 'sac' and '-c3-c5_' in c}
    assert ours - companions == {c for c in ROWS if not c.startswith('imagenet/')}


def test_every_config_of_imagenet_is_a_row_or_a_block_in_another_network():
    folder = ROOT / 'configs' / 'imagenet'
    ours = {f'imagenet/{p.name}' for p in folder.glob('*.py')}
    companions = {
        'resnet50-lct-c2-c5_8xb32-100e',
        'resnet101_8xb32-100e',
        'resnet101-prm-c2-c5_8xb32-100e',
        'resnet18-lct-c2-c5_8xb32-100e',
        'resnet18_4xb64-100e-warmup',
        'resnet18-sac-c2-c4_4xb64-100e-warmup',
        'mobilenet-v2-lct_8xb32-100e',
        'mobilenet-v2_4xb64-100e-warmup',
        'mobilenet-v2-sac_4xb64-100e-warmup',
    }
    companions = {f'imagenet/{name}_imagenet.py' for name in companions}
    assert ours - companions == {c for c in ROWS if c.startswith('imagenet/')}


@pytest.mark.parametrize('key', GAINS)
def test_cells_give_the_gains_that_the_papers_print(key):
    table = find_table(key)
    cells = {row.config: row.cells for row in table.rows}
    gains = [
        round(row.cells['bbox_mAP'] - cells[row.baseline]['bbox_mAP'], 1)
        for row in table.rows
        if row.config != row.baseline
    ]
    assert gains == GAINS[key]


def test_accuracies_give_the_gains_that_the_paper_prints():
    table = find_table('sac-IX')
    base, *rows = table.rows
    for column, printed in GAINS_IX.items():
        gains = [round(r.cells[column] - base.cells[column], 3) for r in rows]
        differ = [i for i, (a, b) in enumerate(zip(gains, printed)) if a != b]
        # A slip, which has a remark.
        assert differ == ([0] if column == 'top1' else [])
    assert (rows[0].config, 'top1') in table.remarks


@pytest.mark.parametrize('key', SUMS)
def test_cells_are_those_that_were_read(key):
    table = find_table(key)
    total = sum(
        i * j * row.cells.get(column, 0)
        for i, row in enumerate(table.rows, 1)
        for j, column in enumerate(table.columns, 1)
    )
    assert total == pytest.approx(SUMS[key], abs=5e-4)


def test_the_same_model_has_the_same_numbers_in_every_table():
    seen = {}
    for table in TABLES:
        for row in table.rows:
            for column, value in row.cells.items():
                # SAC's Table X rounds what IX prints, and PRM's 2 what 1 prints.
                places, cell = table.digits(column), (row.config, column)
                first, other = seen.setdefault(cell, (value, places))
                tolerance = 0.5 * 10 ** -min(places, other) + 1e-9
                assert abs(first - value) <= tolerance, (table.key, *cell)


def test_averages_lie_between_their_parts():
    # AP is at most AP50, and among small, medium and large; the slip stands alone.
    for table in TABLES:
        for row in table.rows:
            for kind in ('bbox', 'segm'):
                get = row.cells.get
                if get(f'{kind}_mAP') and get(f'{kind}_mAP_50'):
                    assert get(f'{kind}_mAP') < get(f'{kind}_mAP_75') + 4
                    assert get(f'{kind}_mAP') < get(f'{kind}_mAP_50')
                if get(f'{kind}_mAP_s'):
                    assert get(f'{kind}_mAP_s') < get(f'{kind}_mAP_m')
                    assert get(f'{kind}_mAP_m') < get(f'{kind}_mAP_l')


def test_top5_is_above_top1_and_no_row_is_empty_but_those_the_papers_left_so():
    empty = []
    for table in TABLES:
        for row in table.rows:
            get = row.cells.get
            if get('top5'):
                assert 15 < get('top5') - get('top1') < 20
            if not row.cells:
                empty.append(table.key)
    assert sorted(set(empty)) == ['lct-2', 'prm-fig4']
    assert empty.count('lct-2') == 1


def test_unknown_tables_are_refused():
    with pytest.raises(ValueError, match="no table 'sac-XI'; there are prm-4, lct-6"):
        find_table('sac-XI')


def write_log(folder, values, name='20260101_000000/vis_data/scalars.json'):
    """Write a log of a run, of a training or else of a test. Returns its path."""
    log = folder / name
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(json.dumps(values))
    return log


@pytest.fixture
def work_dirs(tmp_path):
    """Two evaluations of a baseline, the later worse, and one of a block."""
    runs = (('base', 1, 0.4), ('base', 2, 0.375), ('block', 1, 0.396))
    for config, day, bbox in runs:
        name = f'2026010{day}_000000/2026010{day}_000000.json'
        values = {'coco/bbox_mAP': bbox, 'coco/segm_mAP': 0.3}
        write_log(tmp_path / config, values, name)
    (tmp_path / 'block/20260101_000000/config.json').write_text('{\n')
    return tmp_path


TABLE = Table(
    'x-1',
    'A table',
    ('bbox_mAP', 'fps'),
    (
        Row('x/base.py', 'x/base.py', {'bbox_mAP': 37.3, 'fps': 9.9}),
        Row('x/block.py', 'x/base.py', {'bbox_mAP': 39.6}),
        Row('x/other.py', 'x/base.py', {'bbox_mAP': 36.0, 'fps': 1.0}),
    ),
)


def test_logs_that_say_nothing_are_passed_over(tmp_path):
    log = tmp_path / 'base' / '20260101_000000' / 'scalars.json'
    log.parent.mkdir(parents=True)
    lines = [b'\xff\xfe{', b'[1]', b'{"coco/bbox_mAP": null, "coco/segm_mAP": "0.4"}']
    lines += [b'{"coco/bbox_mAP": -1.0, "coco/bbox_mAP_75": NaN}', b'{"coco/bbox_m']
    log.write_bytes(b'\n'.join(lines))
    assert measured(tmp_path, 'x/base.py') == {}
    log.write_bytes(b'{"coco/segm_mAP": 0.25, "coco/bbox_mAP_s": -1.0}\n' + lines[0])
    assert measured(tmp_path, 'x/base.py') == {'segm_mAP': 25.0}


def test_accuracies_are_measured_in_percent(tmp_path):
    table = find_table('sac-IX')
    base, gc = table.rows[:2]
    for row, top1 in ((base, 0.76418), (gc, 0.7691)):
        values = {'accuracy/top1': top1, 'accuracy/top5': 0.93, 'step': 100}
        write_log(tmp_path / Path(row.config).stem, values)
    table = replace(table, rows=(base, gc), columns=('top1', 'top5'))
    rows = list(csv.reader(io.StringIO(report(table, tmp_path, 'csv'))))
    assert rows[1][2:6] == ['76.426', '', '76.42', '']
    assert rows[2][2:6] == ['76.898', '+0.472', '76.91', '+0.49']
    assert rows[2][6:10] == ['93.286', '+0.198', '93.0', '+0.00']


def test_a_report_sets_measured_beside_printed(work_dirs):
    cpu = torch.device('cpu')
    record_fps(work_dirs, ['x/base.py', 'x/other.py'], [None, None], [2.0, 0.5], cpu)
    record_fps(work_dirs, ['x/block.py'], ['epoch_12.pth'], [1.84], cpu)
    rows = list(csv.reader(io.StringIO(report(TABLE, work_dirs, 'csv'))))
    gains = ['bbox_mAP gain', 'bbox_mAP here', 'bbox_mAP gain here']
    fps = ['fps', 'fps ratio', 'fps here', 'fps ratio here']
    assert rows == [
        ['table', 'config', 'bbox_mAP', *gains, *fps, 'notes'],
        ['x-1', 'base', '37.3', '', '37.5', '', '9.9', '', '2', '', ''],
        # With trained weights a detector detects more than its baseline with random
        # weights: these figures have no ratio.
        ['x-1', 'block', '39.6', '+2.3', '39.6', '+2.1', '', '', '1.84', '', ''],
        ['x-1', 'other', '36.0', '-1.3', '', '', '1.0', '0.10', '0.5', '0.25', ''],
    ]
    alone = csv.reader(io.StringIO(report(TABLE, style='csv')))
    assert list(alone)[2] == ['x-1', 'block', '39.6', '+2.3', '', '']


def test_a_report_counts_the_complexity_again(work_dirs):
    table = find_table('sac-VII')
    table = replace(table, rows=(table.rows[0], table.rows[4]), columns=('flops',))
    rows = list(csv.reader(io.StringIO(report(table, work_dirs, 'csv'))))
    assert rows[0][2:-1] == ['flops', 'flops counted', 'flops here']
    assert rows[1][2:-1] == ['279.4', '', '']
    # Double Attention's two products of matrices are in our count alone.
    assert rows[2][2:-1] == ['336.6', '336.7', '343.8']


def test_slips_and_unfinished_runs_are_marked(tmp_path):
    table = find_table('sac-IV')
    name = 'mask-rcnn_r50-conv1x1-c3-c5_fpn_4xb2-1x_coco'
    write_log(tmp_path / name, {'coco/bbox_mAP': 0.2, 'step': 11})
    text = report(table, tmp_path)
    assert ' 46.3*' in text and f"* {name}, segm_mAP_75: the paper's slip" in text
    assert f'* {name}, measured after epoch 11 of 12' in text
    assert 'epoch 11 of 12' in report(table, tmp_path, 'csv')
    log = write_log(tmp_path / name, {'coco/bbox_mAP': 0.2, 'step': 12})
    assert 'measured after' not in report(table, tmp_path)
    # Tests of a checkpoint whose name has no epoch, and of one whose name has it.
    log.unlink()
    write_log(log.parents[1], {'coco/bbox_mAP': 0.2}, '20260101_000000.json')
    assert ' 20.0' in report(table, tmp_path)
    assert 'measured after' not in report(table, tmp_path)
    (log.parent / 'config.py').write_text("load_from = 'work/epoch_5.pth'\n")
    assert f'* {name}, measured after epoch 5 of 12' in report(table, tmp_path)
    assert '*' not in report(table, tmp_path, 'csv')


def test_the_styles_hold_the_same_cells(work_dirs):
    texts = [report(TABLE, work_dirs, style) for style in ('terminal', 'markdown')]
    for text in texts:
        for word in ('x-1: A table', 'block', '39.6', '+2.3', '+2.1'):
            assert word in text
    assert texts[0].splitlines()[2].split()[:4] == ['mAP'] * 4
    _, _, _, _, base, block, _ = texts[0].splitlines()
    assert base.index('37.3') == block.index('39.6')
    assert texts[1].splitlines()[3] == '| --- |' + ' ---: |' * 8


def test_the_tool_prints_a_named_table(run_tool, capsys):
    run_tool('paper_tables.py', 'sac-V')
    text = capsys.readouterr().out
    assert 'mask-rcnn_r50-sac-c3-c5_fpn_4xb2-1x_coco' in text and '+2.3' in text
    with pytest.raises(SystemExit, match='error: there is no table'):
        run_tool('paper_tables.py', 'sac-99')


def test_accuracy_by_groups_is_drawn_from_the_runs(tmp_path):
    with pytest.raises(ValueError, match='no evaluated run of prm-fig4, such as res'):
        write_groups_figure(str(tmp_path), str(tmp_path / 'x.png'))
    rows = find_table('prm-fig4').rows
    for row, top1 in zip(rows[:4], (0.68, 0.69, 0.70, 0.705)):
        values = {'accuracy/top1': top1, 'accuracy/top5': 0.9, 'step': 100}
        write_log(tmp_path / Path(row.config).stem, values)
    with mock.patch('prm_mmdet.papers.groups_figure.accuracy_by_groups') as drawn:
        drawn.side_effect = accuracy_by_groups
        write_groups_figure(str(tmp_path), str(tmp_path / 'x.png'))
    drawn.assert_called_once_with({8: 69.0, 16: 70.0, 32: 70.5}, 68.0)
    assert (tmp_path / 'x.png').read_bytes().startswith(b'\x89PNG')
