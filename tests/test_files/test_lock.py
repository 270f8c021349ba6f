"""One process at a time in a folder."""

import os
import signal

import pytest

from prm_mmdet.files.lock import FolderInUseError, lock_folder


def test_a_folder_is_held_until_its_holder_ends(tmp_path):
    folder = tmp_path / 'work'
    reading, writing = os.pipe()
    holder = os.fork()
    if not holder:
        held = lock_folder(folder)
        os.write(writing, b'held')
        signal.pause()
        del held
    assert os.read(reading, 4) == b'held'
    with pytest.raises(FolderInUseError, match='work is in use by another run'):
        lock_folder(folder)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with lock_folder(folder), pytest.raises(FolderInUseError):
        lock_folder(folder)
    lock_folder(folder)
