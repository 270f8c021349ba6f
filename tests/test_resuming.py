"""Checkpoints of a training: what is refused, what a kill leaves, and resuming."""

import copy
import errno
import functools
import math
import operator
import os
import random
import re
import shutil
import signal
import time

import mmengine
import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner as MMEngineRunner
from tiny_training import Network, Score, run

from prm_mmdet import compat
from prm_mmdet.launch import RunError, TestRunner, TrainRunner, run_tool
from prm_mmdet.launch.resuming import find_checkpoint, read_run_id, write_run_id


def weights(path):
    return torch.load(path, weights_only=True)['state_dict']


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, workers):
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    torch.manual_seed(0)
    more = dict(workers=workers, randomness=dict(seed=1))
    model = Network()
    run(whole, 3, copy.deepcopy(model), **more).train()
    run(cut, 1, model, **more).train()
    random.seed(5), torch.manual_seed(5)
    run(cut, 3, resume_from=cut / 'epoch_1.pth', **more).train()
    expected, found = weights(whole / 'epoch_3.pth'), weights(cut / 'epoch_3.pth')
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_killed_training_goes_on(tmp_path):
    training = os.fork()
    if not training:
        try:
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork.
            run(tmp_path, 10**6).train()
        finally:
            os._exit(1)
    deadline = time.monotonic() + 180
    while not (tmp_path / 'epoch_2.pth').exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(training, signal.SIGKILL)
    os.waitpid(training, 0)
    newest = find_checkpoint(str(tmp_path), str(tmp_path))
    epochs = int(re.search(r'epoch_(\d+)', newest)[1])
    assert epochs >= 1
    run(tmp_path, epochs + 1, resume_from=newest).train()
    saved = weights(tmp_path / f'epoch_{epochs + 1}.pth')
    assert all(value.isfinite().all() for value in saved.values())


def test_any_weights_only_loader_reads_what_a_training_saves(tmp_path):
    run(tmp_path, 1).train()
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    finally:
        torch.serialization.add_safe_globals(before)
    assert saved['message_hub']['log_scalars']['train/loss']['history'].numel() == 2
    runner = run(tmp_path, 2, resume_from=tmp_path / 'epoch_1.pth')
    runner.train()
    history = runner.message_hub.get_scalar('train/loss')
    assert isinstance(history, HistoryBuffer) and len(history.data[0]) == 4


def test_resuming_executes_nothing_and_removes_only_own_files(tmp_path):
    work = tmp_path / 'work'
    hook = dict(save_best='acc', rule='greater')
    run(work, 1, hook=hook).train()
    saved = torch.load(work / 'epoch_1.pth', weights_only=True)
    marker, victim = tmp_path / 'ran', tmp_path / 'victim'
    saved['meta']['config'] = f'open({str(marker)!r}, "w")\n'
    victim.mkdir()
    saved['message_hub']['runtime_info']['best_ckpt'] = str(victim)
    torch.save(saved, work / 'epoch_1.pth')
    run(work, 2, hook=hook, resume_from=work / 'epoch_1.pth').train()
    assert (work / 'epoch_2.pth').exists()
    assert not marker.exists() and victim.exists()


def test_a_kill_while_the_best_checkpoint_is_written_leaves_the_older_one(
    tmp_path, monkeypatch
):
    hook = dict(save_best='acc', rule='greater', max_keep_ckpts=1)
    torch_save, fail = torch.save, []

    def save(checkpoint, file, *args, **kwargs):
        names = [path.name for path in tmp_path.glob('best_*.pth')]
        if names and Score.calls > fail[0] + 1:
            raise KeyboardInterrupt
        return torch_save(checkpoint, file, *args, **kwargs)

    fail.append(Score.calls)
    monkeypatch.setattr(torch, 'save', save)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 3, hook=hook).train()
    assert [p.name for p in tmp_path.glob('best_*.pth')] == ['best_acc_epoch_1.pth']
    assert [p.name for p in tmp_path.glob('epoch_*')] == ['epoch_2.pth']


def test_a_validation_that_was_cut_off_runs_on_resuming(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Score, 'compute_metrics', _interrupt)
        run(tmp_path, 1).train()
    calls = Score.calls
    for _ in range(2):
        run(tmp_path, 1, resume_from=tmp_path / 'epoch_1.pth').train()
        assert Score.calls == calls + 1


def _interrupt(*_):
    raise KeyboardInterrupt


def test_a_training_that_diverges_stops_and_saves_nothing_more(tmp_path):
    run(tmp_path, 1).train()
    runner = run(tmp_path, 9, resume_from=tmp_path / 'epoch_1.pth')
    forward = runner.model.forward

    def broken(inputs, mode='tensor'):
        out = forward(inputs, mode)
        return dict(loss=out['loss'] * float('nan')) if mode == 'loss' else out

    runner.model.forward = broken
    with pytest.raises(RunError, match=r'became nan at iteration 3 .*epoch_1\.pth'):
        runner.train()
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == ['epoch_1.pth']


