"""Running cells, with stand-ins for train.py and test.py."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from prm_mmdet.experiments import Cell, Launch, plan, read_record, run_cells, state
from prm_mmdet.experiments import launchers as launchers_module
from prm_mmdet.experiments.launchers import environment, job_name
from prm_mmdet.files.lock import lock_folder

# In place of train.py and test.py: notes how it was called, does what the test asks
# for, and leaves behind what these tools leave behind.
STAND_IN = """
import json, os, sys, time
from pathlib import Path

folder = Path(sys.argv[sys.argv.index('--work-dir') + 1])
name = Path(sys.argv[0]).name
with Path(folder, 'called').open('a') as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + '\\n')
asked = Path('asked') / folder.name
if asked.is_file():
    exec(asked.read_text())
log = folder / f'2027{time.time_ns()}'
metrics = {'coco/bbox_mAP': 0.4, 'time': 0.1}
if name == 'train.py':
    (log / 'vis_data').mkdir(parents=True)
    lines = [dict(metrics, step=1), dict(metrics, step=2)]
    text = '\\n'.join(map(json.dumps, lines))
    Path(log, 'vis_data', 'scalars.json').write_text(text)
    Path(folder, 'last_checkpoint').write_text('/elsewhere/epoch_2.pth')
else:
    log.mkdir(parents=True)
    Path(log, f'{log.name}.json').write_text(json.dumps(metrics))
