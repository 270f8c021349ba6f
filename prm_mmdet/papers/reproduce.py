"""Running the rows of the papers' tables with this package's own train.py and test.py.

A row is a process of its own: one that fails, or crashes, stops no other.
"""

import fcntl
import fnmatch
import functools
import getpass
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import traceback
import zlib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Optional

from mmengine.config import Config

from ..config import config_path
from ..launch import check_data
from .smoke import write_smoke_config
from .table_report import measured
from .tables import TABLES

INTERRUPTED = 130  # exit status, as shells have it


@dataclass(frozen=True)
class Launch:
    """How rows are run.

    Args:
        work_dirs (str): Folder of the runs: one folder a config, as MMDetection names
            them. Smoke runs go to ``smoke`` in it. Default: 'work_dirs'.
        launcher (str): 'none', 'torchrun' or 'slurm'. Default: 'none'.
        ranks (int): Processes a row, one a GPU. Default: 1.
        partition (str, optional): Slurm's. Default: None, the cluster's own default.
        smoke (bool): Whether to run a few iterations on small images, from no weights.
            Default: False.
    """

    work_dirs: str = 'work_dirs'
    launcher: str = 'none'
    ranks: int = 1
    partition: Optional[str] = None
    smoke: bool = False

    @property
    def folder(self):
        return Path(self.work_dirs, 'smoke') if self.smoke else Path(self.work_dirs)


def choose(tables, patterns=()):
    """The configs of the tables' rows, each once, in the tables' order.

    Args:
        tables (Sequence[Table]): Of :data:`prm_mmdet.papers.TABLES`.
        patterns (Sequence[str]): Shell patterns; the stems of the configs must match
            one of them. Default: (), all rows.

    Raises:
        ValueError: A pattern matches no row; the message lists the rows there are.
    """
    configs = list(dict.fromkeys(row.config for t in tables for row in t.rows))
    stems = [Path(config).stem for config in configs]
    for pattern in patterns:
        if not fnmatch.filter(stems, pattern):
            known = '\n  '.join(stems)
            if pattern in {table.key for table in TABLES}:
                raise ValueError(f'{pattern} is a table: name tables before --rows')
            raise ValueError(f'no row matches {pattern!r}; there are\n  {known}')
    matching = {s for pattern in patterns for s in fnmatch.filter(stems, pattern)}
    return [c for c in configs if not patterns or Path(c).stem in matching]


