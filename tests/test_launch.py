"""Training and testing from the command line, through our scripts and MMDetection's."""

import copy
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import mmdet
import psutil
import pytest
import torch
from conftest import ROOT, Touch
from mmengine.config import Config
from mmengine.model import PretrainedInit

import prm_mmdet  # noqa: F401
from prm_mmdet.files.checkpoints import read_checkpoint
from prm_mmdet.launch import MissingInput, RunError, TrainRunner, check_data
from prm_mmdet.launch.data_files import how_to_get_weights
from prm_mmdet.launch.processes import StartWorker

CONFIG = ROOT / 'configs' / 'demo' / 'mask-rcnn_r50-sac_fpn_demo.py'
TOOLS = {'ours': ROOT / 'tools', 'mmdet': Path(mmdet.__file__).parent / '.mim/tools'}


def blocks_in(checkpoint):
    names = read_checkpoint(checkpoint)['state_dict']
    return {n for n in names if '.sac_block.' in n}


@pytest.mark.parametrize('whose', ['ours', 'mmdet'])
def test_train_resume_test(whose, run_python, demo_options, tmp_path):
    tools = TOOLS[whose]
    train = [tools / 'train.py', CONFIG, '--work-dir', tmp_path / 'work']
    run_python(*train, *demo_options)
    work = tmp_path / 'work'
    assert (work / 'last_checkpoint').read_text().endswith('epoch_2.pth')
    assert len(blocks_in(work / 'epoch_2.pth')) == 13 * 6

    resumed = run_python(*train, '--resume', *demo_options, 'train_cfg.max_epochs=3')
    assert 'resumed epoch: 2' in resumed.stdout
    saved = read_checkpoint(work / 'epoch_3.pth')
    assert saved['meta']['epoch'] == 3

    # Loading leaves no key out, and the metrics are those of a COCO evaluation.
    out = tmp_path / 'predictions.pkl'
    tested = run_python(
        *(tools / 'test.py', CONFIG, work / 'epoch_3.pth', '--out', out),
        *('--work-dir', work, '--show-dir', 'shown', *demo_options),
    )
    assert 'missing keys' not in tested.stdout
    assert 'unexpected key' not in tested.stdout
    assert re.search(r'coco/bbox_mAP: \S+ .*coco/segm_mAP: ', tested.stdout)
    assert out.stat().st_size > 0
    assert len(list(work.rglob('shown/**/*.png'))) == 4
    if whose == 'ours':
        assert re.search(r'box AP [-0-9.]+$', tested.stdout, re.M)
        assert re.search(r'mask AP [-0-9.]+$', tested.stdout, re.M)


def test_killed_in_the_middle_of_an_epoch(run_python, demo_options, tmp_path):
    work = tmp_path / 'work'
    command = [TOOLS['ours'] / 'train.py', CONFIG, '--work-dir', work, *demo_options]
    command += ['train_cfg.max_epochs=30', 'train_cfg.val_interval=30']
    command += ['default_hooks.logger.interval=1', 'train_dataloader.num_workers=1']
    log = tmp_path / 'log'
    with log.open('w') as output:
        process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', *map(str, command)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 180
        while 'Epoch(train) [2][1/' not in re.sub(' +', ' ', log.read_text()):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert workers
    assert not psutil.wait_procs(workers, timeout=10)[1], 'workers outlive a training'
    reached = int((work / 'last_checkpoint').read_text().rpartition('_')[2][:-4])
    assert 1 <= reached < 30
    last = reached + 1
    command += [f'train_cfg.max_epochs={last}', f'train_cfg.val_interval={last}']
    command.insert(2, '--resume')
    assert f'resumed epoch: {reached}' in run_python(*command).stdout
    state = torch.load(work / f'epoch_{last}.pth', weights_only=True)['state_dict']
    assert all(v.isfinite().all() for v in state.values())


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('kind', ['missing', 'text', 'bad polygon'])
def test_an_image_that_cannot_be_loaded_is_named(user_cfg, tmp_path, workers, kind):
    cfg = copy.deepcopy(user_cfg)
    shutil.copytree(cfg.train_dataloader.dataset.data_root, tmp_path / 'data')
    loader = cfg.train_dataloader
    loader.dataset.data_root = f'{tmp_path}/data/'
    loader.num_workers = workers
    loader = TrainRunner.build_dataloader(
        dict(
            loader, dataset=dict(type='RepeatDataset', times=2, dataset=loader.dataset)
        )
    )
    inner = loader.dataset.dataset
    inner.full_init()
    image = inner.get_data_info(0)
    if kind == 'bad polygon':
        bad = [dict(image['instances'][0], mask=[['a'] * 6])]
        inner.get_data_info = lambda index: dict(image, instances=bad)
    elif kind == 'text':
        Path(image['img_path']).write_text('no image')
    else:
        Path(image['img_path']).unlink()
    with pytest.raises(RunError) as raised:
        list(loader)
    message = str(raised.value).rpartition('RunError: ')[2]
    assert message.startswith(f'{image["img_path"]} (img_id {image["img_id"]}): Load')
    assert 'check_data.py CONFIG --images' in message


