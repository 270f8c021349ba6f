"""Checkpoint files that are not what they should be, and writing."""

import argparse
import errno
import io
import os
import pathlib

import pytest
import torch
from mmengine.logging import HistoryBuffer

from prm_mmdet.files.checkpoints import (
    CheckpointError,
    compare_keys,
    read_checkpoint,
    read_state_dict,
    write_checkpoint,
)

STATE = {'conv.weight': torch.arange(1000.0), 'conv.bias': torch.ones(3)}


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: dict(epoch=3, state_dict=s)])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_a_state_dict_bare_or_wrapped(tmp_path, wrap, prefix):
    torch.save(wrap({prefix + k: v for k, v in STATE.items()}), tmp_path / 'c.pth')
    state = read_state_dict(tmp_path / 'c.pth')
    assert list(state) == list(STATE)
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)


def test_one_module_of_that_name_keeps_it(tmp_path):
    torch.save({'module.weight': STATE['conv.bias'], **STATE}, tmp_path / 'c.pth')
    assert 'module.weight' in read_state_dict(tmp_path / 'c.pth')


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('kept', [0, 0.02, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, kept, zipped):
    path = tmp_path / 'c.pth'
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=r'c\.pth is damaged'):
        read_state_dict(path)


def test_damage_that_torch_does_not_see_is_refused(tmp_path):
    path = tmp_path / 'c.pth'
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    at = content.index(STATE['conv.weight'].numpy().tobytes()) + 4 * 500 + 3
    content[at] ^= 0x20  # an exponent's bit
    path.write_bytes(content)
    changed = torch.load(path, weights_only=True)['conv.weight']
    assert changed[500] != 500 and changed.isfinite().all()
    with pytest.raises(ValueError, match=r'c\.pth is damaged: the checksum of .*data/'):
        read_checkpoint(path)
    torch.save(STATE, path)  # the file's time or size tells that it is another one
    os.utime(path, (1, 1))
    read_checkpoint(path)


def test_keys_that_differ():
    model = dict(STATE, **{'bn.num_batches_tracked': torch.tensor(0)})
    assert not compare_keys(STATE, model)
    found = compare_keys({'conv.weight': torch.ones(2), 'x': torch.ones(1)}, model)
    assert found.missing == ['conv.bias'] and found.unknown == ['x']
    assert found.misshapen == ['conv.weight']
    assert str(found) == (
        '1 missing (conv.bias); 1 unknown to the model (x); 1 of another shape '
        '(conv.weight)'
    )


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_file_does_not_run_and_is_named(tmp_path, zipped):
    path, made = tmp_path / 'c.pth', tmp_path / 'made'
    for content, named in (
        (Runs(pathlib.Path.mkdir, made), r'more than weights: .*pathlib\.Path'),
        (Runs(os.system, 'true'), r': Trying .* GLOBAL posix\.system .* blocked\. '),
        (argparse.Namespace(), r': Unsupported .* GLOBAL argparse\.Namespace was '),
    ):
        torch.save(dict(STATE, x=content), path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=named):
            read_state_dict(path)
    assert not made.exists()


def test_a_missing_file_is_named_with_a_cure(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r'c\.pth is no file; name a checkpoint'
    ):
        read_checkpoint(tmp_path / 'c.pth')


@pytest.mark.parametrize(
    'content',
    [b'', b'hello', b'<!DOCTYPE html>', b'version https://git-lfs'],
)
def test_files_that_are_no_checkpoint(tmp_path, content):
    (tmp_path / 'c.pth').write_bytes(content)
    with pytest.raises(ValueError, match=r'not what torch\.save writes\. If'):
        read_state_dict(tmp_path / 'c.pth')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (torch.ones(3), 'holds no state dict, but a Tensor'),
        ({}, 'state dict is empty'),
        (dict(state_dict={}, ema_state_dict=STATE), 'state dict is empty'),
        (dict(model=STATE), "'model' is no .* dict; save what it holds under state_d"),
        (dict(state_dict=[STATE]), 'holds no state dict, but a list'),
        (dict(epoch=3, **STATE), "'epoch' is no weight, but a int"),
        (dict(w=torch.tensor([1, float('nan')])), 'not finite.* w'),
        (dict(w=torch.eye(2).to_sparse()), "'w' is a sparse"),
        ({0: torch.ones(3)}, '0 is no weight'),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / 'c.pth')
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / 'c.pth')


def test_the_source_is_not_overwritten(tmp_path):
    source = tmp_path / 'c.pth'
    torch.save(STATE, source)
    (tmp_path / 'link.pth').symlink_to(source)
    before = source.read_bytes()
    roundabout = tmp_path / '..' / tmp_path.name / 'c.pth'
    for path in (source, tmp_path / 'link.pth', roundabout):
        with pytest.raises(ValueError, match='name another one'):
            write_checkpoint({}, path, source)
    assert source.read_bytes() == before


def test_what_cannot_be_written_is_an_os_error(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    for path in (tmp_path, tmp_path / 'file' / 'c.pth'):
        with pytest.raises(OSError):
            write_checkpoint(STATE, path, 'c.pth')
    before = list(tmp_path.iterdir())

    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() > 1000:
                raise OSError(errno.ENOSPC, 'No space left on device')
            return super().write(data)

    monkeypatch.setattr('builtins.open', lambda *_: Full())
    with pytest.raises(OSError, match='No space left'):
        write_checkpoint(STATE, tmp_path / 'c.pth', 'c.pth')
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == before


def test_a_training_checkpoint_is_read_after_permission_was_taken_back(tmp_path):
    # As onedl-mmengine's loading functions leave it.
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(dict(state_dict=dict(w=torch.ones(2)), loss=history), tmp_path / 'a.pth')
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        assert read_checkpoint(tmp_path / 'a.pth')['loss'].current() == 2
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


INDEX = torch.tensor([10**6])
REBUILD = torch._utils._rebuild_sparse_tensor


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
    'layout, tensors',
    [
        (torch.sparse_coo, (INDEX[None], torch.ones(1), (2,), False)),
        (torch.sparse_csr, (torch.arange(2), INDEX, torch.ones(1), (1, 2), False)),
    ],
)
def test_indices_outside_a_sparse_tensor_are_refused(tmp_path, layout, tensors, zipped):
    path = tmp_path / 'a.pth'
    sparse = Runs(REBUILD, layout, tensors)
    torch.save(dict(w=sparse), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r'a\.pth is damaged'):
        read_checkpoint(path)
    assert not torch.sparse.check_sparse_tensor_invariants.is_enabled()
    whole = torch.eye(3).to_sparse()
    torch.save(dict(w=whole), path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_checkpoint(path)['w'].to_dense(), torch.eye(3))
