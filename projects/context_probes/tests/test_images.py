"""Probes (data sets): what shows an object's class, and what must not show it."""

import cv2
import numpy as np
import pytest
from context_probes.images import (
    CLASSES,
    DISTANCE,
    HEIGHT,
    PROBES,
    SHARES,
    TILE,
    WIDE,
    WIDTH,
    draw_probe,
    generate_probe,
)
from pycocotools.coco import COCO

MORE = range(40, 80)  # seeds of further scenes, for a test that requires more
FAR = [probe for probe in PROBES if probe != 'control']


@pytest.fixture(scope='module')
def scenes():
    return {
        probe: [draw_probe(np.random.default_rng(i), probe) for i in range(40)]
        for probe in PROBES
    }


def hue(pixels):
    """Mean hue, in degrees, of the more vivid half of ``pixels``, (n, 3) in BGR."""
    hsv = cv2.cvtColor(pixels[None].astype(np.float32) / 255, cv2.COLOR_BGR2HSV)[0]
    vivid = hsv[hsv[:, 1] >= np.median(hsv[:, 1])]
    angles = np.deg2rad(vivid[:, 0])
    return np.rad2deg(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())) % 360


def cue_hues(scene):
    for x, y, w, h in scene.cues:
        inner = scene.picture[y + 3 : y + h - 3, x + 3 : x + w - 3]
        yield hue(inner.reshape(-1, 3))


def near(angle, degrees):
    return abs((angle - degrees + 180) % 360 - 180) < 30


def columns_of(scene):
    return [np.flatnonzero(i.visible.any(0)) for i in scene.instances]


@pytest.mark.parametrize('probe', PROBES)
def test_objects_are_whole_apart_and_of_both_classes(scenes, probe):
    for scene in scenes[probe]:
        width = WIDE if probe == 'relative-position' else WIDTH
        assert scene.picture.shape == (HEIGHT, width, 3)
        assert 1 <= len(scene.instances) <= 3
        masks = [i.visible for i in scene.instances]
        assert np.sum(masks, axis=0).max() == 1
        assert all(15**2 < m.sum() < 22**2 for m in masks)
        assert not any(m[[0, -1]].any() or m[:, [0, -1]].any() for m in masks)
    labels = [i.label for scene in scenes[probe] for i in scene.instances]
    assert 0.35 < np.mean(labels) < 0.65
    if probe != 'relative-position':
        sides = [columns_of(scene)[0][0] < WIDTH / 2 for scene in scenes[probe]]
        assert 0.3 < np.mean(sides) < 0.7  # objects lie in both halves of the images


@pytest.mark.parametrize('probe', FAR)
def test_cues_are_far_from_every_object(scenes, probe):
    for scene in scenes[probe]:
        assert scene.cues
        for x, _, w, _ in scene.cues:
            for columns in columns_of(scene):
                assert max(columns[0] - (x + w), x - columns[-1] - 1) >= DISTANCE


@pytest.mark.parametrize('probe', FAR)
def test_objects_do_not_tell_their_class(scenes, probe):
    """A classifier of the objects' colours, sizes and positions can only guess."""
    looks, labels = [], []
    for scene in scenes[probe]:
        for i, columns in zip(scene.instances, columns_of(scene)):
            pixels = scene.picture[i.visible]
            rows = np.flatnonzero(i.visible.any(1))
            border = min(columns[0], scene.picture.shape[1] - 1 - columns[-1])
            size = (len(rows), len(columns), i.visible.sum(), rows[0], border)
            looks.append([*pixels.mean(0), *pixels.std(0), *size])
            labels.append(i.label)
    looks, labels = np.array(looks), np.array(labels)
    looks = (looks - looks.mean(0)) / looks.std(0)
    half = len(labels) // 2
    means = [looks[:half][labels[:half] == k].mean(0) for k in range(2)]
    gaps = [np.linalg.norm(looks[half:] - mean, axis=1) for mean in means]
    right = (np.argmin(gaps, axis=0) == labels[half:]).mean()
    assert 0.3 < right < 0.7


def test_far_cue_tells_the_class(scenes):
    for scene in scenes['far-cue']:
        (found,) = cue_hues(scene)
        assert {i.label for i in scene.instances} == {0 if near(found, 0) else 1}
        assert near(found, 0) or near(found, 240)


