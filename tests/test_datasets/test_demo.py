"""Tests of the demo data set, read back as a user of COCO files would."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from prm_mmdet.datasets import demo
from prm_mmdet.datasets.demo import CLASSES, generate_demo

COUNTS = {'train': 24, 'val': 12}
SMALL = {'num_train': 24, 'num_val': 12}
FEW = {'num_train': 3, 'num_val': 2}


def tree(root):
    """All files under a folder, as {relative path: content}."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(Path(root).rglob('*'))
        if path.is_file()
    }


def is_json(name):
    return name.endswith('.json')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'demo'
    generate_demo(root, **SMALL)
    return root


@pytest.fixture(scope='module')
def few(tmp_path_factory):
    root = tmp_path_factory.mktemp('few')
    generate_demo(root, **FEW)
    return root


@pytest.fixture(scope='module', params=['train', 'val'])
def split(request):
    return request.param


@pytest.fixture(scope='module')
def coco(root, split):
    return COCO(str(root / 'annotations' / f'instances_{split}.json'))


def test_tree_holds_what_the_annotations_name(root, coco, split):
    names = {image['file_name'] for image in coco.imgs.values()}
    assert {path.name for path in (root / split).iterdir()} == names
    assert len(names) == len(coco.dataset['images']) == COUNTS[split]
    assert sorted(os.listdir(root)) == ['annotations', 'train', 'val']
    for image in coco.imgs.values():
        picture = cv2.imread(str(root / split / image['file_name']))
        assert picture.shape == (image['height'], image['width'], 3) == (128, 128, 3)


def test_annotations_have_the_fields_of_coco(coco):
    categories = coco.dataset['categories']
    assert [c['name'] for c in categories] == list(CLASSES)
    assert [c['id'] for c in categories] == list(range(1, len(CLASSES) + 1))
    assert all(c['supercategory'] for c in categories)
    assert isinstance(coco.dataset['licenses'], list)
    identifiers = [a['id'] for a in coco.dataset['annotations']]
    assert len(set(identifiers)) == len(identifiers)
    assert min(identifiers) == min(coco.imgs) == 1
    for annotation in coco.anns.values():
        assert annotation['image_id'] in coco.imgs
        assert annotation['category_id'] in coco.cats
        assert annotation['iscrowd'] in (0, 1)
        assert all(isinstance(value, float) for value in annotation['bbox'])
        assert isinstance(annotation['area'], float)


def test_info_records_the_parameters_and_no_place(root, coco, split):
    parameters = dict(coco.dataset['info']['parameters'])
    assert parameters.pop('version') >= 1
    assert parameters == {**SMALL, 'image_size': 128, 'seed': 0}
    text = (root / 'annotations' / f'instances_{split}.json').read_text()
    assert str(root) not in text
    assert root.parent.name not in text


def test_segmentations_masks_boxes_and_areas_agree(coco):
    for annotation in coco.anns.values():
        rle = coco.annToRLE(annotation)
        assert mask_utils.area(rle) == annotation['area']
        assert mask_utils.toBbox(rle).tolist() == annotation['bbox']
        segmentation = annotation['segmentation']
        if annotation['iscrowd']:
            assert isinstance(segmentation['counts'], list)
            assert segmentation['size'] == [128, 128]
            continue
        assert len(segmentation) >= 1
        for polygon in segmentation:
            assert len(polygon) >= 6 and len(polygon) % 2 == 0
            assert min(polygon) >= 0 and max(polygon) <= 128


def test_visible_masks_do_not_overlap(coco):
    for image_id in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.imgToAnns[image_id]]
        assert not masks or np.sum(masks, axis=0).max() == 1


def test_masks_lie_on_what_is_drawn(root, coco, split):
    """Along the outline of a mask the picture changes more than along a flipped one."""
    better = []
    for annotation in coco.anns.values():
        name = coco.imgs[annotation['image_id']]['file_name']
        picture = cv2.imread(str(root / split / name), cv2.IMREAD_GRAYSCALE)
        smooth = cv2.GaussianBlur(picture, (3, 3), 0)
        change = cv2.morphologyEx(smooth, cv2.MORPH_GRADIENT, np.ones((3, 3)))
        mask = coco.annToMask(annotation)
        outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
        right = change[outline].mean()
        wrong = [outline[::-1], outline[:, ::-1], outline.T]
        better.append(all(right > change[other].mean() for other in wrong))
    assert np.mean(better) > 0.9


def test_every_kind_of_content_is_there(coco):
    single = [a for a in coco.anns.values() if not a['iscrowd']]
    assert {a['category_id'] for a in single} == set(coco.cats)
    areas = np.array([a['area'] for a in single])
    assert (areas < 32**2).any()
    assert (areas >= 32**2).any()
    assert (areas > 96**2).any()
    assert min(min(a['bbox'][2:]) for a in single) >= 8
    crowds = [a for a in coco.anns.values() if a['iscrowd']]
    assert crowds
    assert any(not coco.imgToAnns[image_id] for image_id in coco.imgs)
    # Some shape is in several parts, or has a hole and is cut in two around it.
    assert any(len(a['segmentation']) > 1 for a in single)
    counts = [len(coco.imgToAnns[image_id]) for image_id in coco.imgs]
    assert 1 <= np.mean(counts) <= 5


