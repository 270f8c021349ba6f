"""What stands in the figures, read from the figures."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from prm_mmdet import LCT, PRM, SAC
from prm_mmdet.inspection.capture import COSINE_BINS, Maps, Moments, Record
from prm_mmdet.inspection.figure_files import new_figure, png
from prm_mmdet.inspection.gate_figures import gate_statistics
from prm_mmdet.inspection.geometry import Frame, Grid
from prm_mmdet.inspection.lct_figures import attention_by_context, context_change
from prm_mmdet.inspection.page import Entry, write_page
from prm_mmdet.inspection.prediction_figures import (
    Instance,
    compare_predictions,
    unmatched,
)
from prm_mmdet.inspection.prm_figures import contribution_rates, query_points
from prm_mmdet.inspection.sac_figures import (
    attention_maps,
    feature_norms,
    shown_block,
    weight_similarity,
)
from prm_mmdet.inspection.style import (
    STAGES,
    colour_bar,
    image_grid,
    short_names,
    show_map,
)

IMAGE = np.zeros((40, 60, 3), np.uint8)
FRAME = Frame(dict(ori_shape=(40, 60), scale_factor=(2.0, 2.0)))
GRID = Grid((16, 16), (0, 0))  # of a map of 5 x 8 on the 80 x 120 pixels of the input


def drawable(figure):
    """Whether a figure gives a picture in which not all is blank."""
    picture = np.asarray(Image.open(io.BytesIO(png(figure, dpi=50))))
    return picture.ndim == 3 and picture.std() > 5


def names(figure):
    """Labels of a figure's axes."""
    return {a.get_xlabel() for a in figure.axes} | {a.get_ylabel() for a in figure.axes}


def prm_records():
    records = []
    for name, stage, alpha in (('2.0', 'c3', 1), ('2.1', 'c3', 3), ('3.0', 'c4', 0)):
        block, name = PRM(8, groups=4), f'backbone.layer{name}.prm'
        block.alpha.data.fill_(alpha)
        maps = Maps(
            GRID,
            query=np.array([[1, 2], [1, 2], [0, 7], [4, 7]]),
            encoding=np.linspace(0, 0.4, 40).reshape(5, 8),
        )
        records.append(Record(name, block, 1, stage, maps=[maps]))
    return records


def test_contribution_rates():
    figure = contribution_rates(prm_records())
    (axis,) = figure.axes
    assert axis.lines[0].get_ydata() == pytest.approx([0.5, 0.75, 0])
    points = [c.get_offsets().tolist() for c in axis.collections]
    assert points == [[[0, 0.5], [1, 0.75]], [[2, 0]]]  # c3, c4
    ticks = [t.get_text() for t in axis.get_xticklabels()]
    assert ticks == ['layer2.0', 'layer2.1', 'layer3.0']
    legend = [t.get_text() for t in axis.get_legend().get_texts()]
    assert legend == ['c3', 'c4'] and '' not in names(figure)
    assert drawable(figure)


def test_query_points_are_drawn_in_pixels_of_the_image():
    figure = query_points(prm_records(), 0, IMAGE, FRAME)
    upper = figure.axes[:2]
    (points,) = upper[0].collections
    # Column 2, row 1 is pixel (32, 16) of the input, which has half-size pixels. Row 4
    # is pixel 64 of 80, column 7 is pixel 112 of 120: all inside.
    found = sorted(points.get_offsets().tolist())
    assert found == [[15.75, 7.75], [55.75, -0.25], [55.75, 31.75]]
    assert points.get_sizes().max() > points.get_sizes().min()  # two groups, one point
    assert upper[0].get_title() == 'c3: 4 groups, 3 query points'
    masks = [axis.images[1] for axis in figure.axes[2:4]]
    assert len({mask.get_clim() for mask in masks}) == 1
    expected = FRAME.resize(prm_records()[0].maps[0].encoding, GRID)
    assert np.asarray(masks[0].get_array()) == pytest.approx(expected)
    assert drawable(figure)


