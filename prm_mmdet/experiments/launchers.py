"""Command lines that train and evaluate cells (the runs of an experiment): locally,
under torchrun or by Slurm."""

from __future__ import annotations

import getpass
import os
import shlex
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import config_path
from .cells import Cell, Progress


@dataclass(frozen=True)
class Launch:
    """How an experiment is run. Its runs, each a training and its evaluation, are
    called cells."""

    # What starts the processes of a run: 'torchrun' or 'slurm'. With 'none', each run
    # is a single process.
    launcher: str = 'none'
    ranks: int = 1  # Number of processes of a run. Each process uses one GPU.
    # Partition for Slurm's jobs. If it is None, Slurm uses the cluster's default.
    partition: str | None = None
    # Largest number of runs at the same time on this machine. If the launcher is
    # 'slurm', Slurm decides when its jobs run.
    jobs: int = 1


def tool_path(name: str) -> str:
    """Path of a tool, such as 'train.py', in a checkout or in an installed wheel."""
    configs = Path(config_path('_base_/default_runtime.py')).parents[1]
    return str(configs.parent / 'tools' / name)


def commands(cell: Cell, progress: Progress, launch: Launch) -> list[list[str]]:
    """The commands that finish a cell (one run of an experiment) if Slurm is not used.
    They are in the order in which they must run."""
    follow_up = [list(command) for command in cell.then]
    if progress.evaluated:
        return follow_up
    task = _task(cell, progress)
    if launch.launcher == 'torchrun':
        ranks = f'--nproc_per_node={launch.ranks}'
        start = ['-m', 'torch.distributed.run', '--standalone', ranks]
        task = [sys.executable, *start, *task, '--launcher', 'pytorch']
    else:
        task = [sys.executable, '-u', *task]
    return [task, *follow_up]


def _task(cell: Cell, progress: Progress) -> list[str]:
    if progress.reached and progress.reached == progress.steps:
        # The training has ended, so train.py would do nothing. Therefore test.py
        # evaluates the last checkpoint.
        name = f'{"epoch" if progress.unit == "epoch" else "iter"}_{progress.reached}'
        checkpoint = str(Path(cell.work_dir, f'{name}.pth'))
        task = [tool_path('test.py'), cell.config, checkpoint]
        return [*task, '--work-dir', str(cell.work_dir)]
    task = [tool_path('train.py'), cell.config, '--work-dir', str(cell.work_dir)]
    if cell.auto_scale_lr:
        task.append('--auto-scale-lr')
    # If Slurm requeues a job, it repeats the same command. So the command always has
    # --resume. If there is no checkpoint, --resume starts the training.
    return [*task, '--resume']


def job_name(cell: Cell) -> str:
    """Name of the Slurm job of a cell (one run of an experiment): the cell's name, and
    a checksum of the path of its work dir."""
    mark = zlib.crc32(str(Path(cell.work_dir).absolute()).encode())
    return f'{cell.name}-{mark:08x}'


def sbatch(
    cell: Cell, progress: Progress, launch: Launch, after: Sequence[str] = ()
) -> list[str]:
    """The command that submits a cell (one run of an experiment) to Slurm.

    The environment variable ``GPUS_PER_NODE`` limits the processes on a node (default
    8). ``CPUS_PER_TASK`` is the number of CPU cores of each process (default 5).

    Args:
        cell: The cell.
        progress: Progress of the cell.
        launch: How cells are run, with the number of ranks and the partition.
        after: Ids of the Slurm jobs that must succeed before this job starts.

    Raises:
        ValueError: ``GPUS_PER_NODE`` is not a number above 0.
    """
    gpus = os.environ.get('GPUS_PER_NODE', '8')
    if not gpus.isdecimal() or gpus == '0':
        raise ValueError(f'GPUS_PER_NODE={gpus!r} is not a number above 0')
    per_node = min(launch.ranks, int(gpus))
    cpus = f'--cpus-per-task={os.environ.get("CPUS_PER_TASK", 5)}'
    script = [shlex.join(command) for command in cell.then]
    if not progress.evaluated:
        task = [sys.executable, '-u', *_task(cell, progress), '--launcher', 'slurm']
        # Jobs that share a node must not use the same port. So the port depends on the
        # id of the job.
        port = 'MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))'
        srun = shlex.join(['srun', cpus, '--kill-on-bad-exit=1', *task])
        script.insert(0, f'{port} {srun}')
    command = ['sbatch', '--parsable', f'--job-name={job_name(cell)}']
    command += [f'--ntasks={launch.ranks}', f'--ntasks-per-node={per_node}']
    command += [f'--gres=gpu:{per_node}', cpus]
    command += [f'--output={cell.log}', '--open-mode=append']
    if launch.partition:
        command.append(f'--partition={launch.partition}')
    if after:
        command.append(f'--dependency=afterok:{":".join(after)}')
        command.append('--kill-on-invalid-dep=yes')
    return [*command, f'--wrap={" && ".join(script)}']


def queued_jobs(launch: Launch) -> dict[str, str]:
    """Ids of the user's waiting and running Slurm jobs, by name. If Slurm is not the
    launcher, the dict is empty.

    Raises:
        OSError: ``squeue`` is missing or fails.
    """
    if launch.launcher != 'slurm':
        return {}
    command = ['squeue', '--noheader', '--format=%j %i', '--user', getpass.getuser()]
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise OSError(
            'squeue is not found: run this command on a machine with Slurm'
        ) from None
    if result.returncode:
        raise OSError(f'"{shlex.join(command)}" failed')
    return dict(line.split() for line in result.stdout.splitlines() if line.strip())


def environment(cell: Cell, launch: Launch, slot: int = 0) -> dict[str, str]:
    """Environment variables for the processes of a cell (one run of an experiment).

    If several cells run at the same time on this machine, each process has one thread,
    unless ``OMP_NUM_THREADS`` is set. Slurm chooses the GPUs of its own jobs.

    Args:
        cell: The cell.
        launch: How cells are run.
        slot: A number from 0, different for all cells that run at the same time. It
            selects the GPUs. If the machine has a GPU for each process, no two of these
            cells share a GPU.
    """
    env = {**os.environ, **cell.env}
    if launch.jobs == 1 or launch.launcher == 'slurm':
        return env
    env.setdefault('OMP_NUM_THREADS', '1')
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    gpus = visible.split(',') if visible else range(torch.cuda.device_count())
    if len(gpus) > launch.ranks:
        first = slot * launch.ranks
        own = [gpus[(first + i) % len(gpus)] for i in range(launch.ranks)]
        env['CUDA_VISIBLE_DEVICES'] = ','.join(map(str, own))
    return env
