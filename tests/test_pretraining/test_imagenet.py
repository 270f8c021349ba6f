"""The ImageNet data set: labels, folders, files of labels, unreadable images."""

import pickle
from types import SimpleNamespace
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from prm_mmdet.pretraining.imagenet import (
    CheckNumClasses,
    ImageNet,
    ReportUnreadableImages,
)

register_all_modules()

WNIDS = ('n01440764', 'n01751748', 'n09193705')
TRAIN = [dict(type='prm_mmdet.LoadRandomResizedCrop', size=8)]
TRAIN += [dict(type='RandomFlip', prob=0.5), dict(type='prm_mmdet.PackImage')]
VAL = [dict(type='prm_mmdet.LoadImage', short_edge=16)]
VAL += [dict(type='Resize', scale=(1000000, 16), keep_ratio=True)]
VAL += [dict(type='CenterCrop', crop_size=8), dict(type='prm_mmdet.PackImage')]


def write(path, label):
    """An image that shows its label by its grey value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((20, 30, 3), 50 * label + 50, np.uint8)
    path.write_bytes(cv2.imencode('.jpg', picture)[1].tobytes())


@pytest.fixture
def root(tmp_path):
    for label, wnid in enumerate(WNIDS):
        for i in range(4):
            write(tmp_path / 'train' / wnid / f'{wnid}_{i}.JPEG', label)
        for i in range(2):
            write(tmp_path / 'val' / wnid / f'ILSVRC2012_val_{i}{label}.JPEG', label)
    return tmp_path


def settings(root, split='train', **kwargs):
    """Config of a data set."""
    kwargs.setdefault('pipeline', TRAIN if split == 'train' else VAL)
    cfg = dict(type='prm_mmdet.ImageNet', data_root=str(root), **kwargs)
    cfg.update(data_prefix=dict(img_path=f'{split}/'), test_mode=split != 'train')
    return cfg


def build(*arguments, **kwargs):
    return DATASETS.build(settings(*arguments, **kwargs))


def flatten(root, line):
    """Put the validation images into one folder, and write a file of labels."""
    lines = []
    for label, wnid in enumerate(WNIDS):
        for path in sorted((root / 'val' / wnid).iterdir()):
            path.rename(root / 'val' / path.name)
            names = dict(name=path.name, stem=path.stem, wnid=wnid)
            lines.append(line.format(label=label, **names))
        (root / 'val' / wnid).rmdir()
    (root / 'labels.txt').write_text('\n'.join(lines))


def assert_right(dataset, count):
    """Every image has the label that it shows."""
    assert len(dataset) == count
    assert dataset.metainfo['classes'] == WNIDS
    for i in range(count):
        sample = dataset[i]
        shown = sample['inputs'].float().mean()
        assert abs(shown - (50 * sample['data_samples'] + 50)) < 2
        assert sample['inputs'].shape == (3, 8, 8)


def test_folders(root):
    assert_right(build(root), 12)
    assert_right(build(root, 'val'), 6)
    assert {build(root, 'val')[i]['data_samples'] for i in range(6)} == {0, 1, 2}


def test_other_files_and_folders_do_no_harm(root):
    (root / 'train' / WNIDS[0] / 'readme.txt').write_text('x')
    (root / 'train' / WNIDS[0] / '._n01440764_0.JPEG').write_text('x')
    (root / 'train' / 'n0.tar').write_text('x')
    (root / 'train' / '.cache').mkdir()
    assert_right(build(root), 12)


@pytest.mark.parametrize(
    'line',
    ['{name} {label}', '{name} {wnid}', '{name},{wnid}', '{stem},{wnid} 1 2 3 4'],
)
def test_a_file_of_labels(root, line):
    flatten(root, line)
    assert_right(build(root, 'val', ann_file='labels.txt'), 6)


def test_validation_images_of_fewer_classes_keep_their_labels(root):
    for path in (root / 'val' / WNIDS[0]).iterdir():
        path.unlink()
    (root / 'val' / WNIDS[0]).rmdir()
    assert_right(build(root, 'val'), 4)


def test_classes_without_the_training_images(root):
    (root / 'train').rename(root / 'elsewhere')
    assert_right(build(root, 'val'), 6)
    assert_right(build(root, 'val', classes_from='elsewhere'), 6)
    flatten(root, '{name} {wnid}')
    with pytest.raises(ValueError, match='ann_file'):
        build(root, 'val', ann_file='labels.txt')
    metainfo = dict(classes=WNIDS)
    assert_right(build(root, 'val', ann_file='labels.txt', metainfo=metainfo), 6)


def test_what_could_give_a_wrong_label_is_refused(root):
    write(root / 'val' / 'n00000001' / 'a.JPEG', 0)
    with pytest.raises(ValueError, match=r"name no class, such as 'n00000001'.*train"):
        build(root, 'val')
    for path in (root / 'train' / WNIDS[1]).iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=f'no images of 1 of its 3.*{WNIDS[1]}'):
        build(root)


def test_missing_folders_and_labels_are_named(root):
    with pytest.raises(FileNotFoundError, match='test'):
        build(root, 'test')
    flatten(root, '{name} {wnid}')
    with pytest.raises(FileNotFoundError, match=r'6 images, but no folders.*ann_file'):
        build(root, 'val')


def test_images_and_labels_have_to_be_the_same(root):
    flatten(root, '{name} {wnid}')
    write(root / 'val' / 'more.JPEG', 0)
    with pytest.raises(
        ValueError, match=r"1 image\(s\) in .*val.* such as 'more.JPEG'"
    ):
        build(root, 'val', ann_file='labels.txt')
    (root / 'val' / 'more.JPEG').unlink()
    (root / 'val' / 'ILSVRC2012_val_00.JPEG').unlink()
    with pytest.raises(ValueError, match=r'1 image\(s\) in .*labels.txt are not in'):
        build(root, 'val', ann_file='labels.txt')


def test_an_image_of_two_labels_is_refused(root):
    flatten(root, '{name} {label}')
    file = root / 'labels.txt'
    text = file.read_text()
    name, label = text.split()[:2]
    stem = name.removesuffix('.JPEG')
    file.write_text(f'{text}\n{stem} {label}\n')
    assert_right(build(root, 'val', ann_file='labels.txt'), 6)
    file.write_text(f'{text}\n{stem} {(int(label) + 1) % 3}\n')
    with pytest.raises(ValueError, match=f"'{name}' and '{stem}', the same image"):
        build(root, 'val', ann_file='labels.txt')


def spoil(path):
    path.write_bytes(path.read_bytes()[:200])


def test_unreadable_images_are_replaced_with_their_own_labels(root):
    for i in range(3):
        spoil(root / 'train' / WNIDS[0] / f'{WNIDS[0]}_{i}.JPEG')
    dataset = build(root)
    assert_right(dataset, 12)
    assert dataset.unreadable.tolist() == [1, 1, 1] + [0] * 9


def test_unreadable_validation_images_have_no_label(root):
    spoil(root / 'val' / WNIDS[2] / 'ILSVRC2012_val_12.JPEG')  # the last one
    dataset = build(root, 'val')
    assert [dataset[i]['data_samples'] for i in range(6)] == [0, 0, 1, 1, 2, -1]
    assert dataset[5]['inputs'].shape == (3, 8, 8)
    assert dataset.unreadable.tolist() == [0, 0, 0, 0, 0, 1]


def test_nothing_readable_ends_with_a_message(root):
    for path in (root / 'val').rglob('*.JPEG'):
        spoil(path)
    with pytest.raises(FileNotFoundError, match='none of the 6 images'):
        build(root, 'val')[0]


def test_a_model_of_other_classes_is_refused_before_training(root):
    loader = SimpleNamespace(dataset=build(root))
    model = SimpleNamespace(num_classes=3)
    runner = SimpleNamespace(train_dataloader=loader, model=model)
    CheckNumClasses().before_train(runner)
    model.num_classes = 1000
    with pytest.raises(ValueError, match=r'1000 classes.* 3 \(.*model.num_classes=3,'):
        CheckNumClasses().before_train(runner)


def test_images_that_workers_could_not_read_are_reported(root):
    for i in range(4):
        spoil(root / 'train' / WNIDS[0] / f'{WNIDS[0]}_{i}.JPEG')
    spoil(root / 'train' / WNIDS[2] / f'{WNIDS[2]}_0.JPEG')
    sampler = dict(type='DefaultSampler', shuffle=True)
    loader = dict(dataset=settings(root), sampler=sampler, batch_size=5, num_workers=2)
    loader['collate_fn'] = dict(type='default_collate')
    loader = Runner.build_dataloader(loader, seed=0)
    runner = SimpleNamespace(train_dataloader=loader, logger=Mock())
    hook = ReportUnreadableImages()
    hook.after_train_epoch(runner)
    assert not runner.logger.mock_calls
    for _ in range(2):
        batches = list(loader)
        for batch in batches:
            shown = batch['inputs'].float().mean((1, 2, 3))
            expected = 50.0 * batch['data_samples'] + 50
            torch.testing.assert_close(shown, expected, atol=2, rtol=0)
        assert sum(len(batch['inputs']) for batch in batches) == 12
    hook.after_train_epoch(runner)
    ((text,), _) = runner.logger.warning.call_args
    assert text.startswith('5 of the 12 training images could not be read')
    assert text.count('.JPEG') == 3 and text.endswith(', ...')


def test_a_data_set_can_be_pickled(root):
    assert_right(pickle.loads(pickle.dumps(build(root))), 12)


def test_validation_images_are_what_mmcv_makes_of_them(tmp_path):
    y, x = np.mgrid[:90, :70]
    picture = np.stack([x * 3, y * 2, x + y], axis=2).astype(np.uint8)
    (tmp_path / 'val' / 'a').mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'val' / 'a' / 'x.png'), picture)
    dataset = ImageNet(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='val'),
        test_mode=True,
        pipeline=[
            dict(type='prm_mmdet.LoadImage', short_edge=64),
            *[{**s, 'scale': (10**6, 64)} if 'scale' in s else s for s in VAL[1:2]],
            dict(type='CenterCrop', crop_size=56),
            VAL[-1],
        ],
    )
    resized = cv2.resize(picture, (64, 82))
    found = dataset[0]['inputs'].numpy().transpose(1, 2, 0)
    assert (found == resized[13:69, 4:60]).all()