"""


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """Makes cells of two epochs, and says what their stand-in does first."""
    monkeypatch.chdir(tmp_path)
    for name in ('tools', 'asked'):
        Path(name).mkdir()
    for name in ('train.py', 'test.py'):
        Path('tools', name).write_text(STAND_IN)
    monkeypatch.setattr(launchers_module, 'tool_path', lambda name: f'tools/{name}')
    Path('config.py').write_text('train_cfg = dict(max_epochs=2)\nlr = 0.1\n')

    def make(name, asked='', **kwargs):
        Path('asked', name).write_text(asked)
        return Cell(name, 'config.py', Path('runs', name), **kwargs)

    return make


def called(cell):
    lines = Path(cell.work_dir, 'called').read_text().splitlines()
    return [json.loads(line) for line in lines]


def words(cells, **kwargs):
    return [outcome.word for outcome in run_cells(cells, **kwargs).values()]


def checkpoint(cell, epoch):
    """Say that the newest checkpoint is that of an epoch."""
    Path(cell.work_dir, 'last_checkpoint').write_text(f'/elsewhere/epoch_{epoch}.pth')


def interrupt(cell, epoch):
    """What a training leaves that was interrupted after an epoch."""
    run_cells([cell])
    for log in Path(cell.work_dir).glob('*/vis_data/scalars.json'):
        log.write_text(json.dumps({'coco/bbox_mAP': 0.3, 'step': 1}))
    checkpoint(cell, epoch)
    record = Path(cell.work_dir, 'record.json')
    content = json.loads(record.read_text())
    del content['ended']
    record.write_text(json.dumps(content))


def test_a_cell_leaves_a_record_and_is_skipped_then(cell, capsys):
    a = cell('a', "Path(folder, 'measured.json').write_text('[1]')")
    seen = []
    assert words([a], on_record=lambda *args: seen.append(args)) == ['ok']
    record = read_record(a.work_dir)
    assert seen == [(a, record)]
    assert record['name'] == 'a'
    settings = {'train_cfg.max_epochs': 2, 'lr': 0.1}
    assert record['settings'] == {**settings, '--ranks': 1, '--auto-scale-lr': False}
    assert record['metrics'] == {'coco/bbox_mAP': 0.4}
    assert record['evaluations'] == [
        {'step': 1, 'coco/bbox_mAP': 0.4},
        {'step': 2, 'coco/bbox_mAP': 0.4},
    ]
    assert (record['unit'], record['step'], record['measured']) == ('epoch', 2, [1])
    assert record['seconds'] > 0 and set(record['versions']) > {'torch', 'mmdet'}
    out = capsys.readouterr().out
    assert '[1/1] a: not begun, starting; log: runs/a/run.log\n' in out
    last = r'\[1/1\] a: ok in 0:\d\d:\d\d, coco/bbox_mAP 0.400\nruns: 1 ok\n$'
    assert re.search(last, out)

    again = words([a], on_record=lambda *args: seen.append(args))
    assert again == ['finished before']
    assert seen[1] == seen[0] and len(called(a)) == 1


def test_an_interrupted_cell_goes_on(cell):
    a = cell('a', auto_scale_lr=True)
    interrupt(a, 1)
    begun = read_record(a.work_dir)
    assert state(a) == 'after epoch 1 of 2'
    assert words([a]) == ['ok']
    assert called(a)[1] == [
        *('train.py', 'config.py', '--work-dir', 'runs/a'),
        *('--auto-scale-lr', '--resume'),
    ]
    record = read_record(a.work_dir)
    assert record['begun'] == begun['begun']
    assert record['seconds'] > begun['seconds']


def test_a_trained_cell_is_evaluated(cell):
    a = cell('a')
    interrupt(a, 2)
    assert state(a) == 'not evaluated'
    assert words([a]) == ['ok']
    arguments = ['config.py', 'runs/a/epoch_2.pth', '--work-dir', 'runs/a']
    assert called(a)[1] == ['test.py', *arguments]
    record = read_record(a.work_dir)
    assert record['metrics'] == {'coco/bbox_mAP': 0.4}
    assert record['evaluations'] == [{'step': 1, 'coco/bbox_mAP': 0.3}]


def test_a_failure_stops_only_the_cells_that_need_it(cell, capsys):
    a, b = cell('a', "sys.exit('asked to\\nfail')"), cell('b', 'os.abort()')
    c, d = cell('c', after=['a']), cell('d')
    gone = replace(cell('gone'), config='gone.py')
    assert words([a, b, c, gone, d]) == ['failed', 'failed', 'left out', 'failed', 'ok']
    out = capsys.readouterr().out
    assert 'a: failed: exit status 1; it says:\n    asked to\n    fail\n' in out
    assert '[2/5] b: failed: killed by SIGABRT; it says:\n' in out
    assert '[3/5] c: left out: a: failed\n' in out
    assert '[4/5] gone: failed: FileNotFoundError' in out
    assert 'runs: 3 failed, 1 left out, 1 ok\n  failed: a\n  failed: b\n' in out
    assert read_record(a.work_dir).get('ended') is None

    cell('a')
    assert words([a, c, d]) == ['ok', 'ok', 'finished before']


def test_a_cell_without_its_last_evaluation_has_failed(cell, capsys):
    a = cell('a', "print('the results are empty'); sys.exit()")
    assert words([a]) == ['failed']
    out = capsys.readouterr().out
    assert ': it ended without a checkpoint; it says:\n    the results are em' in out


def test_commands_follow_the_training_until_their_files_are_there(cell):
    script = "import sys; from pathlib import Path; Path('made').write_text('x')"
    fails = (sys.executable, '-c', 'raise SystemExit(3)')
    a = cell('a', makes=[Path('made')], then=[fails])
    assert words([a]) == ['failed']
    assert state(a) == 'without made'
    a = replace(a, then=[(sys.executable, '-c', script)])
    assert words([a]) == ['ok']
    assert len(called(a)) == 1
    assert words([a]) == ['finished before']


def test_several_cells_run_at_a_time(cell, monkeypatch):
    """Two cells wait for each other; the third needs both."""
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    meet = (
        "Path(folder.name).write_text(os.environ['OMP_NUM_THREADS'])\n"
        "while not (Path('a').exists() and Path('b').exists()): time.sleep(0.05)\n"
    )
    cells = [cell('a', meet), cell('b', meet), cell('c', after=['a', 'b'])]
    assert words(cells, launch=Launch(jobs=2)) == ['ok', 'ok', 'ok']
    assert Path('a').read_text() == '1'


def test_a_cell_that_another_process_runs_is_left_to_it(cell):
    a = cell('a')
    with lock_folder(a.work_dir, '.runner.lock'):
        assert words([a, cell('b', after=['a'])]) == [
            'run by another process',
            'left out',
        ]
    assert not Path(a.work_dir, 'called').exists()


def test_other_settings_are_not_mixed(cell, capsys):
    a = cell('a')
    interrupt(a, 1)
    assert words([a], launch=Launch('torchrun', 4)) == ['failed']
    assert 'has begun with other settings (--ranks: 1 to 4): go' in (
        capsys.readouterr().out
    )
    # A finished cell may have had any number of ranks, but not another config.
    run_cells([a])
    assert words([a], launch=Launch('torchrun', 4)) == ['finished before']
    Path('config.py').write_text('train_cfg = dict(max_epochs=2)\nlr = 0.2\n')
    assert words([a]) == ['failed']
    assert 'lr: 0.1 to 0.2' in capsys.readouterr().out
    assert len(called(a)) == 2


def test_settings_may_change_until_something_is_trained(cell):
    a = cell('a', "sys.exit('asked to fail')")
    assert words([a]) == ['failed']
    cell('a')
    Path('config.py').write_text('train_cfg = dict(max_epochs=2)\nlr = 0.2\n')
    assert words([a]) == ['ok']
    assert read_record(a.work_dir)['settings']['lr'] == 0.2


def test_a_training_that_another_command_began_is_not_continued(cell, capsys):
    a = cell('a')
    Path(a.work_dir).mkdir(parents=True)
    checkpoint(a, 1)
    assert words([a]) == ['failed']
    assert 'holds a training that another command began' in capsys.readouterr().out
    # A finished training is used as it is.
    log = Path(a.work_dir, '20260101_000000', 'vis_data', 'scalars.json')
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({'coco/bbox_mAP': 0.3, 'step': 2}))
    checkpoint(a, 2)
    assert words([a]) == ['finished before']
    assert read_record(a.work_dir)['metrics'] == {'coco/bbox_mAP': 0.3}


def test_names_folders_and_order_are_checked(cell):
    a, b = cell('a'), cell('b', after=['a'])
    for cells in ([a, a], [a, replace(b, work_dir='runs/../runs/a')]):
        with pytest.raises(ValueError, match='two cells are named'):
            run_cells(cells)
    with pytest.raises(ValueError, match='b needs a, which is not before it'):
        run_cells([b, a])
    assert not Path('runs').exists()


def test_a_plan_shows_the_commands_and_writes_nothing(cell):
    then = (('publish', 'x y'),)
    a = cell('a', env={'DATA': '/my data/'}, then=then, makes=[Path('made')])
    lines = plan([a], Launch('torchrun', 4)).splitlines()
    assert lines[0] == '# a: not begun'
    assert shlex.split(lines[1]) == [
        *('DATA=/my data/', sys.executable, '-m', 'torch.distributed.run'),
        *('--standalone', '--nproc_per_node=4', 'tools/train.py', 'config.py'),
        *('--work-dir', 'runs/a', '--resume', '--launcher', 'pytorch'),
    ]
    assert shlex.split(lines[2]) == ['DATA=/my data/', 'publish', 'x y']
    assert not Path('runs').exists()
    run_cells([replace(a, then=(), makes=[])])
    assert plan([a]).splitlines() == ['# a: without made', lines[2]]


def test_each_slot_has_gpus_of_its_own(cell, monkeypatch):
    def visible(slot, **launch):
        return environment(a, Launch(**launch), slot)['CUDA_VISIBLE_DEVICES']

    a = cell('a')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3,5,7')
    assert [visible(slot, jobs=4) for slot in range(4)] == ['2', '3', '5', '7']
    assert [visible(slot, ranks=2, jobs=2) for slot in range(2)] == ['2,3', '5,7']
    assert [visible(slot, jobs=8) for slot in (3, 4)] == ['7', '2']
    assert visible(0, jobs=1) == '2,3,5,7'
    assert visible(0, jobs=4, launcher='slurm') == '2,3,5,7'


def test_slurm_gets_one_job_a_cell_and_none_twice(cell, tmp_path, monkeypatch, capsys):
    # Stand-ins: a queue with one cell in it, and commands that note their arguments.
    waiting, a = cell('waiting'), cell('a', then=[('publish', 'x y')], makes=['made'])
    b = cell('b', after=['a', 'waiting'])
    elsewhere = replace(a, work_dir='elsewhere/a')
    note = '#!/bin/sh\nfor i in "$@"; do echo "$i"; done > NAME.called\n'
    queue = f'echo {job_name(waiting)} 7; echo {job_name(elsewhere)} 8'
    scripts = {
        'squeue': f'#!/bin/sh\n{queue}\n',
        'sbatch': note.replace('NAME', '$SLURM_NOTE') + 'echo "9;cluster"',
        'srun': note.replace('NAME', 'srun') + 'echo $MASTER_PORT > port',
        'publish': note.replace('NAME', 'publish'),
    }
    Path('bin').mkdir()
    for name, text in scripts.items():
        Path('bin', name).write_text(text)
        Path('bin', name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
    monkeypatch.setenv('GPUS_PER_NODE', '2')
    launch = Launch('slurm', ranks=4, partition='gpu')
    cells = [replace(c, env={'SLURM_NOTE': c.name}) for c in (waiting, a, b)]
    assert words(cells, launch=launch) == ['in the queue', 'submitted', 'submitted']
    assert capsys.readouterr().out.endswith('runs: 1 in the queue, 2 submitted\n')
    options = Path('a.called').read_text().splitlines()
    assert options[:-1] == [
        *('--parsable', f'--job-name={job_name(a)}', '--ntasks=4'),
        *('--ntasks-per-node=2', '--gres=gpu:2', '--cpus-per-task=5'),
        *('--output=runs/a/run.log', '--open-mode=append', '--partition=gpu'),
    ]
    assert '--dependency=afterok:9:7' in Path('b.called').read_text().splitlines()
    # What the job does when its turn comes.
    env = {**os.environ, 'SLURM_JOB_ID': '1234567'}
    script = options[-1].removeprefix('--wrap=')
    subprocess.run(['sh', '-c', script], env=env, check=True)
    assert Path('port').read_text() == f'{20000 + 1234567 % 20000}\n'
    assert Path('srun.called').read_text().splitlines() == [
        *('--cpus-per-task=5', '--kill-on-bad-exit=1', sys.executable, '-u'),
        *('tools/train.py', 'config.py', '--work-dir', 'runs/a', '--resume'),
        *('--launcher', 'slurm'),
    ]
    assert Path('publish.called').read_text() == 'x y\n'

    # The record is completed by the call that finds the job's results.
    subprocess.run([sys.executable, 'tools/train.py', '--work-dir', 'runs/b'])
    Path('bin', 'squeue').write_text('#!/bin/sh\n')
    Path('bin', 'squeue').chmod(0o755)
    assert words([replace(b, after=())], launch=launch) == ['finished before']
    record = read_record(b.work_dir)
    assert record['step'] == 2 and record['settings']['--ranks'] == 4

    Path('bin', 'squeue').write_text('#!/bin/sh\nexit 1\n')
    with pytest.raises(OSError, match=r'squeue .* failed'):
        run_cells(cells, launch)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(OSError, match='squeue is not found'):
        run_cells(cells, launch)
    lines = plan([*cells[:2], replace(b, work_dir='new')], launch).splitlines()
    assert 'squeue is not found' in lines[0]
    assert 'afterok:JOB_OF_a:JOB_OF_waiting' in lines[-1]
    monkeypatch.setenv('GPUS_PER_NODE', 'x')
    with pytest.raises(ValueError, match="GPUS_PER_NODE='x'"):
        plan(cells, launch)


SLEEPS = """
import subprocess
child = subprocess.Popen([sys.executable, '-S', '-c', 'input()'], stdin=-1)
Path(folder.name + '.pids').write_text(f'{os.getpid()} {child.pid} ')
time.sleep(600)
"""


def pids():
    """Of two running cells and of their children, four in all."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        text = ' '.join(file.read_text() for file in sorted(Path().glob('*.pids')))
        if len(text.split()) == 4:
            return [int(pid) for pid in text.split()]
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_ends_the_running_cells(cell, capsys, number):
    cells = [cell(name, SLEEPS) for name in 'abc']
    handler = signal.getsignal(number)
    found = []

    def send():
        found.extend(pids())
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, Launch(jobs=2))
    sender.join()
    assert all(map(gone, found))
    out = capsys.readouterr().out
    assert (
        'interrupted; to go on, give the same command again\nruns: none has ended\n'
        in out
    )
    assert '[3/3]' not in out
    assert read_record('runs/a')['seconds'] > 0
    assert signal.getsignal(number) is handler


@pytest.mark.skipif(sys.platform != 'linux', reason='the Linux kernel ends them')
def test_cells_end_with_a_killed_process(cell):
    cells = [cell(name, SLEEPS) for name in 'ab']
    runner = os.fork()
    if not runner:
        run_cells(cells, Launch(jobs=2))
        os._exit(0)
    a, child_of_a, b, child_of_b = pids()
    os.kill(runner, signal.SIGKILL)
    os.waitpid(runner, 0)
    assert gone(a) and gone(b)
    for pid in (child_of_a, child_of_b):  # train.py ends its own
        os.kill(pid, signal.SIGKILL)


def gone(pid):
    for _ in range(100):
        try:
            text = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
        except FileNotFoundError:
            return True
        if text == 'Z':  # ended, and not waited for
            return True
        time.sleep(0.05)
    return False
