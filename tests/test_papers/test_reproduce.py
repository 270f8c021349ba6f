"""Running rows: with real training where that is quick, with stand-ins elsewhere."""

import fcntl
import importlib.util
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from mmdet.datasets import CocoDataset
from mmengine.config import Config

from prm_mmdet.config import config_path
from prm_mmdet.launch import MissingInput
from prm_mmdet.papers import TABLES, find_table, reproduce
from prm_mmdet.papers.reproduce import Launch, Run, choose, dry_run, run_rows
from prm_mmdet.papers.smoke import write_smoke_config

TOOL = ROOT / 'tools' / 'reproduce.py'
ROWS = [f'prm/retinanet_r50{block}_fpn_2x_coco.py' for block in ('', '-se-c2-c5')]
BASE, SE = (Path(row).stem for row in ROWS)
MULTI_SCALE = 'cascade-mask-rcnn_x101-32x4d-dconv-c3-c5-sac-c3-c5_fpn_4xb2-ms-1x_coco'

# In place of train.py and test.py: notes how it was called, and does what it was told
# to; by default what they leave behind.
STAND_IN = """
import json, os, sys, time
from pathlib import Path

folder = Path(sys.argv[sys.argv.index('--work-dir') + 1])
Path(folder, 'called').write_text(json.dumps([Path(sys.argv[0]).name, *sys.argv[1:]]))
told = Path('told') / folder.name
if told.is_file():
    exec(told.read_text())
log = folder / '20270101_000000'
metrics = {'coco/bbox_mAP': 0.4}
if Path(sys.argv[0]).name == 'train.py':
    log /= 'vis_data'
    metrics['step'] = 24
log.mkdir(parents=True)
Path(log, 'metrics.json').write_text(json.dumps(metrics))
Path(folder, 'last_checkpoint').write_text('/elsewhere/epoch_24.pth')
"""


@pytest.fixture(scope='session')
def coco(demo_data, tmp_path_factory):
    """The demo data, laid out as COCO and with names of its classes."""
    root = tmp_path_factory.mktemp('coco')
    (root / 'annotations').mkdir()
    for phase in ('train', 'val'):
        (root / f'{phase}2017').symlink_to(demo_data / phase)
        text = (demo_data / f'annotations/instances_{phase}.json').read_text()
        data = json.loads(text)
        names = enumerate(CocoDataset.METAINFO['classes'], 1)
        data['categories'] = [dict(id=i, name=name) for i, name in names]
        path = root / f'annotations/instances_{phase}2017.json'
        path.write_text(json.dumps(data))
    return root


@pytest.fixture(scope='session')
def imagenet(demo_data, tmp_path_factory):
    """ImageNet's thousand folders, with an image each to train and to validate."""
    root = tmp_path_factory.mktemp('imagenet')
    for phase in ('train', 'val'):
        images = sorted((demo_data / phase).iterdir())
        for i in range(1000):
            folder = root / phase / f'n{i:08d}'
            folder.mkdir(parents=True)
            image = images[i % len(images)]
            (folder / f'{phase}{image.suffix}').symlink_to(image)
    return root


@pytest.fixture
def place(coco, tmp_path, monkeypatch):
    """An empty current folder, with the data set in reach."""
    monkeypatch.setenv('MMDET_DATASETS', f'{coco}/')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stand_in(place, monkeypatch):
    """Puts stand-ins for train.py and test.py; tells them what to do instead."""
    tools = place / 'tools'
    tools.mkdir()
    for name in ('train.py', 'test.py'):
        (tools / name).write_text(STAND_IN)
    monkeypatch.setattr(reproduce, '_tools', lambda: tools)
    (place / 'told').mkdir()
    return lambda name, code: (place / 'told' / name).write_text(code)


def called(name):
    """The command line that a row's stand-in saw."""
    return json.loads(Path('work_dirs', name, 'called').read_text())


def cut_short(name, epoch, evaluated=None, ranks=1):
    """What training leaves when it is cut after an epoch."""
    log = Path('work_dirs', name, '20260101_000000', 'vis_data', 'scalars.json')
    log.parent.mkdir(parents=True)
    evaluated = epoch if evaluated is None else evaluated
    log.write_text(json.dumps({'coco/bbox_mAP': 0.3, 'step': evaluated}))
    text = f'    GPU number: {ranks}\n - Epoch(train) [1][1/2]\n'
    (log.parents[1] / 'run.log').write_text(text)
    pointer = Path('work_dirs', name, 'last_checkpoint')
    pointer.write_text(f'/elsewhere/epoch_{epoch}.pth')


