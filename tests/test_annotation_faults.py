"""Faults in annotations, found before a run."""

import json
import re
import runpy

import cv2
import numpy as np
import pytest
from conftest import ROOT
from mmengine.config import Config
from pycocotools import mask as mask_utils

from prm_mmdet.launch import RunError
from prm_mmdet.launch.annotations import check_annotations, find_faults, image_files


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def coco(**changes):
    content = dict(
        images=[
            dict(id=1, file_name='1.png', width=40, height=30),
            dict(id=2, file_name='2.png', width=40, height=30),
        ],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
        annotations=[
            dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 3, 4], area=12),
            dict(id=2, image_id=2, category_id=2, bbox=[5, 5, 9, 9], area=81),
        ],
    )
    content.update(changes)
    return content


def config(folder, content, classes=('cat', 'dog')):
    path = folder / 'train.json'
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    data = dict(
        type='CocoDataset',
        data_root=f'{folder}/',
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes),
    )
    wrapped = dict(type='RepeatDataset', times=2, dataset=data)
    return Config(dict(train_dataloader=dict(dataset=wrapped)))


def annotation(**changes):
    first, second = coco()['annotations']
    return coco(annotations=[dict(first, **changes), second])


IMAGE, OTHER_IMAGE = coco()['images']
CATEGORIES = coco()['categories']
REFUSED = [
    ('image ids twice', coco(images=[IMAGE] * 2)),
    ('annotation ids twice', annotation(id=2)),
    ('category ids twice', coco(categories=[*CATEGORIES, dict(id=1, name='x')])),
    ('category names twice', coco(categories=[*CATEGORIES, dict(id=3, name='cat')])),
    ('no class matches', coco(categories=[dict(c, name='bus') for c in CATEGORIES])),
    ('numbers not finite', annotation(bbox=[1, 2, float('nan'), 4])),
    ('numbers not finite', annotation(segmentation=[[1, 2, float('inf'), 4, 5, 6]])),
    ('numbers not finite', annotation(area=10**400)),
    ('nothing to learn', coco(annotations=[])),
    ('nothing to learn', coco(annotations=[dict(coco()['annotations'][0], iscrowd=1)])),
    ('malformed objects', annotation(bbox=[1, 2, 3])),
    ('malformed objects', annotation(bbox=None)),
    ('malformed objects', annotation(segmentation=['1 2 3 4 5 6'])),
    ('malformed images', coco(images=[dict(IMAGE, width='40')])),
    ('malformed images', coco(images=[dict(IMAGE, height=None)])),
    ('not readable', '{"images": ['),
    ('not readable', '[' * 100_000),
    ('not readable', '[]'),
    ('not readable', coco(categories=[dict(id=1)])),
]
WARNED = [
    ('unknown images', annotation(image_id=7)),
    ('unknown categories', annotation(category_id=7)),
    ('classes missing', coco(categories=[CATEGORIES[0], dict(id=2, name='bus')])),
    ('outside', annotation(bbox=[50, 2, 3, 4])),
    ('empty', annotation(bbox=[1, 2, 0, 4])),
    ('without area', annotation(area=0)),
    ('short polygons', annotation(segmentation=[[1, 2, 3, 4]])),
    ('large images', coco(images=[dict(IMAGE, width=9000, height=9000), OTHER_IMAGE])),
]


@pytest.mark.parametrize('name, content', REFUSED)
def test_a_training_is_refused(tmp_path, name, content):
    cfg = config(tmp_path, content)
    for _ in range(2):  # the second time from the cache
        (faults,) = find_faults(cfg, 'train')
        assert name in faults.refused
    with pytest.raises(RunError, match=re.escape(str(tmp_path / 'train.json'))):
        check_annotations(cfg, 'train')


@pytest.mark.parametrize('name, content', WARNED)
def test_a_training_goes_on_with_a_warning(tmp_path, name, content):
    cfg = config(tmp_path, content)
    (faults,) = find_faults(cfg, 'train')
    assert name in faults.counts and not faults.refused
    assert 'warning: 1' in str(faults)
    check_annotations(cfg, 'train')


def test_whole_annotations_have_no_faults(tmp_path):
    (faults,) = find_faults(config(tmp_path, coco()), 'train')
    assert not faults.counts
    assert (faults.images, faults.objects) == (2, 2)


@pytest.mark.parametrize('indices, names', [(None, '12'), (1, '1'), ([1], '2')])
def test_images_that_a_data_set_uses(tmp_path, indices, names):
    cfg = config(tmp_path, coco())
    cfg.train_dataloader.dataset.dataset.indices = indices
    found = image_files(cfg, 'train')
    assert found == {f'{tmp_path}/images/{name}.png': (40, 30) for name in names}


def test_a_changed_file_is_read_again(tmp_path):
    cfg = config(tmp_path, coco())
    assert not next(find_faults(cfg, 'train')).counts
    (faults,) = find_faults(config(tmp_path, coco(annotations=[])), 'train')
    assert faults.refused == ['nothing to learn']


XML = """<annotation><object><name>{}</name><bndbox><xmin>{}</xmin><ymin>2</ymin>
<xmax>9</xmax><ymax>8</ymax></bndbox></object></annotation>"""