def test_query_points_in_the_padding_are_counted():
    small = Frame(dict(ori_shape=(30, 60), scale_factor=(2.0, 2.0)))
    figure = query_points(prm_records(), 0, IMAGE[:30], small)
    assert '1 of the groups in the padding' in figure.axes[0].get_title()
    assert len(figure.axes[0].collections[0].get_offsets()) == 2


def test_without_position_encoding_there_is_no_mask():
    records = prm_records()
    for record in records:
        record.maps[0].encoding = None
    assert len(query_points(records, 0, IMAGE, FRAME).axes) == 2


def lct_records():
    values = dict(
        context_in=np.array([0.5, -1.0, 0.0, 2.0]),
        context_out=np.array([0.25, -0.2, 0.0, 0.4]),
        channel_gate=np.array([0.5, 0.2, 0.7, 0.2]),
    )
    later = {k: v[::-1] for k, v in values.items()}
    return [
        Record('backbone.layer2.0.lct', LCT(4, 2), 3, 'c3', **values),
        Record('backbone.layer2.1.lct', LCT(4, 2), 3, 'c3', **later),
        Record('backbone.layer3.0.lct', LCT(4, 2), 3, 'c4', **later),
    ]


def test_channels_are_sorted_by_their_context():
    figure = attention_by_context(lct_records())
    upper, lower = figure.axes[0], figure.axes[2]
    assert upper.lines[0].get_ydata().tolist() == [0.2, 0.7, 0.5, 0.2]
    before = {line.get_label(): line.get_ydata().tolist() for line in lower.lines}
    assert before == {'before': [-1, 0, 0.5, 2], 'after': [-0.2, 0, 0.25, 0.4]}
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert drawable(figure)
    figure = context_change(lct_records())
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([0.8, 0, 0.25, 1.6])
    assert drawable(figure)


def sac_records():
    """Three contexts: two alike, in the left half, one in the right half."""
    left = np.zeros((5, 8), np.float32)
    left[:, :4] = 1 / 20
    attention = np.stack([left, 0.9 * left + 0.1 / 40, left[:, ::-1]])
    norms = dict(norm_in=left * 40, norm_added=left[:, ::-1] * 10)
    maps = [Maps(GRID, attention=attention, **norms)]
    bins = len(COSINE_BINS) - 1
    cosines = {False: np.arange(bins), True: np.eye(bins)[-1]}
    found = dict(contexts=3, cosines=cosines, maps=maps)
    return [
        Record(f'backbone.layer{i}.0.sac_block', SAC(16), 1, f'c{i + 1}', **found)
        for i in (2, 3, 4)
    ]


def test_the_paper_shows_c4():
    records = sac_records()
    assert shown_block(records).stage == 'c4'
    assert shown_block(records[:1]).stage == 'c3'


def test_contexts_are_shown_that_differ():
    figure = attention_maps(sac_records()[1], [IMAGE], [FRAME], contexts=2)
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == ['', 'context 1 of 3', 'context 3 of 3']
    left, right = (axis.images[1] for axis in figure.axes[1:3])
    assert left.get_array().max() == pytest.approx(2)  # half of the positions share it
    assert left.get_clim() == right.get_clim()
    assert left.get_array()[:, :15].min() == pytest.approx(2)
    assert right.get_array()[:, :15].max() == pytest.approx(0)
    assert drawable(figure)


def test_feature_norms():
    figure = feature_norms(sac_records()[1], [IMAGE], [FRAME])
    before, added = (axis.images[1] for axis in figure.axes[1:3])
    assert before.get_clim() == (0, 2) and added.get_clim() == (0, 0.5)
    assert drawable(figure)
    fresh = sac_records()[1]
    fresh.maps[0].norm_added[:] = 0
    figure = feature_norms(fresh, [IMAGE], [FRAME])
    assert figure.axes[2].images[1].get_clim() == (0, 1)


def test_similarities_are_shares():
    figure = weight_similarity(sac_records())
    without, normalised = figure.axes[0].patches
    assert without.get_data().values.sum() == pytest.approx(100)
    assert normalised.get_data().values[-1] == pytest.approx(100)
    assert figure.axes[1].get_title().startswith('c4, K = 3')
    assert drawable(figure)