def test_rows_are_chosen_once_and_by_pattern():
    assert choose([find_table('prm-4')])[:2] == ROWS
    everything = choose(TABLES)
    assert len({Path(config).stem for config in everything}) == len(everything) > 70
    twice = [find_table(key) for key in ('sac-II', 'sac-V')]
    assert len(choose(twice)) == 13
    assert choose(TABLES, ['retinanet_r50_*_2x*', '*se-c2-c5*_2x*']) == ROWS
    with pytest.raises(ValueError, match=rf"'retina' in|'retina'; there are\n  {BASE}"):
        choose(TABLES, ['*2x*', 'retina'])
    with pytest.raises(ValueError, match='name tables before --rows'):
        choose(TABLES, ['*2x*', 'sac-V'])


def test_a_smoke_run_trains_saves_evaluates_and_is_skipped_then(
    run_python, coco, tmp_path
):
    command = [TOOL, 'sac-VI', '--rows', 'retinanet_r50_*', '--smoke']
    command += ['--data-root', coco]
    name = 'retinanet_r50_fpn_4xb2-1x_coco'
    folder = Path(f'work_dirs/smoke/{name}')
    first = run_python(*command).stdout
    assert f'[1/1] {name}: not begun, starting; log: {folder}/reproduce.log' in first
    assert ', ok\nrows: 1 ok\n' in first
    assert 'sac-VI: GC and SAC with other detectors' in first
    log = (tmp_path / folder / 'reproduce.log').read_text()
    for text in ('(train) [1][2/2]', 'Saving checkpoint', 'coco/bbox_mAP', 'Scaling'):
        assert text in log
    assert ': nan' not in log
    # Nothing large stays, and nothing is where a real run would be.
    assert not list(tmp_path.rglob('*.pth'))
    assert os.listdir(tmp_path) == ['work_dirs']
    assert os.listdir(tmp_path / 'work_dirs') == ['smoke']

    second = run_python(*command).stdout
    assert f'[1/1] {name}: finished before\nrows: 1 finished before\n' in second
    assert (tmp_path / folder / 'reproduce.log').read_text() == log


