"""Pre-training from the command line."""

import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config

from prm_mmdet.datasets.demo_classes import generate_demo_classes
from prm_mmdet.launch import MissingInput, check_data

TOOLS = ROOT / 'tools'
CONFIG = ROOT / 'configs' / 'demo' / 'resnet50-prm_demo.py'
IMAGENET = ROOT / 'configs' / 'imagenet' / 'resnet50_8xb32-100e_imagenet.py'


@pytest.fixture(scope='module')
def options(tmp_path_factory):
    """--cfg-options that train on a few images, one of which cannot be read."""
    root = tmp_path_factory.mktemp('classes')
    generate_demo_classes(root, num_train=3, num_val=1, image_size=32)
    for split in ('train', 'val'):
        (root / split / 'n00000003' / 'n00000003_1.JPEG').write_bytes(b'')
    options = ['train_cfg.max_epochs=2', 'train_dataloader.batch_size=4']
    for loader in ('train', 'val', 'test'):
        options += [
            f'{loader}_dataloader.dataset.data_root={root}/',
            f'{loader}_dataloader.num_workers=0',
            f'{loader}_dataloader.persistent_workers=False',
        ]
    return ['--cfg-options', *options]


def test_train_with_averaging_resume_test_publish(run_python, options, tmp_path):
    work = tmp_path / 'work'
    averaging = ['default_hooks.ema.type=EMAHook', 'default_hooks.ema.momentum=0.5']
    averaging += ['default_hooks.ema.update_buffers=True']
    train = [TOOLS / 'train.py', CONFIG, '--work-dir', work]
    trained = run_python(*train, *options, *averaging).stdout
    assert '1 of the 24 training images could not be read' in trained
    assert '1 of the 8 validation images could not be read' in trained
    assert re.search(r'accuracy/top1: \S+ +accuracy/top5: ', trained)

    resumed = run_python(
        *train, '--resume', *options, *averaging, 'train_cfg.max_epochs=3'
    ).stdout
    assert 'resumed epoch: 2' in resumed
    names = {p.name for p in work.glob('*.pth')}
    assert {'epoch_2.pth', 'epoch_3.pth'} <= names and 'epoch_1.pth' not in names
    (best,) = (n for n in names if n.startswith('best_accuracy_top1_epoch_'))

    saved = torch.load(work / 'epoch_3.pth', weights_only=True)
    assert saved['meta']['epoch'] == 3
    averaged = saved['state_dict']['fc.weight']
    other = saved['ema_state_dict']['module.fc.weight']
    assert not torch.equal(averaged, other)

    # A test of the best checkpoint on two ranks, which share the seven images that can
    # be read, finds what the training found in one process.
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]

    def test(rank):
        env = dict(os.environ, RANK=f'{rank}', LOCAL_RANK=f'{rank}', WORLD_SIZE='2')
        env.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=f'{port}')
        command = [TOOLS / 'test.py', CONFIG, work / best, '--launcher', 'pytorch']
        return run_python(*command, *options, env=env).stdout

    with ThreadPoolExecutor(2) as pool:
        tested, other = pool.map(test, (0, 1))
    at_best = re.findall(r'accuracy/top1: (\S+)', trained + resumed)
    top1 = re.search(r'^.*top-1 accuracy (\S+)$', tested, re.M).group(1)
    assert float(top1) == pytest.approx(max(map(float, at_best)), abs=1e-3)
    assert re.search(r'top-5 accuracy (\S+)$', tested, re.M)
    assert '1 of the 8 test images could not be read' in tested
    assert 'accuracy' not in other
    assert 'missing keys' not in tested and 'unexpected key' not in tested

    run_python(TOOLS / 'publish_checkpoint.py', work / 'epoch_3.pth', 'r50')
    (path,) = tmp_path.glob('r50-*.pth')
    published = torch.load(path, weights_only=True)
    assert torch.equal(published['state_dict']['fc.weight'], averaged)


def test_missing_imagenet_is_named(monkeypatch):
    monkeypatch.setenv('IMAGENET', 'nowhere')
    with pytest.raises(MissingInput) as error:
        check_data(Config.fromfile(IMAGENET), 'train', 'val')
    words = ['nowhere/train/', 'nowhere/val/', 'IMAGENET=/path', 'ann_file']
    for word in (*words, 'train_dataloader.dataset.data_root='):
        assert word in str(error.value)
    assert 'MMDET_DATASETS' not in str(error.value)


def test_missing_labels_are_named(monkeypatch, tmp_path):
    for name in ('train', 'val'):
        (tmp_path / name).mkdir()
    monkeypatch.setenv('IMAGENET', str(tmp_path))
    cfg = Config.fromfile(IMAGENET)
    check_data(cfg, 'train', 'val')
    cfg.val_dataloader.dataset.ann_file = 'labels.csv'
    with pytest.raises(MissingInput, match=f'{tmp_path}/labels.csv'):
        check_data(cfg, 'val')


def test_missing_demo_classes_name_the_tool_that_makes_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingInput, match=r'data\.py --classes 8'):
        check_data(Config.fromfile(CONFIG), 'train')
