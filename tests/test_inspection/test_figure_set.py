"""tools/inspect_model.py: the page, and what it refuses."""

import base64
import os
import re
import shutil
from html.parser import HTMLParser
from unittest import mock

import pytest
import torch
from conftest import ROOT
from matplotlib.figure import Figure
from mmdet.structures import DetDataSample
from mmengine.config import Config

from prm_mmdet import PRM
from prm_mmdet.datasets.demo_classes import generate_demo_classes
from prm_mmdet.inspection.figure_set import figures
from prm_mmdet.inspection.loading import Images, load_model
from prm_mmdet.inspection.style import class_name

DEMO = str(ROOT / 'configs/demo/mask-rcnn_r50-{}_fpn_demo.py')


@pytest.fixture
def inspect(demo_data, tmp_path, run_tool, capsys):
    """Run the tool on files; returns what it printed or refused."""

    def run(config, *arguments, images=(), out=tmp_path / 'out'):
        options = ['--images', *images, '--out', out, '--cfg-options']
        options += [f'test_dataloader.dataset.data_root={demo_data}/']
        try:
            run_tool('inspect_model.py', config, *arguments, *options)
        except SystemExit as stop:
            return str(stop)
        return capsys.readouterr().out

    return run


class Page(HTMLParser):
    """Headings, captions and the addresses of everything that a page would load."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.text, self.open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.addresses += [v for k, v in attributes if k in ('src', 'href', 'srcset')]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text.setdefault(self.open[-1] if self.open else '', []).append(data)


def test_the_page_of_files_stands_alone(inspect, demo_data, tmp_path):
    pictures = tmp_path / 'pictures'
    shutil.copytree(demo_data / 'val', pictures)
    (pictures / 'notes.txt').write_text('no image')
    single = next((demo_data / 'train').iterdir())
    config = DEMO.format('sac')
    said = inspect(config, '--drawn', 1, images=[pictures, single])
    out = tmp_path / 'out'
    assert f'{out}/index.html' in said
    html = (out / 'index.html').read_text(encoding='utf-8')
    page = Page(html)
    assert page.addresses and all(
        a.startswith('data:image/png;base64,') for a in page.addresses
    )
    assert not re.search(r'https?:|url\(|@import|<script|<link', html)
    files = {p.stem: p.read_bytes() for p in out.glob('*.png')}
    shown = [base64.b64decode(a.partition(',')[2]) for a in page.addresses]
    assert sorted(shown) == sorted(files.values())
    assert sorted(p.suffix for p in out.iterdir()) == ['.html', *['.png'] * len(files)]
    assert {'sac_attention_maps', 'sac_feature_norms', 'predictions'} <= set(files)
    facts = ' '.join(page.text['dd'])
    assert config in facts and '5 from' in facts
    assert 'untrained: no checkpoint given' in facts
    assert page.text['title'] == ['What the blocks do (untrained weights)']
    captions = ''.join(page.text['figcaption'])
    assert 'IEEE TIP 2021, Figure 4' in captions
    assert ('no Grad-CAM for image 1' in captions) == ('gradcam_1' not in files)


def test_names_that_are_no_text_and_two_checkpoints_of_one_config(
    inspect, demo_data, tmp_path
):
    picture = os.fsencode(tmp_path / 'odd') + b'\xff.png'
    shutil.copy(next((demo_data / 'val').iterdir()), picture)
    config = DEMO.format('sac')
    weights = [tmp_path / folder / 'last.pth' for folder in ('a', 'b')]
    for path in weights:
        path.parent.mkdir()
        torch.save(load_model(Config.fromfile(config)).state_dict(), path)
    options = ('--compare', config, weights[1], '--detection', 2)
    with mock.patch('prm_mmdet.inspection.figure_set.compare_predictions') as drawn:
        drawn.return_value = Figure()
        said = inspect(config, weights[0], *options, images=[os.fsdecode(picture)])
    assert 'index.html' in said
    assert 'odd?.png' in (tmp_path / 'out/index.html').read_text(encoding='utf-8')
    *_, titles, names = drawn.call_args.args
    assert [t.partition('\n')[2] for t in titles] == ['a/last.pth', 'b/last.pth']
    assert names == ['odd\ufffd.png']


def test_figures_follow_the_blocks_in_the_model(demo_data, tmp_path):
    cfg = Config.fromfile(DEMO.format('prm'))
    cfg.val_dataloader.dataset.data_root = f'{demo_data}/'
    place = dict(stages=(False, True, True, False), position='after_conv3')
    cfg.model.test_cfg.rcnn.max_per_img = 5  # With the threshold 0, all are drawn.
    cfg.model.backbone.plugins += [
        dict(cfg=block, **place)
        for block in (
            dict(type='prm_mmdet.LCT', groups=8),
            dict(type='prm_mmdet.SAC', reduction=16),
            dict(type='prm_mmdet.CBAM'),
            dict(type='ContextBlock', ratio=0.25),
        )
    ]
    model = load_model(cfg)
    images = Images(cfg, split='val', num=3, drawn=2)
    assert (len(images), images.drawn) == (3, 2)
    other = Images(cfg, split='val', num=3, drawn=2)
    entries = figures(model, images, (model, other), ['one', 'two'], score_thr=0.0)
    found = {entry.name for entry in entries}
    assert found == {
        'prm_contribution_rates',
        *('prm_query_points_1', 'prm_query_points_2'),
        *('lct_attention_by_context', 'lct_context_change'),
        *('cbam_attention_by_context', 'cbam_context_change'),
        *('sac_attention_maps', 'sac_feature_norms', 'sac_weight_similarity'),
        *('gc_attention_maps', 'gc_feature_norms', 'gates'),
        *('gradcam_1', 'gradcam_2', 'predictions'),
    }
    (predictions,) = [entry for entry in entries if entry.name == 'predictions']
    assert 'other model: 0 on 3 images' in predictions.caption
    assert len(predictions.figure.axes) == 6  # truth and two models, on two images
    for unlike in (Images(cfg, split='val', num=2), other):
        other.classes = ('cat',)
        with pytest.raises(ValueError, match='different classes or images'):
            figures(model, images, (model, unlike), ['one', 'two'])
    assert not any(m._forward_hooks for m in model.modules())


def test_images_to_draw_come_first(demo_data):
    cfg = Config.fromfile(DEMO.format('sac'))
    cfg.val_dataloader.dataset.data_root = f'{demo_data}/'
    images = Images(cfg, split='val', drawn=2)
    files = sorted(p.name for p in (demo_data / 'val').iterdir())
    order = [images.path(i).rpartition('/')[2] for i in range(len(images))]
    assert order == [files[0], files[3], files[1], files[2]]
    assert images.pixels(0).shape == (64, 64, 3)


def test_what_cannot_be_shown_is_refused(inspect, demo_data, tmp_path):
    config, picture = DEMO.format('sac'), next((demo_data / 'val').iterdir())
    plain = config.replace('-sac', '')
    broken, empty, folder = (tmp_path / n for n in ('broken.png', 'empty.png', 'empty'))
    slip, gone = tmp_path / 'slip.py', tmp_path / 'gone'
    broken.write_text('no image')
    empty.write_bytes(b'')
    folder.mkdir()
    slip.write_text('model = dict(')
    for arguments, image, message in (
        ([plain], picture, 'MaskRCNN has none of the blocks'),
        ([config], broken, f'{broken} cannot be read as an image: remove'),
        ([config], empty, f'{empty} cannot be read as an image: remove'),
        ([config], gone, f'there is no image {gone}'),
        ([config], folder, f'there are no images in {folder}'),
        ([config, gone], picture, f'there is no checkpoint {gone}'),
        ([gone], picture, f'there is no config {gone}'),
        ([slip], picture, f'the config {slip} cannot be read: '),
        ([config, broken], picture, f'{broken} is damaged, or holds more than weights'),
    ):
        assert inspect(*arguments, images=[image]).startswith(f'error: {message}')
    said = inspect(config, images=[picture], out=broken / 'out')
    assert said.startswith(f'error: {broken} is not a folder; name another')
    assert inspect(config, '--device', 'foo', images=[picture]) == '2'
    state = load_model(Config.fromfile(DEMO.format('lct'))).state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'lct.pth')
    said = inspect(config, tmp_path / 'lct.pth', images=[picture])
    assert re.match(
        r'error: .*lct.pth does not fit the model of the config: 78 missing '
        r'\(backbone.layer2.0.sac_block.attention.weight, ...\); 26 unknown to the '
        r'model \(backbone.layer2.0.lct.weight, ...\). Use the config',
        said,
    )
    cfg = Config.fromfile(config)
    cfg.val_dataloader = None
    with pytest.raises(ValueError, match='has no val_dataloader'):
        Images(cfg, split='val')
    cfg.test_dataloader = None
    with pytest.raises(ValueError, match='has no test_dataloader'):
        Images(cfg, [str(picture)])
    assert not (tmp_path / 'out').exists()


def test_other_models_than_detectors_and_classifiers_are_refused(demo_data):
    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.prm = PRM(3, groups=1)

        def test_step(self, data):
            return [DetDataSample()]

    cfg = Config.fromfile(DEMO.format('sac'))
    images = Images(cfg, [str(demo_data / 'val')])
    with pytest.raises(ValueError, match='Other is neither a detector nor a classif'):
        figures(Other(), images)


@pytest.fixture(scope='module')
def classifier_config(tmp_path_factory):
    """A small classifier with PRM, LCT and SAC, and images of three classes."""
    root = tmp_path_factory.mktemp('classes')
    generate_demo_classes(root, 3, num_train=1, num_val=1, image_size=64)
    cfg = Config.fromfile(ROOT / 'configs/demo/resnet50-prm_demo.py')
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{root}/'
    cfg.model.num_classes = 3
    everywhere = dict(stages=(True, True, True, True), position='after_conv3')
    for kind, options in (('LCT', dict(groups=8)), ('SAC', dict(reduction=16))):
        block = dict(type=f'prm_mmdet.{kind}', **options)
        cfg.model.backbone.plugins.append(dict(cfg=block, **everywhere))
    return cfg


def test_figures_of_a_classifier(classifier_config):
    cfg = classifier_config.copy()
    model = load_model(cfg)
    cfg.model.backbone.plugins[-1]['cfg']['softmax'] = True
    second = load_model(cfg)
    images = Images(cfg, split='val', drawn=2)
    drawn = figures(model, images, (second, images), ['one', 'two'])
    entries = {entry.name: entry for entry in drawn}
    assert set(entries) == {
        'prm_contribution_rates',
        *('prm_query_points_1', 'prm_query_points_2'),
        *('lct_attention_by_context', 'lct_context_change'),
        *('sac_attention_maps', 'sac_feature_norms', 'sac_weight_similarity'),
        *('gates', 'gradcam_1', 'gradcam_2', 'predictions'),
    }
    # LCT's Figures 1 and 3 have a column for each stage, PRM's Figure 5 all stages.
    assert len(entries['lct_attention_by_context'].figure.axes) == 2 * 4
    titles = [a.get_title() for a in entries['gradcam_1'].figure.axes]
    assert [t.partition(':')[0] for t in titles[1:5]] == ['c2', 'c3', 'c4', 'c5']
    # SAC's Figure 3: each network in its own form.
    caption = entries['sac_weight_similarity'].caption
    assert 'with the softmax setting of its training' in caption
    with torch.no_grad():
        found = [model.test_step(images.data(i))[0] for i in range(len(images))]
    right = sum(f['pred_label'] == f['gt_label'] for f in found)
    assert f'one: {right} of 3 images are right' in entries['predictions'].caption
    panels = entries['predictions'].figure.axes
    assert len(panels) == 2 * 3 and panels[0].get_title() == 'n00000000'
    widths = sorted(bar.get_width() for bar in panels[1].patches)
    assert widths == pytest.approx(sorted(found[0]['pred_scores'].tolist()))
    assert not any(m._forward_hooks for m in model.modules())
    assert model.backbone.out_indices == (3,)


def test_files_are_shown_to_a_classifier_without_its_data_set(
    classifier_config, tmp_path
):
    cfg = classifier_config.copy()
    folder = f'{cfg.val_dataloader.dataset.data_root}val/n00000001'
    cfg.test_dataloader.dataset.data_root = f'{tmp_path}/gone/'
    images = Images(cfg, [folder], drawn=1)
    assert images.classes == ['class 0', 'class 1', 'class 2'] and len(images) == 1
    *_, predictions = figures(load_model(cfg), images)
    assert predictions.name == 'predictions'
    assert 'are right' not in predictions.caption


def test_errors_of_other_packages_name_the_file(inspect, demo_data, tmp_path):
    picture, mine = next((demo_data / 'val').iterdir()), tmp_path / 'mine.py'
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(0, 0))]
    steps.append(dict(type='PackDetInputs'))
    for text, message in (
        (
            "model = dict(backbone=dict(type='Gone'))",
            'model of {} cannot be built: Key',
        ),
        ('x = _base_.gone', 'config {} cannot be read: AttributeError'),
        (f'test_dataloader = dict(dataset=dict(pipeline={steps}))', 'test pipeline'),
    ):
        mine.write_text(f'_base_ = {DEMO.format("sac")!r}\n{text}')
        said = inspect(mine, images=[picture])
        assert said.startswith(f'error: the {message.format(mine)}')
    assert f'fails on {picture}: ' in said and '\n' not in said
    with pytest.raises(ValueError, match=r'has class number 4, but .* 2 classes'):
        class_name(['circle', 'star'], 4)


def test_weights_are_loaded(tmp_path):
    cfg = Config.fromfile(DEMO.format('sac'))
    model = load_model(cfg)
    weight = model.backbone.conv1.weight
    assert torch.equal(weight, load_model(cfg).backbone.conv1.weight)
    weight.data.fill_(0.5)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    loaded = load_model(cfg, str(tmp_path / 'weights.pth'))
    assert (loaded.backbone.conv1.weight == 0.5).all() and not loaded.training
