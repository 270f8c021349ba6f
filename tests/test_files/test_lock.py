"""One process at a time in a folder."""

import subprocess
import sys

import pytest

from prm_mmdet.files.lock import FolderInUseError, lock_folder

HOLDER = """
import sys, time
from prm_mmdet.files.lock import lock_folder
held = lock_folder(sys.argv[1])
print('held', flush=True)
time.sleep(60)
"""


def test_a_folder_is_held_until_its_holder_ends(tmp_path):
    folder = tmp_path / 'work'
    holder = subprocess.Popen(
        [sys.executable, '-c', HOLDER, folder], stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b'held\n'
    with pytest.raises(FolderInUseError, match='work is in use by another run'):
        lock_folder(folder)
    holder.kill()
    holder.wait()
    with lock_folder(folder), pytest.raises(FolderInUseError):
        lock_folder(folder)
    lock_folder(folder)