class Run:
    """A row on its way: how far it has come, and the command that goes on.

    Args:
        config (str): Path below ``configs/``.
        launch (Launch): How it is run.
    """

    def __init__(self, config, launch):
        self.config = config
        self.launch = launch
        self.name = Path(config).stem
        self.folder = launch.folder / self.name
        self.log = self.folder / 'reproduce.log'

    @functools.cached_property
    def epochs(self):
        """int: Epochs of the whole training."""
        if self.launch.smoke:
            return 1
        return Config.fromfile(config_path(self.config)).train_cfg.max_epochs

    @property
    def reached(self):
        """int: Epoch of the last checkpoint, 0 if there is none."""
        # MMEngine writes this file once the checkpoint that it names is whole.
        pointer = self.folder / 'last_checkpoint'
        text = pointer.read_text(encoding='utf-8') if pointer.is_file() else ''
        found = re.search(r'epoch_(\d+)\.pth$', text.strip())
        return int(found.group(1)) if found else 0

    @property
    def state(self):
        """str: 'not begun', 'after epoch n of m', 'not evaluated' or 'finished'."""
        reached = self.reached
        if not reached:
            return 'not begun'
        if reached < self.epochs:
            return f'after epoch {reached} of {self.epochs}'
        last = measured(self.launch.folder, self.config)
        # An evaluation by test.py does not say of which epoch it is.
        done = last and last.get('epoch', reached) == reached
        return 'finished' if done else 'not evaluated'

    def command(self):
        """Command line that begins the row, or goes on with it, as a list."""
        launch = self.launch
        work_dir = ['--work-dir', str(self.folder)]
        if launch.smoke:
            config = str(launch.folder / f'{self.name}.py')
            task = ['train.py', config, *work_dir, '--auto-scale-lr']
        elif self.state == 'not evaluated':  # train.py would find nothing to do
            checkpoint = str(self.folder / f'epoch_{self.reached}.pth')
            task = ['test.py', config_path(self.config), checkpoint, *work_dir]
        else:
            # With no checkpoint --resume begins. It is always there for Slurm, which
            # runs the same command again when it has taken a job's machine away.
            task = ['train.py', config_path(self.config), *work_dir]
            task += ['--auto-scale-lr', '--resume']
        task[0] = str(_tools() / task[0])
        if launch.launcher == 'torchrun':
            ranks = f'--nproc_per_node={launch.ranks}'
            start = ['-m', 'torch.distributed.run', '--standalone', ranks]
            return [sys.executable, *start, *task, '--launcher', 'pytorch']
        task = [sys.executable, '-u', *task]
        if launch.launcher == 'slurm':
            return self._sbatch([*task, '--launcher', 'slurm'])
        return task

    @property
    def job(self):
        """str: Name of the row's Slurm job: the row's, and a mark of its folder."""
        mark = zlib.crc32(str(self.folder.absolute()).encode())
        return f'{self.name}-{mark:08x}'

    def _sbatch(self, task):
        # The variables of tools/slurm_train.sh; sbatch reads its own SBATCH_... too.
        per_node = os.environ.get('GPUS_PER_NODE', '8')
        if not per_node.isdecimal() or per_node == '0':
            raise ValueError(f'GPUS_PER_NODE={per_node!r} is not a number above 0')
        per_node = min(self.launch.ranks, int(per_node))
        cpus = f'--cpus-per-task={os.environ.get("CPUS_PER_TASK", 5)}'
        partition = self.launch.partition
        # Jobs that share a node must not meet at one port.
        port = 'MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))'
        task = shlex.join(['srun', cpus, '--kill-on-bad-exit=1', *task])
        return [
            *('sbatch', f'--job-name={self.job}', f'--ntasks={self.launch.ranks}'),
            *(f'--ntasks-per-node={per_node}', f'--gres=gpu:{per_node}', cpus),
            *(f'--output={self.log}', '--open-mode=append'),
            *([f'--partition={partition}'] if partition else []),
            f'--wrap={port} {task}',
        ]

    def to_skip(self, queued):
        """str: Why there is nothing to do; empty if there is."""
        if self.job in queued:
            return 'in the queue'
        return 'finished before' if self.state == 'finished' else ''

    def go(self):
        """Run the row, or submit it.

        Returns:
            tuple[str, str]: What came of it, 'ok', 'submitted', 'failed', 'finished
            before' or 'run by another process', and the reason of a failure.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open('ab') as log:
            # The row's processes inherit the lock with the file, and outlive this one.
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 'run by another process', ''
            except OSError:
                pass  # a file system without locks
            if self.state == 'finished':  # by another process, a moment ago
                return 'finished before', ''
            self._refuse_other_ranks()
            if self.launch.smoke:
                write_smoke_config(self.config, self.launch.folder, self.launch.ranks)
            command = self.command()
            log.write(f'\n{time.ctime()}: {shlex.join(command)}\n'.encode())
            log.flush()
            begin = log.tell()
            status = _wait_for(command, log)
        if status:
            return 'failed', f'{_in_words(status)}; it says:\n{self._end(begin)}'
        if self.launch.launcher == 'slurm':
            return 'submitted', ''
        if self.state != 'finished':
            return 'failed', f'it ended {self.state}; it says:\n{self._end(begin)}'
        return 'ok', ''

    def _refuse_other_ranks(self):
        """MMEngine resumes the learning rate too, which is that of so many ranks."""
        if not 0 < self.reached < self.epochs:
            return
        for log in sorted(self.folder.glob('*/*.log'), reverse=True):
            text = log.read_text(encoding='utf-8')
            ranks = re.search(r'GPU number: (\d+)', text)
            if ranks and 'Epoch(train)' in text:
                break
        else:
            return
        if int(ranks.group(1)) != self.launch.ranks:
            raise ValueError(
                f'its learning rate was set for another number of ranks: go on with '
                f'{ranks.group(1)}, or move {self.folder} away to begin anew'
            )

    def _end(self, begin):
        """What the row's process said at its end: the reason of a failure."""
        text = self.log.read_bytes()[begin:].decode(errors='replace')
        end = r'(?=^\[rank|^[EW]\d{4} |\Z)'  # torchrun and other ranks follow
        own_message = re.search(rf'^error: .*?{end}', text, re.M | re.S)
        first_to_fail = re.search(r'^(\[rank\d+\]: )Traceback', text, re.M)
        if own_message:
            lines = own_message.group().rstrip().splitlines()[:15]
        elif first_to_fail:  # below, other ranks complain that it is gone
            rank = first_to_fail.group(1)
            lines = [s for s in text.splitlines() if s.startswith(rank)][-15:]
        else:
            lines = text.rstrip().splitlines()[-15:]
        return '\n'.join(f'    {line}' for line in lines)


