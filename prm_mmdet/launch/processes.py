"""Let the processes of a run (ranks and data workers) end when their parent ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any, Callable

# Option of Linux's prctl(): send this process a signal when its parent ends.
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == 'linux' else None


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Let the kernel end this process when its parent ends or is killed.

    Otherwise, data workers of a killed training would stay alive and wait forever. On
    systems other than Linux, this function does nothing.

    Args:
        parent: Process id of the parent. If the parent has already ended, this process
            ends at once.
        number: Number of the signal that ends this process. Default: SIGKILL.
    """
    if _prctl is None:
        return
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_torchrun() -> None:
    """If ``torchrun`` started this rank, let the rank end when ``torchrun`` ends."""
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        end_with_parent(os.getppid())


@dataclass
class StartWorker:
    """Function that each worker of a data loader calls when the worker starts.

    The function lets the worker end when the worker's parent process ends.

    Args:
        function: The loader's own ``worker_init_fn``. Each worker calls it afterwards.
            Default: None, there is no such function.
        quiet: Whether warnings are hidden in all workers except the first.
            Default: False.
        parent: Process id of the workers' parent. Default: this process.
    """

    function: Callable[[int], Any] | None = None
    quiet: bool = False
    parent: int | None = field(default_factory=os.getpid)

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is not forked gets a pickled copy of this object. The parent of
        # such a worker can be another process, such as Python's fork server. So the
        # copy contains no parent id, and the worker asks the system for this id.
        return {**self.__dict__, 'parent': None}

    def __call__(self, worker: int) -> None:
        end_with_parent(self.parent or os.getppid())
        if self.quiet and worker:
            warnings.simplefilter('ignore')
        if self.function is not None:
            self.function(worker)


def rank() -> int:
    """Return this process's rank from the environment, even before a process group
    exists. The rank is 0 if no launcher has set it."""
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        with contextlib.suppress(KeyError, ValueError):
            return int(os.environ[name])
    return 0
