"""Faults in annotations, found before a run."""

import json
import re

import pytest
from mmengine.config import Config

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


REFUSED = {
    'image ids twice': coco(images=[coco()['images'][0]] * 2),
    'annotation ids twice': annotation(id=2),
    'numbers not finite': annotation(bbox=[1, 2, float('nan'), 4]),
    'not readable': '{"images": [',
    'no class matches': coco(
        categories=[dict(id=1, name='bus'), dict(id=2, name='car')]
    ),
    'nothing to learn': coco(annotations=[]),
}
POLYGON = annotation(segmentation=[[1, 2, float('inf'), 4, 5, 6]])
CROWD = coco(annotations=[dict(coco()['annotations'][0], iscrowd=1)])
WARNED = {
    'unknown images': annotation(image_id=7),
    'unknown categories': annotation(category_id=7),
    'classes missing': coco(
        categories=[dict(id=1, name='cat'), dict(id=2, name='bus')]
    ),
    'outside': annotation(bbox=[50, 2, 3, 4]),
    'empty': annotation(bbox=[1, 2, 0, 4]),
    'without area': annotation(area=0),
    'large images': coco(
        images=[dict(coco()['images'][0], width=9000, height=9000), coco()['images'][1]]
    ),
}


@pytest.mark.parametrize(
    'name, content',
    [*REFUSED.items(), ('numbers not finite', POLYGON), ('nothing to learn', CROWD)],
)
def test_a_training_is_refused(tmp_path, name, content):
    cfg = config(tmp_path, content)
    for _ in range(2):  # the second time from the cache
        (faults,) = find_faults(cfg, 'train')
        assert name in faults.refused
    with pytest.raises(RunError, match=re.escape(str(tmp_path / 'train.json'))):
        check_annotations(cfg, 'train')


@pytest.mark.parametrize('name', WARNED)
def test_a_training_goes_on_with_a_warning(tmp_path, name):
    cfg = config(tmp_path, WARNED[name])
    (faults,) = find_faults(cfg, 'train')
    assert name in faults.counts and not faults.refused
    assert 'warning: 1' in str(faults)
    check_annotations(cfg, 'train')


def test_whole_annotations_have_no_faults(tmp_path):
    cfg = config(tmp_path, coco())
    (faults,) = find_faults(cfg, 'train')
    assert not faults.counts
    assert (faults.images, faults.objects) == (2, 2)
    names = [path.rpartition('/')[2] for path in image_files(cfg, 'train')]
    assert names == ['1.png', '2.png']


def test_a_changed_file_is_read_again(tmp_path):
    cfg = config(tmp_path, coco())
    assert not next(find_faults(cfg, 'train')).counts
    (faults,) = find_faults(config(tmp_path, REFUSED['nothing to learn']), 'train')
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
        ('<annotation>', 'not readable'),
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