def test_markers_of_a_kind_tell_the_class_of_that_kind(scenes):
    different = 0
    for scene in scenes['which-context']:
        label_of = {}
        for found in cue_hues(scene):
            kind, label = next(
                (kind, label)
                for kind, degrees in enumerate(((0, 240), (60, 180)))
                for label in range(2)
                if near(found, degrees[label])
            )
            label_of[kind] = label
        assert set(label_of) == {0, 1}
        different += label_of[0] != label_of[1]
        for i in scene.instances:
            kind = 0 if near(hue(scene.picture[i.visible]), 120) else 1
            assert i.label == label_of[kind]
    assert different > 15  # the two kinds often have different classes


def test_scene_is_told_by_most_tiles_but_not_by_those_near_objects(scenes):
    nearby = {0: [], 1: []}
    for scene in scenes['scene']:
        tiles = scene.picture.reshape(HEIGHT // TILE, TILE, WIDTH // TILE, TILE, 3)
        colour = np.median(tiles, axis=(1, 3))
        # A tile with more red than blue has the first tint.
        first = colour[..., 2] > colour[..., 0]
        (label,) = {i.label for i in scene.instances}
        # Objects hide a few tiles, so there is a tolerance.
        assert abs(first.mean() - SHARES[1 - label]) < 0.05
        x, _, w, _ = scene.cues[0]
        beside = first[:, w // TILE :] if x == 0 else first[:, : x // TILE]
        nearby[label].append(beside.mean())
    assert abs(np.mean(nearby[0]) - np.mean(nearby[1])) < 0.03
    assert np.ptp(nearby[0]) > 0.05


def test_relative_position_is_told_by_the_distance_alone(scenes):
    """The distance between the objects and a disc, the landmark, shows the class. The
    objects' positions alone do not. The landmark's position alone says little."""
    objects, landmarks = {0: [], 1: []}, {0: [], 1: []}
    more = (draw_probe(np.random.default_rng(i), 'relative-position') for i in MORE)
    for scene in (*scenes['relative-position'], *more):
        ((x, _, w, _),) = scene.cues
        (label,) = {i.label for i in scene.instances}
        columns = np.concatenate(columns_of(scene))
        gap = max(columns.min() - x - w, x - columns.max() - 1)
        assert (gap < 225) == (label == 0)
        assert gap < 225 or gap > 260
        objects[label].append(min(columns.min(), WIDE - 1 - columns.max()))
        landmarks[label].append(min(x, WIDE - x - w))
    assert abs(np.mean(objects[0]) - np.mean(objects[1])) < 20
    # Guess the class by whether the landmark is more than t pixels from the nearer side
    # of the image. ``right`` has the fraction of right guesses for each t.
    right = [
        (np.mean(np.array(landmarks[0]) > t) + np.mean(np.array(landmarks[1]) <= t)) / 2
        for t in range(WIDE)
    ]
    assert max(right) < 0.8


def test_control_shows_the_class_in_the_object(scenes):
    classes, hues = [], {0: set(), 1: set()}
    for scene in scenes['control']:
        assert scene.cues == []
        for i in scene.instances:
            found = hue(scene.picture[i.visible])
            (number,) = (n for n in (0, 1, 3, 4) if near(found, 60 * n))
            hues[i.label].add(number)
        classes.append(len({i.label for i in scene.instances}))
    # Numbers of the hues of each class. In the other probes, a cue of one of these hues
    # shows the opposite class.
    assert hues == {0: {3, 4}, 1: {0, 1}}
    assert np.mean(classes) > 1.3  # classes differ within an image


def test_files(tmp_path, capsys):
    generate_probe(tmp_path / 'a', 'far-cue', num_train=3, num_val=2, seed=1)
    generate_probe(tmp_path / 'b', 'far-cue', num_train=3, num_val=2, seed=1)
    files = sorted(p.relative_to(tmp_path / 'a') for p in tmp_path.glob('a/*/*'))
    assert len(files) == 7
    for file in files:
        same = (tmp_path / 'b' / file).read_bytes()
        assert (tmp_path / 'a' / file).read_bytes() == same
    coco = COCO(str(tmp_path / 'a/annotations/instances_val.json'))
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for image in coco.imgs.values():
        assert (image['width'], image['height']) == (WIDTH, HEIGHT)
        assert len(image['cues']) == 1
        assert coco.getAnnIds(image['id'])
    capsys.readouterr()
    generate_probe(tmp_path / 'a', 'far-cue', num_train=3, num_val=2, seed=1)
    assert 'already complete' in capsys.readouterr().out
    with pytest.raises(ValueError, match=r'probe .there: far-cue, asked for: scene'):
        generate_probe(tmp_path / 'a', 'scene', num_train=3, num_val=2, seed=1)


def test_unknown_probe_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"far-cue, .*, got 'far'"):
        generate_probe(tmp_path / 'a', 'far')
    assert not (tmp_path / 'a').exists()