@pytest.mark.parametrize(
    'xml, fault',
    [
        (XML.format('cat', 1), None),
        (XML.format('cat', 9), 'empty'),
        (XML.format('cat', 'nan'), 'numbers not finite'),
        (XML.format('bus', 1), 'no class matches'),
        ('<annotation>', 'malformed objects'),
        ('<annotation><object/></annotation>', 'malformed objects'),
        (f'<!DOCTYPE a [<!ENTITY x "y">]>{XML.format("cat", 1)}', 'malformed objects'),
        (None, 'files missing'),
    ],
)
def test_pascal_voc(tmp_path, xml, fault):
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'train.txt').write_text('one\n')
    if xml:
        (tmp_path / 'Annotations' / 'one.xml').write_text(xml)
    data = dict(
        type='VOCDataset',
        data_root=f'{tmp_path}/',
        ann_file='train.txt',
        data_prefix=dict(sub_data_root=''),
        metainfo=dict(classes=('cat',)),
    )
    (faults,) = find_faults(Config(dict(train_dataloader=dict(dataset=data))), 'train')
    assert (fault in faults.counts) if fault else not faults.counts


def test_classes_as_a_text_are_refused(tmp_path):
    # MMDetection takes ('cat') for the three classes c, a and t.
    (faults,) = find_faults(config(tmp_path, coco(), classes='cat'), 'train')
    assert faults.refused == ['classes are a text']


def evaluated(folder, content, **evaluator):
    """A config that trains with the classes (cat, dog), and validates with a file."""
    cfg = config(folder, coco())
    (folder / 'val.json').write_text(json.dumps(content))
    data = dict(cfg.train_dataloader.dataset.dataset, ann_file='val.json')
    cfg.val_dataloader = dict(dataset=data)
    cfg.val_evaluator = dict(type='CocoMetric', metric='bbox', **evaluator)
    return cfg


def test_classes_in_another_order_than_in_training_are_refused(tmp_path):
    # MMDetection numbers classes in the order of each file, so cats become dogs.
    turned = coco(categories=coco()['categories'][::-1])
    train, val = find_faults(evaluated(tmp_path, turned), 'train', 'val')
    assert not train.counts
    assert val.refused == ['another order']
    assert f'{tmp_path / "train.json"}' in f'{val}'


def test_the_file_of_the_evaluator_is_read_too(tmp_path):
    cfg = evaluated(tmp_path, coco(), ann_file=str(tmp_path / 'other.json'))
    (tmp_path / 'other.json').write_text(json.dumps(coco(annotations=[])))
    _, val, other = find_faults(cfg, 'train', 'val')
    assert not val.counts
    assert other.refused == ['nothing to learn']


def test_an_evaluation_has_faults_of_its_own(tmp_path):
    (faults,) = find_faults(evaluated(tmp_path, annotation(id=0)), 'val')
    assert list(faults.counts) == ['annotation ids zero'] and not faults.refused
    content = coco()
    del content['annotations']
    (faults,) = find_faults(evaluated(tmp_path, content), 'val')
    assert list(faults.counts) == ['no annotations'] and not faults.refused


MASK = np.zeros((30, 40), np.uint8, order='F')
MASK[3:20, 5:11] = MASK[25:, 30:] = 1
RUNS = mask_utils.encode(MASK)['counts'].decode()


@pytest.mark.parametrize(
    'mask, fault',
    [
        (dict(size=[30, 40], counts=RUNS), None),
        (dict(size=[30, 40], counts=[100, 50, 1050]), None),
        (None, 'without mask'),
        ([], 'without mask'),
        # pycocotools writes these runs behind the end of its memory.
        (dict(size=[30, 40], counts=[100, 50, 10**6]), 'malformed objects'),
        (dict(size=[3, 4], counts=RUNS), 'malformed objects'),
        (dict(size=[30, 40], counts=RUNS[:-1]), 'malformed objects'),
        (dict(size=[30, 40], counts=RUNS + 'o'), 'malformed objects'),
    ],
)
def test_masks_cover_their_image(tmp_path, mask, fault):
    thing = annotation(segmentation=mask)['annotations'][0]
    cfg = config(tmp_path, coco(annotations=[thing]))
    data = cfg.train_dataloader.dataset.dataset
    data.pipeline = [dict(type='LoadAnnotations', with_mask=True)]
    (faults,) = find_faults(cfg, 'train')
    assert (fault in faults.refused) if fault else not faults.refused


def test_control_codes_of_a_file_are_not_printed(tmp_path):
    cfg = config(tmp_path, annotation(id='\x1b[2J', image_id=7))
    (faults,) = find_faults(cfg, 'train')
    assert 'unknown images' in faults.counts and '\x1b' not in f'{faults}'


def test_indices_without_images_are_named(tmp_path):
    cfg = config(tmp_path, coco())
    cfg.train_dataloader.dataset.dataset.indices = [1, 99]
    with pytest.raises(RunError, match=r'indices=\[1, 99\] .*change the indices'):
        image_files(cfg, 'train')


def test_check_data_opens_images(tmp_path, monkeypatch, capsys):
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    (tmp_path / 'images').mkdir()
    for name in '12':
        cv2.imwrite(str(tmp_path / 'images' / f'{name}.png'), image)
    cfg = config(tmp_path, coco())
    cfg.dump(tmp_path / 'config.py')
    monkeypatch.setattr(
        'sys.argv', ['check_data.py', str(tmp_path / 'config.py'), '--images']
    )
    main = runpy.run_path(str(ROOT / 'tools/check_data.py'))['main']
    main()
    assert 'all data sets: 2 images\n' in capsys.readouterr().out
    path = tmp_path / 'images' / '2.png'
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b'no image', None):
        path.write_bytes(content) if content else path.unlink()
        with pytest.raises(SystemExit):
            main()
        out = capsys.readouterr().out
        assert 'error: 1 images are missing, damaged' in out and str(path) in out
    cv2.imwrite(str(path), image[:20])
    main()
    assert 'warning: 1 images have another size' in capsys.readouterr().out
