"""Parameters and FLOPs of the tables' rows."""

from dataclasses import replace

import pytest
from conftest import ROOT

from prm_mmdet.papers import TABLES, find_table
from prm_mmdet.papers.complexity import check, complexity, counted, digits, here

COUNTED = [table.key for table in TABLES if table.counting]
SIZE = (800, 1344)
# ResNet-50's c3, c4 and c5 at that size: blocks, channels of the 3x3, positions.
STAGES = ((4, 128, 100 * 168), (6, 256, 50 * 84), (3, 512, 25 * 42))


def rise(config, what):
    name = f'sac/mask-rcnn_r50-{config}-c3-c5_fpn_4xb2-1x_coco.py'
    base = complexity('sac/mask-rcnn_r50_fpn_4xb2-1x_coco.py', SIZE)
    return getattr(complexity(name, SIZE), what) - getattr(base, what)


@pytest.mark.parametrize('key', COUNTED)
def test_every_cell_is_within_tolerance_or_has_a_remark(key):
    cells = list(check(find_table(key)))
    assert cells
    wrong = [
        (c.row.config, c.column, c.row.cells[c.column], c.counted)
        for c in cells
        if not c.passed
    ]
    assert not wrong
    # A remark is only for a cell that needs one.
    assert all(c.off > 1 for c in cells if c.remark)


def test_every_complexity_cell_is_checked():
    columns = ('params', 'flops', 'd_params', 'd_flops')
    for table in TABLES:
        cells = sum(c in row.cells for row in table.rows for c in columns)
        assert bool(cells) == (table.counting is not None)
        if table.counting:
            baselines = {r.baseline for r in table.rows if 'flops' in r.cells}
            assert len(list(check(table))) == cells - len(baselines)


def test_a_wrong_cell_does_not_pass():
    table = find_table('sac-VII')
    rows = [replace(r, cells=dict(r.cells, params=46.7)) for r in table.rows[:2]]
    (base, block) = (c for c in check(replace(table, rows=rows)) if c.column[0] == 'p')
    assert not base.passed and base.off == 23
    assert not block.passed and block.off == 2


def test_the_papers_form_of_sac_by_hand():
    # Eq. 5's layers: phi and theta to K contexts, rho from C to C; biases are not
    # multiplied.
    flops = params = 0
    for blocks, channels, positions in STAGES:
        contexts = channels // 32
        weights = 2 * contexts * channels + channels**2
        flops += blocks * weights * positions
        params += blocks * (weights + 2 * contexts + channels)
    assert rise('sac', 'flops') == flops
    assert rise('sac', 'params') == rise('sac', 'trainable') == params


def test_pooling_and_layers_of_squeeze_and_excitation_by_hand():
    flops = params = 0
    for blocks, width, positions in STAGES:
        channels = 4 * width
        layers = 2 * channels * channels // 16
        flops += blocks * (channels * positions + layers)
        params += blocks * (layers + channels // 16 + channels)
    assert rise('se', 'flops') == flops
    assert rise('se', 'params') == params


def test_three_bams_by_hand():
    # At the ends of c2 to c4; batch normalisation is 4 layers of 2 numbers a channel.
    flops = params = 0
    for channels, positions in ((256, 200 * 336), (512, 100 * 168), (1024, 50 * 84)):
        hidden = channels // 16
        gate = 2 * channels * hidden
        maps = channels * hidden + 2 * 9 * hidden**2 + hidden
        flops += channels * positions + gate + maps * positions
        params += gate + maps + 4 * hidden + channels + 1 + 4 * 2 * hidden
    bam = complexity('sac/mask-rcnn_r50-bam-c2-c4_fpn_4xb2-1x_coco.py', SIZE)
    base = complexity('sac/mask-rcnn_r50_fpn_4xb2-1x_coco.py', SIZE)
    assert bam.flops - base.flops == flops
    # All of them are trained: none stands in the frozen c2.
    assert bam.params - base.params == bam.trainable - base.trainable == params


def test_cells_are_in_the_columns_units():
    table = find_table('sac-VII')
    base, se = table.rows[:2]
    # A baseline's own FLOPs have nothing to be compared with.
    assert counted(table, base, 'flops') is here(table, base, 'flops') is None
    assert 44.39 < counted(table, base, 'params') < 44.40
    assert 279.46 < counted(table, se, 'flops') < 279.47
    # The paper's are the parameters that are trained, ours are all.
    base = find_table('prm-4').rows[0]
    numbers = [f(find_table('prm-4'), base, 'params') for f in (counted, here)]
    assert numbers[1] - numbers[0] == pytest.approx(0.225344)
    assert [digits(find_table('lct-6'), c) for c in ('d_params', 'd_flops')] == [2, 3]


def test_the_tool_checks_and_fails(run_python):
    tool = ROOT / 'tools' / 'paper_tables.py'
    text = run_python(tool, '--check', 'sac-VII').stdout
    assert '13 cells: 9 exact, 3 one off' in text.splitlines()[-1]
    code = (
        'import runpy, sys; from dataclasses import replace\n'
        'from prm_mmdet.papers import tables\n'
        't = tables.find_table("sac-VII")\n'
        'row = replace(t.rows[0], cells={"params": 1.0})\n'
        'import prm_mmdet.papers as p\n'
        'p.TABLES = (replace(t, rows=(row,)),)\n'
        f'sys.argv = ["x", "--check"]\nrunpy.run_path({str(tool)!r}, None, "__main__")'
    )
    wrong = run_python('-c', code, check=False)
    assert wrong.returncode == 1
    assert 'WRONG  sac-VII  mask-rcnn_r50_fpn_4xb2-1x_coco  params' in wrong.stdout