def test_another_failing_step_keeps_its_own_error(user_cfg):
    dataset = dict(user_cfg.train_dataloader.dataset)
    dataset['pipeline'] = [*dataset['pipeline'][:1], dict(type='Resize', scale=(0, 0))]
    loader = TrainRunner.build_dataloader(
        dict(user_cfg.train_dataloader, dataset=dataset)
    )
    with pytest.raises(RuntimeError, match=r'\(img_id \d+\): Resize failed') as raised:
        next(iter(loader))
    assert not isinstance(raised.value, RunError)
    assert raised.value.__cause__ is not None


def _train_for_ever():
    loader = TrainRunner.build_dataloader(
        dict(
            dataset=[0] * 10**6,
            batch_size=1,
            num_workers=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        seed=0,
    )
    for _ in loader:
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != 'linux', reason='the Linux kernel ends workers')
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_data_workers_end_with_their_training(number):
    training = os.fork()
    if not training:
        try:
            _train_for_ever()
        finally:
            os._exit(1)
    workers, deadline = [], time.monotonic() + 60
    while len(workers) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        workers = psutil.Process(training).children()
    os.kill(training, number)
    assert os.waitpid(training, 0)[1]
    assert not psutil.wait_procs(workers, timeout=10)[1], 'workers outlive a training'


@pytest.mark.skipif(sys.platform != 'linux', reason='the Linux kernel ends workers')
def test_a_worker_ends_if_its_training_ended_before_it_began():
    reading, writing = os.pipe()
    training = os.fork()
    if not training:
        begin, parent = StartWorker(), os.getpid()
        if not os.fork():
            while os.getppid() == parent:
                time.sleep(0.01)
            begin(0)
            os.write(writing, b'begun')
        os._exit(0)
    os.waitpid(training, 0)
    os.close(writing)
    assert not os.read(reading, 5)


def test_missing_data_is_named_before_training(run_python, tmp_path):
    config = ROOT / 'configs/sac/mask-rcnn_r50-sac-c3-c5_fpn_1x_coco.py'
    env = {**os.environ, 'MMDET_DATASETS': 'nowhere/'}
    result = run_python(TOOLS['ours'] / 'train.py', config, env=env, check=False)
    assert result.returncode == 1
    assert 'Traceback' not in result.stdout
    message = result.stdout[result.stdout.index('error: ') :]
    for word in (
        'nowhere/annotations/instances_train2017.json',
        'nowhere/val2017/',
        str(tmp_path),
        'MMDET_DATASETS=',
        'train_dataloader.dataset.data_root=',
        'val_evaluator.ann_file=',
    ):
        assert word in message
    assert not (tmp_path / 'work_dirs').exists()


def test_missing_demo_data_names_the_tool_that_makes_it(run_python):
    result = run_python(TOOLS['ours'] / 'train.py', CONFIG, check=False)
    assert result.returncode == 1
    assert 'tools/make_demo_data.py' in result.stdout
    assert 'MMDET_DATASETS' not in result.stdout


