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
from concurrent.futures import ThreadPoolExecutor
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
from mmengine.runner.checkpoint import CheckpointLoader

from prm_mmdet import compat
from prm_mmdet.files import plain_pickle
from prm_mmdet.files.checkpoints import read_checkpoint
from prm_mmdet.launch import MissingInput, RunError, TrainRunner, check_data
from prm_mmdet.launch.data_files import how_to_get_weights
from prm_mmdet.launch.processes import StartWorker

CONFIG = ROOT / 'configs' / 'demo' / 'mask-rcnn_r50-sac_fpn_demo.py'
TOOLS = {'ours': ROOT / 'tools', 'mmdet': Path(mmdet.__file__).parent / '.mim/tools'}


@pytest.mark.parametrize('whose', ['ours', 'mmdet'])
def test_train_resume_test(whose, run_python, demo_options, tmp_path):
    tools = TOOLS[whose]
    train = [tools / 'train.py', CONFIG, '--work-dir', tmp_path / 'work']
    options = [*demo_options, 'train_cfg.val_begin=9']
    run_python(*train, *options, 'train_cfg.max_epochs=1')
    work = tmp_path / 'work'
    assert (work / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    names = read_checkpoint(work / 'epoch_1.pth')['state_dict']
    assert sum('.sac_block.' in name for name in names) == 13 * 6

    resumed = run_python(*train, '--resume', *options)
    assert 'resumed epoch: 1' in resumed.stdout
    assert read_checkpoint(work / 'epoch_2.pth')['meta']['epoch'] == 2

    # Loading leaves no key out, and the metrics are those of a COCO evaluation.
    out = tmp_path / 'predictions.pkl'
    tested = run_python(
        *(tools / 'test.py', CONFIG, work / 'epoch_2.pth', '--out', out),
        *('--work-dir', work, '--show-dir', 'shown', *demo_options),
    )
    assert 'missing keys' not in tested.stdout
    assert 'unexpected key' not in tested.stdout
    assert re.search(r'coco/bbox_mAP: \S+ .*coco/segm_mAP: ', tested.stdout)
    assert out.stat().st_size > 0
    assert len(list(work.rglob('shown/**/*.png'))) == 4
    if whose == 'ours':
        for kind in ('box', 'mask'):
            assert re.search(rf'{kind} AP [-0-9.]+$', tested.stdout, re.M)


@pytest.mark.parametrize(
    'workers, kind', [(0, 'missing'), (1, 'text'), (0, 'bad polygon')]
)
def test_an_image_that_cannot_be_loaded_is_named(user_cfg, tmp_path, workers, kind):
    cfg = copy.deepcopy(user_cfg)
    shutil.copytree(cfg.train_dataloader.dataset.data_root, tmp_path / 'data')
    loader = cfg.train_dataloader
    loader.dataset.data_root = f'{tmp_path}/data/'
    loader.num_workers = workers
    loader.dataset = dict(type='RepeatDataset', times=2, dataset=loader.dataset)
    loader = TrainRunner.build_dataloader(loader)
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
    cfg = copy.deepcopy(user_cfg.train_dataloader)
    cfg.dataset.pipeline[1:] = [dict(type='Resize', scale=(0, 0))]
    loader = TrainRunner.build_dataloader(cfg)
    with pytest.raises(RuntimeError, match=r'\(img_id \d+\): Resize failed') as raised:
        next(iter(loader))
    assert not isinstance(raised.value, RunError)
    assert raised.value.__cause__ is not None


def _train_for_minutes():
    # A larger data set would take OpenMP's threads, which do not survive a fork.
    sampler = dict(type='DefaultSampler', shuffle=False)
    cfg = dict(dataset=[0] * 10**4, batch_size=1, num_workers=2, sampler=sampler)
    for _ in TrainRunner.build_dataloader(cfg, seed=0):
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != 'linux', reason='the Linux kernel ends workers')
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_data_workers_end_with_their_training(number):
    training = os.fork()
    if not training:
        try:
            _train_for_minutes()
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


def test_missing_demo_data_names_the_tool_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingInput, match=r'tools/make_demo_data\.py') as raised:
        check_data(Config.fromfile(CONFIG), 'train')
    assert 'MMDET_DATASETS' not in str(raised.value)