def run_rows(configs, launch):
    """Run rows one after another, or submit them, and say what comes of each.

    Args:
        configs (Sequence[str]): From :func:`choose`.
        launch (Launch): How.

    Returns:
        int: Exit status: 0, 1 if a row failed, or ``INTERRUPTED``.

    Raises:
        MissingInput: The data set is not there; nothing was started.
        OSError: Slurm was to be used, and cannot be asked for its queue.
    """
    runs = [Run(config, launch) for config in configs]
    queued = _queued(launch)
    _look_for_data(runs)
    results = {}
    try:
        for n, run in enumerate(runs, 1):
            results[run.name] = _run_row(run, f'[{n}/{len(runs)}] {run.name}:', queued)
        status = int('failed' in results.values())
    except KeyboardInterrupt:
        _say(f'{run.name}: interrupted; the same command goes on')
        status = INTERRUPTED
    values = list(results.values())
    counts = [f'{values.count(value)} {value}' for value in dict.fromkeys(values)]
    _say(f'rows: {", ".join(counts) or "none"}')
    for name in (name for name, result in results.items() if result == 'failed'):
        _say(f'  failed: {name}')
    return status


def _look_for_data(runs):
    """Raise MissingInput if a row is to be run and its data, one set for all detectors
    and one for all classifiers, are not there."""
    found = set()
    for run in runs:
        classifies = run.config.startswith('imagenet/')
        try:
            if classifies in found or run.state == 'finished':
                continue
            cfg = Config.fromfile(config_path(run.config))
        except Exception:  # said when it is the row's turn
            continue
        check_data(cfg, 'train', 'val', 'test')
        found.add(classifies)


def _run_row(run, title, queued):
    begun = None
    reason = ''
    try:
        result = run.to_skip(queued)
        if not result:
            _say(f'{title} {run.state}, starting; log: {run.log}')
            begun = time.monotonic()
            result, reason = run.go()
        if run.launch.smoke and run.state == 'finished':
            # The checkpoints of all rows would take tens of gigabytes.
            for checkpoint in run.folder.glob('*.pth'):
                checkpoint.unlink()
    except Exception as error:  # of any kind: the next row is another matter
        result = 'failed'
        reason = ''.join(traceback.format_exception_only(type(error), error)).rstrip()
    if begun is not None:
        title += f' {timedelta(seconds=round(time.monotonic() - begun))},'
    _say(f'{title} {result}' + (reason and f': {reason}'))
    return result


def dry_run(configs, launch):
    """What :func:`run_rows` would do, as text: comments and commands.

    Args:
        configs (Sequence[str]): From :func:`choose`.
        launch (Launch): How.
    """
    try:
        queued = _queued(launch)
    except OSError as error:  # the commands can be shown all the same
        queued, lines = (), [f'# {error}']
    else:
        lines = []
    for run in (Run(config, launch) for config in configs):
        lines.append(f'# {run.name}: {run.to_skip(queued) or run.state}')
        if not run.to_skip(queued):
            places = ('MMDET_DATASETS', 'IMAGENET')
            settings = [
                f'{name}={shlex.quote(os.environ[name])}'
                for name in places
                if os.environ.get(name)
            ]
            lines.append(' '.join([*settings, shlex.join(run.command())]))
    return '\n'.join(lines) + '\n'


def list_rows(tables, configs, launch):
    """The tables' rows that are among some configs, and how far each has come.

    Args:
        tables (Sequence[Table]): Of :data:`prm_mmdet.papers.TABLES`.
        configs (Sequence[str]): From :func:`choose`.
        launch (Launch): How they would be run.
    """
    lines = []
    for table in tables:
        runs = [Run(config, launch) for config in choose([table]) if config in configs]
        width = max((len(run.name) for run in runs), default=0)
        if runs:
            lines.append(f'{table.key}: {table.title}')
        lines += [f'  {run.name.ljust(width)}  {run.state}' for run in runs]
    return '\n'.join(lines) + '\n'


def _tools():
    """The folder of train.py and test.py: beside ``configs``, wherever that is."""
    return Path(config_path('prm/retinanet_r50_fpn_2x_coco.py')).parents[2] / 'tools'


def _queued(launch):
    """Names of the user's jobs that wait or run."""
    if launch.launcher != 'slurm':
        return ()
    command = ['squeue', '--noheader', '--format=%j', '--user', getpass.getuser()]
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise OSError('there is no Slurm here: squeue is not found') from None
    if result.returncode:
        raise OSError(f'"{shlex.join(command)}" failed')
    return result.stdout.split()


def _wait_for(command, log):
    """Run a command to its end: its exit status. An interruption ends it first."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # else Ctrl-C reached all its processes at once
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        # torchrun takes up to half a minute to end its ranks.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        raise


def _in_words(status):
    if status < 0:
        return f'killed by {signal.Signals(-status).name}'
    return f'exit status {status}'


def _say(text):
    print(text, flush=True)