def test_weights_that_cannot_be_downloaded_are_named(
    run_python, demo_options, tmp_path
):
    # Nothing listens at this port: what a machine without a network sees.
    url = 'http://127.0.0.1:9/weights/resnet50-nowhere.pth'
    (tmp_path / 'mine.py').write_text(
        f'_base_ = {str(CONFIG)!r}\n'
        f'init_cfg = dict(_delete_=True, type="Pretrained", checkpoint={url!r})\n'
        'model = dict(backbone=dict(init_cfg=init_cfg))\n'
    )
    train = [TOOLS['ours'] / 'train.py', 'mine.py', *demo_options]
    env = {**os.environ, 'TORCH_HOME': str(tmp_path / 'hub')}
    result = run_python(*train, env=env, check=False)
    assert result.returncode == 1
    message = result.stdout[result.stdout.index('error: pre-trained weights') :]
    assert f'model.backbone.init_cfg.checkpoint={url}' in message
    assert f'{tmp_path}/hub/hub/checkpoints/resnet50-nowhere.pth' in message
    assert 'init_cfg=None' in message


def test_missing_and_unknown_weights_are_named(run_python, demo_options, tmp_path):
    train = [TOOLS['ours'] / 'train.py', 'mine.py', *demo_options]
    for kind, name in (
        ('prm_mmdet.PreservedPretrained', 'checkpoints/mine.pth'),
        ('Pretrained', 'torchvision://resnet51'),
    ):
        (tmp_path / 'mine.py').write_text(
            f'_base_ = {str(CONFIG)!r}\n'
            f'init_cfg = dict(_delete_=True, type={kind!r}, checkpoint={name!r})\n'
            'model = dict(backbone=dict(init_cfg=init_cfg))\n'
        )
        result = run_python(*train, check=False)
        assert result.returncode == 1 and 'Traceback' not in result.stdout
        message = result.stdout[result.stdout.index('error: pre-trained weights') :]
        assert name in message
        if '://' not in name:
            assert f'to be put at {tmp_path}/{name}' in message


def test_missing_weights_are_named_where_the_config_has_class_objects():
    init_cfg = dict(type=PretrainedInit, checkpoint='mine.pth')
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=init_cfg))))
    message = how_to_get_weights(cfg, FileNotFoundError('mine.pth'))
    assert '  model.backbone.init_cfg.checkpoint=mine.pth\n' in message


def test_downloaded_weights_run_no_code(run_python, demo_options, tmp_path):
    (tmp_path / 'served').mkdir()
    torch.save(dict(state_dict=Touch(tmp_path / 'run')), tmp_path / 'served/evil.pth')
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / 'served')
    server = HTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/evil.pth'
    (tmp_path / 'mine.py').write_text(
        f'_base_ = {str(CONFIG)!r}\n'
        f'init_cfg = dict(_delete_=True, type="Pretrained", checkpoint={url!r})\n'
        'model = dict(backbone=dict(init_cfg=init_cfg))\n'
    )
    train = [TOOLS['ours'] / 'train.py', 'mine.py', *demo_options]
    env = {**os.environ, 'TORCH_HOME': str(tmp_path / 'hub'), 'no_proxy': '127.0.0.1'}
    result = run_python(*train, env=env, check=False)
    server.shutdown()
    assert (tmp_path / 'hub/hub/checkpoints/evil.pth').is_file()
    assert result.returncode == 1 and 'Traceback' not in result.stdout
    assert 'error: pre-trained weights cannot be used: http' in result.stdout
    assert 'evil.pth is damaged, or holds more than weights' in result.stdout
    assert not (tmp_path / 'run').exists()


def test_only_the_phases_asked_for_are_checked(demo_data):
    present = dict(
        data_root=str(demo_data),
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
    )
    cfg = Config(
        dict(
            train_dataloader=dict(
                dataset=dict(
                    type='RepeatDataset',
                    dataset=dict(type='Concat', datasets=[present, dict(ann_file='x')]),
                )
            ),
            test_dataloader=dict(dataset=present),
            val_dataloader=dict(
                dataset=dict(ann_file='x', backend_args=dict(backend='petrel'))
            ),
            test_evaluator=[dict(type='CocoMetric', ann_file='s3://bucket/x.json')],
        )
    )
    check_data(cfg, 'val', 'test')
    with pytest.raises(MissingInput, match=r'datasets\.1\.data_root'):
        check_data(cfg, 'train')