def test_a_full_disk_leaves_no_cut_file(tmp_path, monkeypatch):
    def full(self, obj, path):
        with open(path, 'wb') as file:
            file.write(obj[:100])
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(mmengine.fileio.LocalBackend, 'put', full)
    with pytest.raises(
        RunError, match=r'epoch_1\.pth cannot be written: No space.*MiB'
    ):
        run(tmp_path, 1).train()
    assert not list(tmp_path.glob('*.pth*'))


def _tester(folder, model=None):
    return TestRunner(
        model=model or Network(),
        work_dir=str(folder),
        experiment_name=f'test_{random.random()}',
        cfg=Config(dict()),
    )


def _without(state, part):
    return {key: value for key, value in state.items() if not key.startswith(part)}


@pytest.mark.parametrize(
    'state',
    [
        {'foo': torch.ones(1)},
        {},
        {'foo': 1},
        _without(Network().state_dict(), 'head'),
        dict(Network().state_dict(), more=torch.ones(1)),
        Network(classes=3).state_dict(),
        {k: v * float('nan') for k, v in Network().state_dict().items()},
    ],
)
def test_wrong_weights_are_refused(tmp_path, state):
    torch.save(dict(state_dict=state), tmp_path / 'c.pth')
    with pytest.raises(RunError, match=r'c\.pth'):
        _tester(tmp_path).load_checkpoint(str(tmp_path / 'c.pth'))


def test_a_training_may_start_without_blocks_and_with_other_classes(tmp_path):
    path, model = str(tmp_path / 'c.pth'), Network(block=True)
    other = Network(classes=80).state_dict()
    torch.save(other, path)
    run(tmp_path, 1, model).load_checkpoint(path)
    assert torch.equal(model.body.weight, other['body.weight'])
    with pytest.raises(RunError, match='missing'):
        _tester(tmp_path, Network(block=True)).load_checkpoint(path)
    torch.save(_without(Network().state_dict(), 'body'), path)
    with pytest.raises(RunError, match='body'):
        run(tmp_path, 1).load_checkpoint(path)
    torch.save(Network().state_dict(), path)
    model = Network()
    model.neck = ConvModule(4, 4, 1)  # a layer of MMCV, and no plugin
    with pytest.raises(RunError, match='neck'):
        run(tmp_path, 1, model).load_checkpoint(path)
    runner = run(tmp_path, 1, model)
    runner.allow_partial = True
    runner.load_checkpoint(path)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained') / 'work'
    run(folder, 3).train()
    return folder


@pytest.fixture
def work(trained, tmp_path):
    """A copy of a work dir after three epochs."""
    return shutil.copytree(trained, tmp_path / 'copy')


MISFITS = {
    'iter': (
        ('meta', 'iter'),
        2**70,
        'is damaged: its epoch is 3, and its iteration 11',
    ),
    'optimizer': (('meta', 'optimizer'), 'Adam', 'is Adam, and SGD in this training'),
    'NaN': (('optimizer', 'param_groups', 0, 'lr'), math.nan, 'groups.0.lr is nan'),
    'rate': (('optimizer', 'param_groups', 0, 'lr'), 'fast', 'groups.0.lr is .fast'),
    'option': (('optimizer', 'param_groups', 0, 'nesterov'), [], '0.nesterov is'),
    'groups': (('optimizer', 'param_groups'), [], 'param_groups has 0 entries'),
    'shape': (('optimizer', 'state', 0, 'momentum_buffer'), torch.ones(3), 'shape'),
    'number': (('param_schedulers',), [], 'param_schedulers has 0 entries'),
    'kind': (('param_schedulers', 0, 'gamma'), 0.1, 'of another type: it has gamma'),
    'list': (('param_schedulers', 0), [1], 'param_schedulers.0 is'),
    'step': (('param_schedulers', 0, 'last_step'), None, 'last_step is None'),
    'random': (('random_states', 0), dict(python=1), 'KeyError|TypeError'),
}


@pytest.mark.parametrize('case', MISFITS)
def test_a_state_that_does_not_fit_is_named(trained, tmp_path, case):
    (*keys, last), value, message = MISFITS[case]
    checkpoint = torch.load(trained / 'epoch_3.pth', weights_only=True)
    functools.reduce(operator.getitem, keys, checkpoint)[last] = value
    path = tmp_path / 'c.pth'
    torch.save(checkpoint, path)
    with pytest.raises(RunError, match=rf'c\.pth .*({message}).* load_from='):
        run(tmp_path, 4, resume_from=path).train()


