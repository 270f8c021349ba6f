"""Parameters and FLOPs of the tables' rows."""

from dataclasses import replace
from unittest import mock

import pytest

from prm_mmdet.papers import TABLES, Counting, find_table
from prm_mmdet.papers.complexity import check, complexity, counted, here

COUNTED = [table.key for table in TABLES if table.counting]
WAY = Counting((800, 1344))
EVERY_LAYER = Counting((224, 224), every_layer=True)
# ResNet-50's c3, c4 and c5 at that size: blocks, channels of the 3x3, positions.
STAGES = ((4, 128, 100 * 168), (6, 256, 50 * 84), (3, 512, 25 * 42))


@pytest.fixture(scope='module', autouse=True)
def quick_norms():
    """Batch normalisation keeps shapes, but takes half of the time on a meta device."""
    with mock.patch('torch.nn.functional.batch_norm', lambda x, *_, **__: x):
        yield


def rise(config, what):
    name = f'sac/mask-rcnn_r50-{config}-c3-c5_fpn_4xb2-1x_coco.py'
    base = complexity('sac/mask-rcnn_r50_fpn_4xb2-1x_coco.py', WAY)
    return getattr(complexity(name, WAY), what) - getattr(base, what)


@pytest.mark.parametrize('key', COUNTED)
def test_every_cell_is_within_tolerance_or_has_a_remark(key):
    table = find_table(key)
    cells = list(check(table))
    baselines = {r.baseline for r in table.rows if 'flops' in r.cells}
    left_out = 0 if table.counting.every_layer else len(baselines)
    assert len(cells) == _complexity_cells(table) - left_out > 0
    wrong = [
        (c.row.config, c.column, c.row.cells[c.column], c.counted)
        for c in cells
        if not c.passed
    ]
    assert not wrong
    # A remark is only for a cell that needs one.
    assert all(c.off > 1 for c in cells if c.remark)


def _complexity_cells(table):
    columns = ('params', 'flops', 'd_params', 'd_flops')
    return sum(c in row.cells for row in table.rows for c in columns)


def test_every_table_with_complexity_cells_says_how_to_count():
    for table in TABLES:
        assert bool(_complexity_cells(table)) == (table.counting is not None)


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
    bam = complexity('sac/mask-rcnn_r50-bam-c2-c4_fpn_4xb2-1x_coco.py', WAY)
    base = complexity('sac/mask-rcnn_r50_fpn_4xb2-1x_coco.py', WAY)
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
    digits = find_table('lct-6').digits
    assert [digits(c) for c in ('d_params', 'd_flops')] == [2, 3]


# -- classifiers: every layer counts ---------------------------------------------------


def test_a_resnet_by_hand():
    # ResNet-18 at 64 x 64, layer by layer: convolutions; then what ptflops adds, two
    # operations an element for norms, one for the rest, and no bias of the last layer.
    layers, maps = 64 * 3 * 49 * 32**2, 64 * 32**2
    relus = maps
    stages = ((64, 64, 16), (128, 64, 8), (256, 128, 4), (512, 256, 2))
    for width, before, side in stages:
        positions = side**2
        layers += positions * 9 * width * (before + 3 * width)
        maps += 4 * width * positions
        relus += 4 * width * positions
        if before != width:
            layers += positions * before * width
            maps += width * positions
    pooled = 64 * 32**2 + 512 * 2**2
    expected = layers + 512 * 1000 + 2 * maps + relus + pooled
    way = Counting((64, 64), every_layer=True)
    model = complexity('imagenet/resnet18_8xb32-100e_imagenet.py', way)
    assert model.flops == expected
    assert model.params == model.trainable == 11_689_512
    assert model.flops_here == layers + 512 * 1000


def added(name, recipe='8xb32-100e'):
    models = [
        f'imagenet/{n}_{recipe}_imagenet.py' for n in (f'resnet50{name}', 'resnet50')
    ]
    block, plain = (complexity(m, EVERY_LAYER) for m in models)
    return block.params - plain.params, block.flops - plain.flops


# ResNet-50's blocks: how many, channels of their outputs, positions.
BLOCKS = ((3, 256, 56**2), (4, 512, 28**2), (6, 1024, 14**2), (3, 2048, 7**2))


def test_gates_of_every_block_by_hand():
    once = sum(n * c * p for n, c, p in BLOCKS)
    assert added('-ge-c2-c5') == (0, once)
    assert added('-sge-c2-c5') == (16 * 2 * 64, once)
    assert added('-lct-c2-c5') == (2 * sum(n * c for n, c, _ in BLOCKS), once)
    # PRM finds its query on one map a head.
    queries = sum(n * 64 * p for n, _, p in BLOCKS)
    assert added('-prm-c2-c5') == (16 * (4 * 64 + 3), once + queries)
    layers = sum(n * 2 * c * c // 16 for n, c, _ in BLOCKS)
    biases = sum(n * (c // 16 + c) for n, c, _ in BLOCKS)
    assert added('-se-c2-c5') == (layers + biases, once + layers + biases)


def test_sac_at_the_ends_of_three_stages_by_hand():
    params = flops = 0
    for _, channels, positions in BLOCKS[:3]:
        width = channels // 4  # of the 3x3
        contexts = width // 32
        one = 2 * contexts * (width + 1) + width * (width + 1)  # biases count here
        params += one
        flops += one * positions
    assert added('-sac-c2-c4', '4xb64-100e-warmup') == (params, flops)


def test_absolute_flops_are_compared_and_ours_are_shown_beside():
    table = find_table('prm-2')
    base = table.rows[0]
    assert counted(table, base, 'flops') == pytest.approx(4.121924096)
    assert here(table, base, 'flops') == pytest.approx(4.089184256)  # layers alone
    assert counted(table, base, 'params') == pytest.approx(25.557032)


def test_the_tool_checks_and_fails(run_tool, monkeypatch, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            run_tool('paper_tables.py', '--check', *arguments)
        return stop.value.code, capsys.readouterr().out

    code, text = run('sac-VII')
    assert not code and '13 cells: 9 exact, 3 one off' in text.splitlines()[-1]
    table = find_table('sac-VII')
    row = replace(table.rows[0], cells={'params': 1.0})
    monkeypatch.setattr('prm_mmdet.papers.TABLES', (replace(table, rows=(row,)),))
    code, text = run()
    assert code == 1
    assert 'WRONG  sac-VII  mask-rcnn_r50_fpn_4xb2-1x_coco  params' in text