def test_gate_statistics():
    records = [*prm_records(), *lct_records()]
    for i, record in enumerate(records):
        record.gates[''] = Moments()
        record.gates[''].update(torch.tensor([0.0, 0.1 * i, 0.2 * i]))
    figure = gate_statistics(records)
    upper, lower = figure.axes
    data = [np.stack(c.lines[0].get_data(), 1) for c in upper.containers]
    assert [len(d) for d in data] == [3, 3]
    assert np.concatenate(data)[:, 1] == pytest.approx(0.1 * np.arange(6))
    # Below 0.05: all, then the first of three; above 0.95: the last of the sixth.
    shares = np.concatenate([line.get_ydata() for line in lower.lines])
    expected = [100, 100 / 3, 100 / 3, 100 / 3, 100 / 3, 200 / 3]
    assert shares == pytest.approx(np.array(expected))
    assert drawable(figure)


def test_short_names():
    def shortened(*full):
        return short_names([Record(name, None) for name in full])

    layers = shortened('backbone.layer2.0.prm', 'backbone.layer3.0.prm')
    assert layers == ['layer2.0', 'layer3.0']
    levels = shortened('neck.sac_block.0', 'neck.sac_block.1')
    assert levels == ['sac_block.0', 'sac_block.1']
    assert shortened('prm') == ['prm']


def instance(x, label=0):
    return Instance((x, 10.0, x + 10.0, 20.0), None, label, 'thing')


def test_unmatched():
    boxes = [instance(0), instance(2), instance(30), instance(30, label=1)]
    others = [instance(1), instance(31)]
    # The first takes the other near it, once; a label of its own has none.
    assert unmatched(boxes, others) == {1, 3}
    assert unmatched(others, boxes) == set()
    assert unmatched(boxes, []) == {0, 1, 2, 3}


def test_differing_predictions_are_thick():
    found = [[[instance(0), instance(30)]], [[instance(0)]]]
    figure = compare_predictions(
        [IMAGE], [[instance(0)]], found, ['one', 'two'], ['a.jpg']
    )
    assert [axis.get_title() for axis in figure.axes] == ['ground truth', 'one', 'two']
    widths = [[p.get_linewidth() for p in axis.patches] for axis in figure.axes]
    assert widths == [[1.5], [0.7, 2.5], [0.7]]
    alone = compare_predictions([IMAGE], [None], found[:1], ['one'], ['b' * 40])
    names = [t.get_text() for f in (figure, alone) for t in f.axes[0].texts]
    assert 'a.jpg' in names and '...' + 'b' * 27 in names
    assert [p.get_linewidth() for p in alone.axes[0].patches] == [1.5, 1.5]


def test_pictures_of_an_earlier_page_are_removed(tmp_path):
    def page(*names):
        entries = [Entry(n, n, n, new_figure(1, 1)[0]) for n in names]
        write_page(str(tmp_path), 'page', {}, entries)

    (tmp_path / 'own.png').write_bytes(b'not of a page')
    page('gates', 'gradcam_1')
    page('gates')
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ['gates.png', 'index.html', 'own.png']


def test_rows_take_the_shape_of_their_images():
    shapes = [(40, 20, 3), (20, 40, 3), (10, 60, 3)]
    images = [np.zeros(shape, np.uint8) for shape in shapes]
    figure, axes = image_grid(images, 2)
    drawn = [show_map(row[0], i, i[..., 0]) for row, i in zip(axes, images)]
    colour_bar(figure, drawn[2], axes[2], 'attention over that of equal shares')
    png(figure)
    heights = [axis.get_position(original=True).height for axis in axes[:, 0]]
    assert heights[0] > 1.5 * heights[1] > 1.5 * heights[2]
    bar = figure.axes[-1].yaxis.label
    assert bar.get_text().replace('\n', ' ') == 'attention over that of equal shares'
    box = bar.get_window_extent()
    assert box.y0 >= 0 and box.x1 <= figure.bbox.width


def test_stages_of_necks_have_colours_of_their_own():
    assert len(set(STAGES.values())) == len(STAGES) == 6