def test_a_one_cycle_schedule_resumes(tmp_path):
    # Its state has a function, which no checkpoint can hold.
    cycle = dict(type='OneCycleLR', eta_max=0.1, total_steps=2, by_epoch=True)
    for epochs, path in ((1, None), (2, tmp_path / 'epoch_1.pth')):
        run(tmp_path, epochs, resume_from=path, param_scheduler=[cycle]).train()


def _damage(path, kind):
    content = path.read_bytes()
    if kind == 'gone':
        path.unlink()
    elif kind == 'folder':
        path.unlink()
        path.mkdir()
    elif kind == 'flipped':
        weight = weights(path)['head.cls.weight'].numpy().tobytes()
        at = content.index(weight) + 3
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    else:
        cut = dict(empty=0, cut=len(content) // 2, zeroed=0)[kind]
        zeros = len(content) if kind == 'zeroed' else 0
        path.write_bytes(content[:cut] + bytes(zeros))


@pytest.mark.parametrize(
    'kind', ['empty', 'cut', 'zeroed', 'flipped', 'gone', 'folder']
)
def test_a_damaged_newest_checkpoint_costs_one_epoch(work, kind):
    _damage(work / 'epoch_3.pth', kind)
    found = find_checkpoint(str(work), str(work))
    assert found == str(work / 'epoch_2.pth')
    assert not (work / 'epoch_3.pth').exists()
    assert (work / 'epoch_3.pth.damaged').exists() == (kind != 'gone')


@pytest.mark.parametrize('content', [None, b'', b'\xff\xfe\x00', b'nonsense'])
def test_a_damaged_pointer_costs_nothing(work, content):
    pointer = work / 'last_checkpoint'
    pointer.unlink() if content is None else pointer.write_bytes(content)
    assert find_checkpoint(str(work), str(work)) == str(work / 'epoch_3.pth')


def test_a_copied_work_dir_continues_from_its_own_file(trained, work, tmp_path):
    assert (work / 'last_checkpoint').read_text() == str(trained / 'epoch_3.pth')
    assert find_checkpoint(str(work), str(work)) == str(work / 'epoch_3.pth')
    for path in work.glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(RunError, match='no whole checkpoint'):
        find_checkpoint(str(work), str(work))
    assert find_checkpoint(str(tmp_path / 'new'), str(tmp_path / 'new')) is None


def test_resume_without_a_checkpoint_keeps_load_from(trained, tmp_path, monkeypatch):
    started, loads_weights_only = [], []

    def from_cfg(cls, cfg):
        started.append(cfg)
        raise RunError('stop here')

    monkeypatch.setattr(MMEngineRunner, 'from_cfg', classmethod(from_cfg))
    called = functools.partial(loads_weights_only.append, True)
    monkeypatch.setattr(compat, 'load_weights_only', called)
    monkeypatch.setattr(TrainRunner, 'auto_resume', False)
    (tmp_path / 'mine.py').write_text('load_from = "weights.pth"\n')
    work = tmp_path / 'copy'
    command = ['train.py', str(tmp_path / 'mine.py'), '--work-dir', str(work)]
    monkeypatch.setattr('sys.argv', [*command, '--resume'])
    with pytest.raises(SystemExit, match='stop here'):
        run_tool('train.py')
    assert (started[0].load_from, started[0].resume) == ('weights.pth', False)
    assert loads_weights_only
    assert read_run_id(str(work))
    (work / '.run_id').unlink()
    shutil.copytree(trained, work, dirs_exist_ok=True)
    with pytest.raises(SystemExit, match='stop here'):
        run_tool('train.py')
    newest = str(work / 'epoch_3.pth')
    assert (started[1].load_from, started[1].resume) == (newest, True)


def test_a_training_that_saved_nothing_does_not_continue_an_earlier_one(tmp_path):
    runner = run(tmp_path, 1)
    runner.run_id = 'a' * 32
    runner.train()
    work, newest = str(tmp_path), str(tmp_path / 'epoch_1.pth')
    assert find_checkpoint(work, work) == newest
    write_run_id(work, 'b' * 32)  # as a new training does before its first checkpoint
    with pytest.raises(RunError, match=re.escape(f'--resume {newest}')):
        find_checkpoint(work, work)
    # The earlier training goes on where the user asks for it.
    runner = run(tmp_path, 2, resume_from=newest)
    runner.train()
    assert read_run_id(work) == runner.run_id == 'a' * 32
    assert find_checkpoint(work, work) == str(tmp_path / 'epoch_2.pth')


def test_checkpoints_without_a_mark_are_continued(trained, tmp_path):
    newest = str(trained / 'epoch_3.pth')
    write_run_id(str(tmp_path), 'b' * 32)
    run(tmp_path, 4, resume_from=newest).train()
    assert read_run_id(str(tmp_path)) is None
    assert find_checkpoint(str(tmp_path), str(tmp_path)).endswith('epoch_4.pth')