def test_a_smoke_config_is_the_row_with_less(place):
    (config,) = choose(TABLES, [MULTI_SCALE])
    launch = Launch(smoke=True, ranks=2)
    launch.folder.mkdir(parents=True)
    write_smoke_config(config, launch.folder, launch.ranks)
    row = Config.fromfile(config_path(config))
    less = Config.fromfile(launch.folder / f'{MULTI_SCALE}.py')

    steps = less.train_dataloader.dataset.pipeline
    assert steps[2].scale == [(160, 77), (160, 96)]
    steps[2].scale = row.train_dataloader.dataset.pipeline[2].scale
    assert steps == row.train_dataloader.dataset.pipeline
    assert less.train_dataloader.batch_size == row.train_dataloader.batch_size
    annotations = json.loads(Path(less.train_dataloader.dataset.ann_file).read_text())
    assert len(annotations['images']) == 8
    assert less.val_evaluator.ann_file == less.val_dataloader.dataset.ann_file

    assert less.model.train_cfg.rcnn[2].sampler.num == 32
    assert less.model.test_cfg.rcnn.score_thr == 0
    for cfg in (row, less):
        del cfg.model.train_cfg, cfg.model.test_cfg, cfg.model.backbone.init_cfg
    assert less.model == row.model
    for key in ('optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'custom_imports'):
        assert less[key] == row[key]


def test_a_smoke_run_of_a_classifier(run_python, imagenet, tmp_path):
    name = 'resnet18-prm-c2-c5_8xb32-100e_imagenet'
    command = [TOOL, 'prm-5', '--rows', name, '--smoke', '--imagenet-root', imagenet]
    first = run_python(*command).stdout
    assert ', ok\nrows: 1 ok\n' in first
    assert f'* {name}, measured after epoch 1 of 100' in first
    log = (tmp_path / f'work_dirs/smoke/{name}/reproduce.log').read_text()
    for text in ('(train) [1][2/2]', 'Saving checkpoint', 'accuracy/top5', 'Scaling'):
        assert text in log
    assert not list(tmp_path.rglob('*.pth'))


def test_a_smoke_config_of_a_classifier_is_the_row_with_less(
    place, imagenet, monkeypatch, tmp_path
):
    monkeypatch.setenv('IMAGENET', f'{imagenet}/')
    (config,) = choose(TABLES, ['mobilenet-v2-prm_*'])
    launch = Launch(smoke=True, ranks=2)
    launch.folder.mkdir(parents=True)
    write_smoke_config(config, launch.folder, launch.ranks)
    row = Config.fromfile(config_path(config))
    less = Config.fromfile(launch.folder / Path(config).name)
    sizes = {'size': 27, 'short_edge': 31, 'crop_size': 27, 'scale': (120000, 31)}
    for phase, images in (('train', 8), ('val', 2), ('test', 2)):
        loader = less[f'{phase}_dataloader']
        assert loader.batch_size == 2 and loader.dataset.indices == images
        steps = row[f'{phase}_dataloader'].dataset.pipeline
        found = set()
        for old, new in zip(steps, loader.dataset.pipeline):
            for key in set(old) & set(sizes):
                assert new[key] == sizes[key]
                found.add(key)
        assert found >= ({'size'} if phase == 'train' else {'crop_size', 'scale'})
    assert less.model.backbone.model.pop('init_cfg') == []
    assert less.model == row.model
    for key in ('optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'val_evaluator'):
        assert less[key] == row[key]
    # A part of ImageNet will do.
    for i in range(7):
        (tmp_path / 'part' / 'train' / f'n{i}').mkdir(parents=True)
    monkeypatch.setenv('IMAGENET', f'{tmp_path}/part/')
    write_smoke_config(config, launch.folder, launch.ranks)
    less = Config.fromfile(launch.folder / Path(config).name)
    assert less.model.num_classes == 7


def test_a_failure_stops_no_other_row(stand_in, capsys):
    rows = ['prm/no-such.py', *ROWS, choose(TABLES)[2]]
    stand_in(BASE, "sys.exit('told to\\nfail')")
    stand_in(SE, 'os.abort()')
    assert run_rows(rows, Launch()) == 1
    out = capsys.readouterr().out
    assert '[1/4] no-such: 0:00:00, failed: FileNotFoundError: prm_mmdet has no' in out
    assert 'failed: exit status 1; it says:\n    told to\n    fail\n[3/4]' in out
    assert 'failed: killed by SIGABRT' in out
    assert '[4/4] retinanet_r50-prm-c2-c5_fpn_2x_coco: 0:00:0' in out
    assert out.endswith(f'rows: 3 failed, 1 ok\n{_failed("no-such", BASE, SE)}')
    assert 'told to' in Path('work_dirs', BASE, 'reproduce.log').read_text()

    stand_in(BASE, '')
    assert run_rows([rows[1], rows[3]], Launch()) == 0
    assert '[2/2] retinanet_r50-prm-c2-c5_fpn_2x_coco: finished before\n' in (
        capsys.readouterr().out
    )


def _failed(*names):
    return ''.join(f'  failed: {name}\n' for name in names)


def test_a_row_goes_on_where_it_was_cut_short(stand_in, capsys):
    cut_short(BASE, 3)
    assert Run(ROWS[0], Launch()).state == 'after epoch 3 of 24'
    assert run_rows(ROWS[:1], Launch()) == 0
    assert called(BASE) == [
        *('train.py', config_path(ROWS[0]), '--work-dir', f'work_dirs/{BASE}'),
        *('--auto-scale-lr', '--resume'),
    ]
    assert Run(ROWS[0], Launch()).state == 'finished'


def test_a_row_cut_in_its_last_evaluation_is_evaluated(stand_in):
    cut_short(BASE, 24, evaluated=23)
    assert Run(ROWS[0], Launch()).state == 'not evaluated'
    assert run_rows(ROWS[:1], Launch()) == 0
    folder = f'work_dirs/{BASE}'
    checkpoint = f'{folder}/epoch_24.pth'
    assert called(BASE) == [
        *('test.py', config_path(ROWS[0]), checkpoint, '--work-dir', folder)
    ]
    assert Run(ROWS[0], Launch()).state == 'finished'


def test_a_row_does_not_go_on_with_another_number_of_ranks(stand_in, capsys):
    cut_short(BASE, 3, ranks=8)
    # An older run, on one rank, was begun anew.
    older = Path('work_dirs', BASE, '20250101_000000', 'run.log')
    older.parent.mkdir()
    older.write_text('    GPU number: 1\n - Epoch(train) [1][1/2]\n')
    assert run_rows(ROWS[:1], Launch()) == 1
    assert 'another number of ranks: go on with 8, or' in capsys.readouterr().out
    assert not Path('work_dirs', BASE, 'called').exists()


def test_a_row_that_ends_without_its_evaluation_has_failed(stand_in, capsys):
    stand_in(BASE, "print('the results are empty'); sys.exit()")
    assert run_rows(ROWS[:1], Launch()) == 1
    out = capsys.readouterr().out
    assert 'failed: it ended not begun; it says:\n    the results are empty\n' in out


def test_the_reason_is_found_among_what_many_ranks_say(stand_in, capsys):
    torchrun = (
        "[rank0]: Traceback (most recent call last):\\n[rank0]: KeyError: 'x'\\n"
        '[rank1]: Traceback (most recent call last):\\n[rank1]: Connection closed\\n'
        'E1120 13:09:26 torch/distributed/elastic failed (exitcode: 1)\\n' + 'x\\n' * 30
    )
    stand_in(BASE, f'print({torchrun!r}.replace("\\\\n", "\\n")); sys.exit(1)')
    message = 'error: no weights:\\n  a file\\n' + torchrun
    stand_in(SE, f'print({message!r}.replace("\\\\n", "\\n")); sys.exit(1)')
    run_rows(ROWS, Launch())
    out = capsys.readouterr().out
    assert "(most recent call last):\n    [rank0]: KeyError: 'x'\n[2/2]" in out
    assert 'it says:\n    error: no weights:\n      a file\nrows:' in out


def test_a_row_that_another_process_runs_is_left_to_it(stand_in, capsys):
    folder = Path('work_dirs', BASE)
    folder.mkdir(parents=True)
    with (folder / 'reproduce.log').open('a') as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert run_rows(ROWS[:1], Launch()) == 0
    assert 'run by another process' in capsys.readouterr().out
    assert not (folder / 'called').exists()


def test_missing_data_is_named_before_anything_starts(stand_in, monkeypatch):
    monkeypatch.setenv('MMDET_DATASETS', 'nowhere')
    with pytest.raises(MissingInput, match='nowhere/annotations'):
        run_rows(['prm/no-such.py', *ROWS], Launch())
    assert not Path('work_dirs').exists()


def test_both_kinds_of_data_are_looked_for(stand_in, monkeypatch):
    monkeypatch.setenv('IMAGENET', 'nowhere')
    classifier = choose([find_table('prm-5')])[0]
    with pytest.raises(MissingInput, match='nowhere/train'):
        run_rows([*ROWS, classifier], Launch())
    assert not Path('work_dirs').exists()


def test_a_dry_run_shows_the_commands_and_writes_nothing(place, monkeypatch):
    monkeypatch.setenv('MMDET_DATASETS', '/my data/')
    monkeypatch.setenv('IMAGENET', '/images/')
    lines = dry_run(ROWS, Launch(launcher='torchrun', ranks=4)).splitlines()
    assert lines[::2] == [f'# {BASE}: not begun', f'# {SE}: not begun']
    assert shlex.split(lines[1]) == [
        *('MMDET_DATASETS=/my data/', 'IMAGENET=/images/'),
        *(sys.executable, '-m', 'torch.distributed.run'),
        *('--standalone', '--nproc_per_node=4', str(ROOT / 'tools/train.py')),
        *(config_path(ROWS[0]), '--work-dir', f'work_dirs/{BASE}', '--auto-scale-lr'),
        *('--resume', '--launcher', 'pytorch'),
    ]
    assert 'work_dirs/smoke/' in dry_run(ROWS, Launch(smoke=True))
    assert not os.listdir(place)


def test_slurm_gets_one_job_a_row_and_none_twice(stand_in, place, monkeypatch, capsys):
    # Stand-ins: a queue with one row in it, and commands that note their arguments.
    bin_folder = place / 'bin'
    bin_folder.mkdir()
    note = '#!/bin/sh\nfor a in "$@"; do echo "$a"; done > NAME.called\n'
    # A row of another folder is another job.
    launch = Launch(launcher='slurm', ranks=4, partition='gpu')
    elsewhere = replace(launch, work_dirs='elsewhere')
    jobs = [Run(ROWS[1], launch).job, Run(ROWS[0], elsewhere).job]
    assert jobs[0].startswith(SE) and Run(ROWS[0], launch).job != jobs[1]
    scripts = {'squeue': f'#!/bin/sh\necho {jobs[0]}; echo {jobs[1]}\n'}
    scripts['sbatch'] = note.replace('NAME', 'sbatch') + 'echo Submitted 7'
    scripts['srun'] = note.replace('NAME', 'srun') + 'echo $MASTER_PORT > port'
    for name, text in scripts.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{bin_folder}:{os.environ["PATH"]}')
    monkeypatch.setenv('GPUS_PER_NODE', '2')

    assert run_rows(ROWS, launch) == 0
    out = capsys.readouterr().out
    assert out.endswith('in the queue\nrows: 1 submitted, 1 in the queue\n')
    options = (place / 'sbatch.called').read_text().splitlines()
    assert options[:-1] == [
        *(f'--job-name={Run(ROWS[0], launch).job}', '--ntasks=4'),
        *('--ntasks-per-node=2', '--gres=gpu:2'),
        *('--cpus-per-task=5', f'--output=work_dirs/{BASE}/reproduce.log'),
        *('--open-mode=append', '--partition=gpu'),
    ]
    # What the job does when its turn comes.
    script = options[-1].removeprefix('--wrap=')
    env = {**os.environ, 'SLURM_JOB_ID': '1234567'}
    subprocess.run(['sh', '-c', script], env=env, check=True)
    assert (place / 'port').read_text() == f'{20000 + 1234567 % 20000}\n'
    arguments = (place / 'srun.called').read_text().splitlines()
    assert arguments[:4] == [
        *('--cpus-per-task=5', '--kill-on-bad-exit=1', sys.executable, '-u')
    ]
    assert arguments[5:] == [
        *(config_path(ROWS[0]), '--work-dir', f'work_dirs/{BASE}', '--auto-scale-lr'),
        *('--resume', '--launcher', 'slurm'),
    ]

    (bin_folder / 'squeue').write_text('#!/bin/sh\nexit 1\n')
    with pytest.raises(OSError, match=r'squeue .* failed'):
        run_rows(ROWS, launch)
    monkeypatch.setenv('PATH', str(place))
    with pytest.raises(OSError, match='there is no Slurm here'):
        run_rows(ROWS, launch)
    lines = dry_run(ROWS, launch).splitlines()
    assert 'no Slurm' in lines[0] and 'sbatch' in lines[2]
    monkeypatch.setenv('GPUS_PER_NODE', 'x')
    with pytest.raises(ValueError, match="GPUS_PER_NODE='x'"):
        dry_run(ROWS, launch)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_row_too(stand_in, place, number):
    stand_in(
        BASE,
        'import subprocess\n'
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)\n"
        "Path('pids').write_text(f'{os.getpid()} {child.pid} ')\n"
        'time.sleep(600)\n',
    )
    driver = (
        'import runpy, sys; from pathlib import Path; '
        'from prm_mmdet.papers import reproduce; '
        "reproduce._tools = lambda: Path('tools'); "
        "sys.argv[1:] = ['prm-4', '--rows', 'retinanet*']; "
        f"runpy.run_path({str(TOOL)!r}, run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-c', driver],
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and all they start, ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    pids = place / 'pids'
    deadline = time.monotonic() + 120
    try:
        while not (pids.is_file() and pids.read_text().endswith(' ')):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert 'interrupted; the same command goes on' in out
    assert '[2/3]' not in out
    for pid in map(int, pids.read_text().split()):
        assert _gone(pid)


def _gone(pid):
    for _ in range(100):
        try:
            state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
        except FileNotFoundError:
            return True
        if state == 'Z':  # ended, and nobody has asked how
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def tool(place, monkeypatch):
    """Calls the tool's main with arguments."""
    spec = importlib.util.spec_from_file_location('reproduce_tool', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)}

    def main(*arguments):
        monkeypatch.setattr(sys, 'argv', ['reproduce.py', *arguments])
        module.main()

    yield main
    logging.disable(logging.NOTSET)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_tool_lists_rows(tool, capsys):
    cut_short(BASE, 3)
    tool('prm-4', '--list', '--rows', 'retinanet_r50_*', '*-se-*')
    assert capsys.readouterr().out.splitlines() == [
        'prm-4: Detection with different backbones',
        f'  {BASE}           after epoch 3 of 24',
        f'  {SE}  not begun',
    ]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['sac-XI'], "no table 'sac-XI'"),
        (['prm-4', '--rows', 'retina'], "no row matches 'retina'; there are"),
        (['prm-4', '--data-root', 'nowhere'], 'nowhere/annotations/instances_train'),
        (['--launcher', 'torchrun'], '--ranks go together'),
        (['--ranks', '4'], '--ranks go together'),
        (['--launcher', 'torchrun', '--ranks', '0'], 'a number above 0'),
        (['--partition', 'gpu'], 'wants --launcher slurm'),
    ],
)
def test_the_tool_says_what_is_wrong(tool, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        tool(*arguments)
    assert message in f'{stop.value.code}' + capsys.readouterr().err
    assert stop.value.code not in (0, None)
    assert not Path('work_dirs').exists()