def test_splits_share_no_image(root):
    files = tree(root)
    pictures = [content for name, content in files.items() if not is_json(name)]
    assert len(set(pictures)) == len(pictures) == 36


def test_another_process_writes_the_same_bytes(root, tmp_path, run_python):
    tool = ROOT / 'tools' / 'make_demo_data.py'
    run_python(tool, '--out', 'demo', '--num-train', '24', '--num-val', '12')
    assert tree(tmp_path / 'demo') == tree(root)


def test_another_seed_draws_other_images(few, tmp_path):
    generate_demo(tmp_path, seed=1, **FEW)
    first, second = tree(few), tree(tmp_path)
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


def test_images_do_not_depend_on_their_number(root, few):
    first, second = tree(root), tree(few)
    pictures = [name for name in second if not is_json(name)]
    assert len(pictures) == 5
    assert all(first[name] == second[name] for name in pictures)
    name = 'annotations/instances_train.json'
    few = json.loads(second[name])['annotations']
    assert json.loads(first[name])['annotations'][: len(few)] == few


@pytest.mark.parametrize('image_size', [32, 75])
def test_other_image_sizes(tmp_path, image_size):
    generate_demo(tmp_path, num_train=12, num_val=1, image_size=image_size)
    coco = COCO(str(tmp_path / 'annotations' / 'instances_train.json'))
    for annotation in coco.anns.values():
        assert coco.annToMask(annotation).shape == (image_size, image_size)
        assert coco.annToMask(annotation).sum() == annotation['area']


def test_complete_data_set_is_left_alone(root, capsys):
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    capsys.readouterr()
    generate_demo(root, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert 'already complete' in said.out
    assert said.err == ''


def test_progress_goes_to_stderr(tmp_path, capsys):
    generate_demo(tmp_path, num_train=1, num_val=1)
    said = capsys.readouterr()
    assert said.out == ''
    assert '1/1' in said.err


# The generator writes 5 images and then two annotation files.
@pytest.mark.parametrize('survivors', [0, 4, 5, 6])
def test_interrupted_run_is_completed(few, tmp_path, monkeypatch, survivors):
    replace, done = os.replace, []

    def replace_until_interrupted(source, target):
        if len(done) == survivors:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, 'replace', replace_until_interrupted)
        generate_demo(tmp_path, **FEW)
    complete, left = tree(few), tree(tmp_path)
    assert len(left) == survivors
    assert left.items() <= complete.items()
    assert sum(map(is_json, left)) == max(0, survivors - 5)
    generate_demo(tmp_path, **FEW)
    assert tree(tmp_path) == complete


@pytest.mark.parametrize(
    'name', ['train/demo_000003.png', 'annotations/instances_val.json']
)
def test_lost_file_is_restored(few, tmp_path, name):
    shutil.copytree(few, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    generate_demo(tmp_path, **FEW)
    assert tree(tmp_path) == tree(few)


@pytest.mark.parametrize(
    'change',
    [{'num_train': 25}, {'num_val': 3}, {'image_size': 64}, {'seed': 7}],
)
def test_data_set_of_other_parameters_is_refused(root, change):
    before = tree(root)
    (name,) = change
    with pytest.raises(ValueError) as caught:
        generate_demo(root, **{**SMALL, **change})
    message = str(caught.value)
    assert str(root) in message
    assert f'asked for: {change[name]}' in message
    for other in {'num_train', 'num_val', 'image_size', 'seed', 'version'} - {name}:
        assert other not in message
    assert 'remove the folder or choose another' in message
    assert tree(root) == before


def test_data_set_of_an_older_generator_is_refused(root, monkeypatch):
    monkeypatch.setattr(demo, 'VERSION', 10**6)
    with pytest.raises(ValueError, match='version'):
        generate_demo(root, **SMALL)


@pytest.mark.parametrize(
    'name, content',
    [
        ('train/holiday.png', ''),
        ('val/demo_000013.png', ''),
        ('annotations/instances_train.json', '{"info": {"year": 2017}}'),
        ('annotations/instances_val.json', '{"info": {"param'),
        ('annotations/instances_val.json', '[]'),
    ],
)
def test_files_of_others_are_refused(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match='remove the folder or choose') as error:
        generate_demo(tmp_path, **SMALL)
    assert path.name in str(error.value)
    assert tree(tmp_path) == {name: content.encode()}


@pytest.mark.parametrize(
    'name, value, right',
    [
        ('num_train', 0, 'at least 1'),
        ('num_val', -3, 'at least 1'),
        ('num_val', 2.0, 'an integer'),
        ('num_train', True, 'an integer'),
        ('num_train', '24', 'an integer'),
        ('image_size', 31, 'at least 32'),
        ('image_size', None, 'an integer'),
        ('seed', -1, 'at least 0'),
        ('seed', 2**32, 'at most 4294967295'),
    ],
)
def test_bad_arguments_are_refused(tmp_path, name, value, right):
    with pytest.raises(ValueError) as caught:
        generate_demo(tmp_path / 'demo', **{**SMALL, name: value})
    message = str(caught.value)
    assert message.startswith(f'{name} must be')
    assert right in message
    assert message.endswith(f'got {value!r}')
    assert not (tmp_path / 'demo').exists()


def test_numpy_integers_are_integers(tmp_path):
    generate_demo(tmp_path, num_train=np.int64(1), num_val=np.int32(1))
    assert len(tree(tmp_path)) == 4