WORKER = """
import os, sys
import torch, torch.distributed
from mmengine.config import Config
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from prm_mmdet.launch import Runner
register_all_modules()

out, distributed = sys.argv[1], len(sys.argv) > 2
plugins = [
    dict(cfg=dict(type='prm_mmdet.SAC'), position='after_conv2'),
    dict(cfg=dict(type='prm_mmdet.PRM', groups=4), position='after_conv3'),
    dict(cfg=dict(type='prm_mmdet.LCT', groups=4, postfix='2'), position='after_conv3'),
]
model = dict(type='mmdet.ResNet', depth=50, base_channels=16, plugins=plugins)
torch.manual_seed(0)
model = MODELS.build(model)
model.eval()  # batch statistics differ between the two
for p in model.parameters():
    p.data += 0.01 * torch.randn_like(p)
runner = Runner(
    model=model,
    work_dir=out + '.work',
    launcher='pytorch' if distributed else 'none',
    cfg=dict(),
)
model = runner.model
model.eval()
torch.manual_seed(1)  # the Runner draws its own
images = torch.randn(4, 3, 64, 64)
if distributed:
    assert torch.distributed.get_backend() == 'gloo'
    images = images.chunk(2)[torch.distributed.get_rank()]
loss = sum(y.square().mean() for y in model(images))
loss.backward()
if not distributed or torch.distributed.get_rank() == 0:
    module = getattr(model, 'module', model)
    torch.save({n: p.grad for n, p in module.named_parameters()}, out)
# As run_tool leaves: gloo's threads may abort an interpreter that is being finalised.
os._exit(0)
"""


def test_two_cpu_ranks_give_the_gradients_of_one_process(run_python, tmp_path):
    (tmp_path / 'worker.py').write_text(WORKER)
    run_python('worker.py', tmp_path / 'one')
    torchrun = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone']
    run_python(*torchrun, 'worker.py', tmp_path / 'two', 'distributed')
    one, two = (
        torch.load(tmp_path / name, weights_only=True) for name in ('one', 'two')
    )
    assert one.keys() == two.keys()
    assert any(g.abs().max() > 0 for n, g in one.items() if '.prm.' in n)
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-6)


def test_dist_train_and_dist_test_on_cpu_ranks(demo_options, tmp_path):
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]
    env = {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        'PORT': str(port),
        'PYTHONWARNINGS': 'ignore',
    }

    def run(*command):
        result = subprocess.run(
            [*map(str, command)], cwd=tmp_path, env=env, text=True, capture_output=True
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout + result.stderr

    work = ['--work-dir', tmp_path / 'work with space']
    run(TOOLS['ours'] / 'dist_train.sh', CONFIG, 2, *work, *demo_options)
    checkpoint = tmp_path / 'work with space' / 'epoch_2.pth'
    out = run(
        TOOLS['ours'] / 'dist_test.sh', CONFIG, checkpoint, 2, *work, *demo_options
    )
    assert 'coco/bbox_mAP' in out


@pytest.mark.parametrize(
    'name', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test']
)
def test_shell_tools_say_how_to_use_them(name):
    result = subprocess.run(
        [TOOLS['ours'] / f'{name}.sh'], text=True, capture_output=True
    )
    assert result.returncode == 2
    assert f'{name}.sh' in result.stderr and 'Usage' in result.stderr


def test_slurm_train_asks_for_what_it_was_given(tmp_path):
    # A stand-in for srun shows the command line that a cluster would get.
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    srun.chmod(0o755)
    env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'GPUS': '4'}
    env.update(GPUS_PER_NODE='2', SRUN_ARGS='--time 1:00 --exclusive')
    command = [TOOLS['ours'] / 'slurm_train.sh', 'part', 'job', 'c.py', 'a dir']
    lines = subprocess.run(
        [*command, '--amp'], env=env, text=True, capture_output=True, check=True
    ).stdout.splitlines()
    assert lines[:5] == [
        *('--partition=part', '--job-name=job', '--ntasks=4'),
        *('--ntasks-per-node=2', '--gres=gpu:2'),
    ]
    assert lines[7:10] == ['--time', '1:00', '--exclusive']
    assert lines[-6:] == ['c.py', '--work-dir', 'a dir', '--launcher', 'slurm', '--amp']
