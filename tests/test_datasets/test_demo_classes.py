"""The generated classes, in ImageNet's folders."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from prm_mmdet.datasets.demo_classes import generate_demo_classes

SMALL = dict(num_classes=5, num_train=3, num_val=2, image_size=32)


def tree(root):
    paths = (p for p in sorted(Path(root).rglob('*')) if p.is_file())
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in paths}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('classes')
    generate_demo_classes(root, **SMALL)
    return root


def test_folders_and_images(root):
    files = tree(root)
    wnids = [f'n{i:08d}' for i in range(5)]
    assert json.loads(files.pop('classes.json'))['classes'] == wnids
    expected = {
        f'{split}/{wnid}/{wnid}_{i + 1}.JPEG'
        for split, count in (('train', 3), ('val', 2))
        for wnid in wnids
        for i in range(count)
    }
    assert set(files) == expected
    assert len(set(files.values())) == len(files)  # no picture twice
    for name in files:
        assert cv2.imread(str(root / name)).shape == (32, 32, 3)


def test_classes_differ_in_hue(root):
    """The most vivid pixels have the hue of the class, 72 degrees apart."""
    for path in root.rglob('*.JPEG'):
        hsv = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2HSV).reshape(-1, 3)
        vivid = hsv[np.argsort(-1.0 * hsv[:, 1] * hsv[:, 2])[:30]]
        angles = np.deg2rad(2 * vivid[:, 0].astype(float))
        hue = np.rad2deg(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean()))
        label = int(path.parent.name[1:])
        assert abs((hue - 72 * label + 180) % 360 - 180) < 36


def test_another_run_writes_the_same_and_completes_what_is_missing(root, tmp_path):
    generate_demo_classes(tmp_path, **SMALL)
    assert tree(tmp_path) == tree(root)
    (tmp_path / 'train' / 'n00000002' / 'n00000002_1.JPEG').unlink()
    generate_demo_classes(tmp_path, **SMALL)
    assert tree(tmp_path) == tree(root)
    more = tmp_path / 'more'
    generate_demo_classes(more, **{**SMALL, 'num_train': 4})
    images = {k: v for k, v in tree(root).items() if k != 'classes.json'}
    assert images.items() <= tree(more).items()


def test_complete_data_is_left_alone(root, capsys):
    generate_demo_classes(root, **SMALL)
    assert 'already complete' in capsys.readouterr().out


@pytest.mark.parametrize('change', [dict(num_classes=4), dict(seed=1)])
def test_other_parameters_are_refused(root, change):
    with pytest.raises(ValueError, match=f'{next(iter(change))} .there: '):
        generate_demo_classes(root, **{**SMALL, **change})


def test_files_of_others_are_refused(tmp_path):
    (tmp_path / 'train' / 'n01440764').mkdir(parents=True)
    with pytest.raises(ValueError, match='n01440764'):
        generate_demo_classes(tmp_path, **SMALL)
    assert not (tmp_path / 'val').exists()


@pytest.mark.parametrize('change', [dict(num_classes=65), dict(image_size=31)])
def test_bad_arguments_are_refused(tmp_path, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        generate_demo_classes(tmp_path / 'x', **{**SMALL, **change})
    assert not (tmp_path / 'x').exists()
