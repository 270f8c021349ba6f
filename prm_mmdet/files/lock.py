"""Lock a folder, so that only one process at a time writes to it."""

import os
from pathlib import Path
from typing import Union

import filelock


class FolderInUseError(OSError):
    """Another process has locked a folder. The message says what to do."""


def lock_folder(
    folder: Union[str, Path], name: str = '.lock'
) -> filelock.AcquireReturnProxy:
    """Lock a folder, so that no second run writes to it.

    The lock is released at the end of the ``with`` block. If the process is killed
    earlier, the operating system releases the lock::

        with lock_folder(work_dir):
            ...

    Args:
        folder: The folder to lock. A missing folder is made.
        name: Name of the lock's file. Locks of different names do not conflict. So the
            runner of experiments and the training that it starts can lock the same
            folder.

    Returns:
        The lock, which is already acquired. It is released at the end of a ``with``
        block, and when the object is deleted.

    Raises:
        FolderInUseError: This process or another one has locked the folder already,
            with a lock of the same name.
        OSError: The folder cannot be written.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    try:
        return filelock.FileLock(path).acquire(timeout=0)
    except filelock.Timeout:
        raise FolderInUseError(
            f'{folder} is in use by another run, which holds {path}. Wait for that run '
            'to end, or give another folder'
        ) from None
