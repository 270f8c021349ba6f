"""The benchmark of loading images says what it measured; how fast, is not tested."""

import re

import cv2
import pytest
from conftest import ROOT

from prm_mmdet.benchmark import data
from prm_mmdet.benchmark.measure import Spread

TOOL = ROOT / 'tools' / 'benchmark.py'


def test_photos_are_as_heavy_as_those_of_imagenet(tmp_path):
    paths = data.write_photos(str(tmp_path), 4)
    sizes = [(tmp_path / f'{i}.jpg').stat().st_size / 1e3 for i in range(4)]
    assert [str(tmp_path / f'{i}.jpg') for i in range(4)] == paths
    assert 90 < sum(sizes) / 4 < 130  # kB; 108 there
    assert cv2.imread(paths[0]).shape == (375, 500, 3)


def test_images_of_a_folder(tmp_path):
    for name in ('b/2.JPEG', 'a/1.png', 'a/readme.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(tmp_path / name) for name in ('a/1.png', 'b/2.JPEG')]
    assert data.find_images(str(tmp_path), 5) == names
    assert data.find_images(str(tmp_path), 1) == names[:1]
    with pytest.raises(ValueError, match='no images in nowhere'):
        data.find_images('nowhere', 1)


def test_damaged_images_are_named(tmp_path):
    paths = data.write_photos(str(tmp_path), 2, (30, 40))
    (tmp_path / '1.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match=rf'1 of 2 images .* {paths[1]}: remove'):
        data.measure(paths, 1)


def test_table():
    steps = dict.fromkeys((data.TRAINING, data.VALIDATION), Spread(0.01, 0.005, 0.02))
    steps.update(decode=Spread(0.006, 0, 0), read=Spread(0.002, 0, 0))
    lines = data.table(steps).splitlines()
    assert lines[0] == 'training pipeline: 100 images/s a core (50-200)'
    assert lines[3].split() == ['decode', '6.000', '75%']
    assert lines[-1].endswith('= images/s that it trains / 100')


def test_the_tool(run_python):
    text = run_python(
        TOOL, 'data', '--count', 3, '--rounds', 2, '--size', 60, 80
    ).stdout
    assert '3 images of' in text and 'validation pipeline: ' in text
    shares = [int(n) for n in re.findall(r'^  \D+[\d.]+ +(\d+)%$', text, re.M)]
    assert len(shares) == 7 and 95 <= sum(shares) <= 105