@pytest.fixture
def served(tmp_path):
    """Address of a folder that a web server serves."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / 'served')
    (tmp_path / 'served').mkdir()
    server = HTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


@pytest.mark.parametrize('kind', ['Pretrained', 'prm_mmdet.PreservedPretrained'])
@pytest.mark.parametrize(
    'name, words',
    [
        # Nothing listens at this port: what a machine without a network sees.
        ('http://127.0.0.1:9/r50.pth', ['cannot be had', '{hub}/r50.pth', 'cfg=None']),
        ('checkpoints/mine.pth', ['cannot be had', 'put at {here}/checkpoints/mine']),
        ('torchvision://resnet51', ['cannot be had', 'resnet51']),
        ('{served}/evil.pth', ['cannot be used: http', 'or holds more than weights']),
    ],
)
def test_weights_that_cannot_be_loaded_are_named(
    tmp_path, monkeypatch, served, kind, name, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    # These three keep what load_weights_only changes in this process to this test.
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', None)
    monkeypatch.setattr(plain_pickle, 'read_for_mmengine', lambda: None)
    compat.load_weights_only()
    torch.save(dict(state_dict=Touch(tmp_path / 'run')), tmp_path / 'served/evil.pth')
    init_cfg = dict(type=kind, checkpoint=name.format(served=served))
    model = dict(type='mmdet.ResNet', depth=18, base_channels=4, init_cfg=init_cfg)
    cfg = Config(dict(model=model))
    runner = TrainRunner(model, str(tmp_path), cfg=cfg, experiment_name=tmp_path.name)
    with pytest.raises(RunError, match='pre-trained weights') as raised:
        runner._init_model_weights()
    for word in [init_cfg['checkpoint'], *words]:
        word = word.format(hub=f'{tmp_path}/hub/checkpoints', here=tmp_path)
        assert word in str(raised.value)
    assert not (tmp_path / 'run').exists()


def test_missing_weights_are_named_where_the_config_has_class_objects():
    init_cfg = dict(type=PretrainedInit, checkpoint='mine.pth')
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=init_cfg))))
    message = how_to_get_weights(cfg, FileNotFoundError('mine.pth'))
    assert '  model.backbone.init_cfg.checkpoint=mine.pth\n' in message


def test_only_the_phases_asked_for_are_checked(demo_data):
    present = dict(
        data_root=str(demo_data),
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
    )
    both = dict(type='Concat', datasets=[present, dict(ann_file='x')])
    remote = dict(ann_file='x', backend_args=dict(backend='petrel'))
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=both)),
            test_dataloader=dict(dataset=present),
            val_dataloader=dict(dataset=remote),
            test_evaluator=[dict(type='CocoMetric', ann_file='s3://bucket/x.json')],
        )
    )
    check_data(cfg, 'val', 'test')
    with pytest.raises(MissingInput, match=r'datasets\.1\.data_root'):
        check_data(cfg, 'train')


RANK = """
import copy, os, sys
import torch, torch.distributed
from mmdet.registry import MODELS
from prm_mmdet.launch import Runner

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
alone = copy.deepcopy(model)
runner = Runner(model=model, work_dir='work', launcher='pytorch', cfg=dict())
assert torch.distributed.get_backend() == 'gloo'
runner.model.eval()
torch.manual_seed(1)  # the Runner draws its own
images = torch.randn(4, 3, 64, 64)
for network, batch in (
    (alone, images), (runner.model, images.chunk(2)[torch.distributed.get_rank()])
):
    sum(y.square().mean() for y in network(batch)).backward()
found = {n: p.grad for n, p in runner.model.module.named_parameters()}
assert any(g.abs().max() > 0 for n, g in found.items() if '.prm.' in n)
for name, p in alone.named_parameters():
    torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)
print('equal', flush=True)
# As run_tool leaves: gloo's threads may abort an interpreter that is being finalised.
os._exit(0)
"""


@pytest.fixture
def ranks():
    """Environment variables of torchrun for two ranks."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = f'{listener.getsockname()[1]}'
    common = dict(os.environ, MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE='2')
    return [dict(common, RANK=rank, LOCAL_RANK=rank) for rank in '01']


def test_two_cpu_ranks_give_the_gradients_of_one_process(run_python, ranks):
    def run(env):
        return run_python('-c', RANK, env=env, fork=True)

    with ThreadPoolExecutor(2) as pool:
        assert all('equal' in result.stdout for result in pool.map(run, ranks))


def test_dist_train_and_dist_test_on_cpu_ranks(
    run_python, demo_options, tmp_path, ranks
):
    env = {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        'PORT': ranks[0]['MASTER_PORT'],
        'PYTHONWARNINGS': 'ignore',
    }
    work = ['--work-dir', tmp_path / 'work with space']
    checkpoint = tmp_path / 'work with space' / 'epoch_1.pth'
    options = [*work, *demo_options, 'train_cfg.max_epochs=1']
    for tool in (['dist_train.sh', CONFIG], ['dist_test.sh', CONFIG, checkpoint]):
        result = subprocess.run(
            [TOOLS['ours'] / tool[0], *tool[1:], '2', *options],
            cwd=tmp_path,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert result.returncode == 0, result.stdout[-6000:]
        assert 'coco/bbox_mAP' in result.stdout
        assert checkpoint.is_file()


@pytest.mark.parametrize(
    'name', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test']
)
def test_shell_tools_say_how_to_use_them(name):
    result = subprocess.run(
        [TOOLS['ours'] / f'{name}.sh'], text=True, capture_output=True
    )
    assert result.returncode == 2
    assert f'{name}.sh' in result.stderr and 'Usage' in result.stderr


def _passed_on(program, tool, folder, **env):
    """What a shell tool passes on to a program. A stand-in shows its arguments."""
    stand_in = folder / program
    stand_in.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    stand_in.chmod(0o755)
    env = {**os.environ, 'PATH': f'{folder}:{os.environ["PATH"]}', **env}
    command = [TOOLS['ours'] / tool[0], *tool[1:]]
    output = subprocess.run(
        command, env=env, text=True, capture_output=True, check=True
    )
    return output.stdout.splitlines()


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_slurm_tools_ask_for_what_they_were_given(tmp_path, tool):
    lines = _passed_on(
        'srun',
        [f'slurm_{tool}.sh', 'part', 'job', 'c.py', 'a dir', '--amp'],
        tmp_path,
        GPUS='4',
        GPUS_PER_NODE='2',
        SRUN_ARGS='--time 1:00 --exclusive',
    )
    assert lines[:5] == [
        *('--partition=part', '--job-name=job', '--ntasks=4'),
        *('--ntasks-per-node=2', '--gres=gpu:2'),
    ]
    assert lines[7:10] == ['--time', '1:00', '--exclusive']
    expected = ['c.py', '--work-dir', 'a dir', '--launcher', 'slurm', '--amp']
    if tool == 'test':
        expected.remove('--work-dir')
    assert lines[12:] == [str(TOOLS['ours'] / f'{tool}.py'), *expected]
