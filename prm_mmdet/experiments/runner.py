"""Finish each run of an experiment once, even if the command is repeated."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import BinaryIO

from ..files.lock import FolderInUseError, lock_folder
from ..launch.processes import end_with_parent
from .cells import Cell, Progress, progress
from .launchers import Launch, commands, environment, job_name, queued_jobs, sbatch
from .logs import reason_of_failure
from .records import begin_record, finish_record, read_record, write_record

# If a process has not ended this many seconds after SIGTERM, it is killed. torchrun
# needs up to half of this time to end its ranks.
_GRACE = 60
#: If a run has one of these outcomes, other runs that need its result can start.
WELL = ('ok', 'finished before', 'submitted', 'in the queue')


@dataclass(frozen=True)
class Outcome:
    """The outcome of a cell (a run of an experiment) in a call of :func:`run_cells`."""

    # One of the good outcomes in ``WELL`` (such as 'ok'), or 'failed', 'run by another
    # process' or 'left out'. If a cell has no good outcome, cells that need it are left
    # out.
    word: str
    reason: str = ''  # why the cell failed or was left out


def run_cells(
    cells: Sequence[Cell],
    launch: Launch | None = None,
    on_record: Callable[[Cell, dict], None] = lambda cell, record: None,
) -> dict[str, Outcome]:
    """Run the cells (runs) of an experiment that are not finished, or submit them to
    Slurm.

    A finished cell is skipped. An interrupted cell continues from its last checkpoint.
    A cell that was trained but not evaluated is evaluated. If a cell fails, only the
    cells that need it are left out. Ctrl-C, SIGTERM and SIGHUP end the running cells.
    The same call continues them later. On Linux, running cells end with this process,
    even if it is killed.

    Args:
        cells: The cells. Each cell comes after the cells that it needs.
        launch: How cells are run. Default: one at a time, each in one process.
        on_record: Called with each finished cell and its record, even if the cell was
            finished before this call.

    Returns:
        The outcome of each cell, by name.

    Raises:
        KeyboardInterrupt: The run was interrupted, and all processes have ended.
        OSError: Slurm is the launcher, and ``squeue`` is missing or fails.
        ValueError: Two cells have the same name or work dir, or a cell needs a cell
            that does not come before it.
    """
    _check(cells)
    launch = launch or Launch()
    experiment = _Experiment(cells, launch, on_record, queued_jobs(launch))
    with _interruptible():
        try:
            experiment.run()
        except KeyboardInterrupt:
            _say('interrupted; to go on, give the same command again')
            raise
        finally:
            experiment.summarise()
    return experiment.outcomes


def plan(cells: Sequence[Cell], launch: Launch | None = None) -> str:
    """The commands that :func:`run_cells` would run with the same arguments, as shell
    text with comments."""
    _check(cells)
    launch = launch or Launch()
    lines, jobs = [], {}
    try:
        jobs = queued_jobs(launch)
    except OSError as error:
        # If squeue fails, the plan assumes that no run is in Slurm's queue.
        lines.append(f'# {error}')
    for cell in cells:
        found = progress(cell)
        queued = job_name(cell) in jobs
        lines.append(f'# {cell.name}: {"in the queue" if queued else found}')
        if not found.finished and not queued:
            tasks = commands(cell, found, launch)
            if launch.launcher == 'slurm':
                tasks = [
                    sbatch(cell, found, launch, [f'JOB_OF_{n}' for n in cell.after])
                ]
            env = [f'{name}={shlex.quote(value)}' for name, value in cell.env.items()]
            lines += [' '.join([*env, shlex.join(task)]) for task in tasks]
    return '\n'.join(lines) + '\n'


def _check(cells: Sequence[Cell]) -> None:
    names: set[str] = set()
    folders: set[Path] = set()
    for cell in cells:
        folder = Path(cell.work_dir).resolve()
        if cell.name in names or folder in folders:
            raise ValueError(f'two cells are named {cell.name} or use {folder}')
        for name in cell.after:
            if name not in names:
                raise ValueError(f'{cell.name} needs {name}, which is not before it')
        names.add(cell.name)
        folders.add(folder)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does."""
    before = {}
    # Python can set signal handlers in the main thread only. In other threads, the
    # handlers do not change.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            # nohup lets a process ignore SIGHUP, so that it survives a logout. Such a
            # process must go on ignoring SIGHUP.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_Steps = Generator[None, None, Outcome]


@dataclass
class _Experiment:
    """The state of :func:`run_cells`.

    Each running cell (run of the experiment) has a generator. The generator yields
    while it waits for a process, and returns the cell's outcome. If the generator is
    closed, it ends the process and releases the lock of the cell's work dir.
    """

    cells: Sequence[Cell]
    launch: Launch
    on_record: Callable[[Cell, dict], None]
    # Ids of the user's waiting and running Slurm jobs, by name of the job.
    queue: dict[str, str]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    # Ids of the Slurm jobs that run the cells, by name of the cell.
    jobs: dict[str, str] = field(default_factory=dict)
    # The processes that run now. The key is a number from 0. It selects the GPUs.
    processes: dict[int, subprocess.Popen] = field(default_factory=dict)
    # Durations, in seconds, of the runs that this call finished.
    seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        waiting = list(self.cells)
        running: dict[Cell, _Steps] = {}
        try:
            while waiting or running:
                for cell in list(waiting):
                    # Wait until all runs that this run needs have an outcome. If one of
                    # them has failed, ``_run`` will leave this run out.
                    ready = self.outcomes.keys() >= {*cell.after}
                    if ready and len(running) < self.launch.jobs:
                        waiting.remove(cell)
                        running[cell] = self._run(cell)
                settled = len(self.outcomes)
                for cell, steps in list(running.items()):
                    if self._settle(cell, steps):
                        del running[cell]
                if settled == len(self.outcomes):
                    time.sleep(0.1)
        finally:
            for process in self.processes.values():
                _signal_group(process, signal.SIGTERM)
            for steps in running.values():
                steps.close()

    def summarise(self) -> None:
        words = [outcome.word for outcome in self.outcomes.values()]
        counts = [f'{words.count(word)} {word}' for word in dict.fromkeys(words)]
        _say(f'runs: {", ".join(counts) or "none has ended"}')
        for name, outcome in self.outcomes.items():
            if outcome.word not in WELL:
                _say(f'  {outcome.word}: {name}')

    def _tell(self, cell: Cell, text: str) -> None:
        number = self.cells.index(cell) + 1
        _say(f'[{number}/{len(self.cells)}] {cell.name}: {text}')

    def _settle(self, cell: Cell, steps: _Steps) -> bool:
        """Continue a run's generator until the generator waits again or ends. Return
        whether it has ended."""
        try:
            next(steps)
            return False
        except StopIteration as stop:
            outcome = stop.value
        except FolderInUseError:
            outcome = Outcome('run by another process')
        except Exception as error:  # An error of one run must not stop other runs.
            text = ''.join(traceback.format_exception_only(type(error), error))
            outcome = Outcome('failed', text.rstrip())
        self.outcomes[cell.name] = outcome
        # ``_run_here`` has already printed the outcome 'ok', together with the metric.
        if outcome.word != 'ok':
            self._tell(cell, outcome.word + (outcome.reason and f': {outcome.reason}'))
        return True

    def _run(self, cell: Cell) -> _Steps:
        for name in cell.after:
            if self.outcomes[name].word not in WELL:
                return Outcome('left out', f'{name}: {self.outcomes[name].word}')
        if job_name(cell) in self.queue:
            self.jobs[cell.name] = self.queue[job_name(cell)]
            return Outcome('in the queue')
        with lock_folder(cell.work_dir, '.runner.lock'):
            if cell.prepare:
                cell.prepare()
            found = progress(cell)
            # Before the first checkpoint, ``found.steps`` is 0. Until then, the user is
            # free to change the settings. So no earlier record is compared with them.
            earlier = read_record(cell.work_dir) if found.steps else None
            if not earlier and found.reached and not found.finished:
                raise ValueError(
                    f'{cell.work_dir} holds a training that another command began: '
                    'finish it with that command, or move the folder away'
                )
            ranks = self.launch.ranks
            # A finished run is recorded with the number of ranks that trained it, which
            # may differ from this command's number.
            if found.finished and earlier:
                ranks = earlier['settings']['--ranks']
            record = begin_record(cell, ranks, earlier)
            if found.finished:
                # If a Slurm job or another command finished the run, its record has no
                # results yet. So the results are added now.
                if not earlier or 'ended' not in earlier:
                    earlier = finish_record(record, cell.work_dir)
                self.on_record(cell, earlier)
                return Outcome('finished before')
            write_record(record, cell.work_dir)
            self._tell(cell, f'{found}, starting; log: {cell.log}')
            if self.launch.launcher == 'slurm':
                return self._submit(cell, found)
            return (yield from self._run_here(cell, found, record))

    def _submit(self, cell: Cell, found: Progress) -> Outcome:
        after = [self.jobs[name] for name in cell.after if name in self.jobs]
        result = subprocess.run(
            sbatch(cell, found, self.launch, after),
            env=environment(cell, self.launch),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if result.returncode:
            return Outcome('failed', f'sbatch: {result.stdout.strip()}')
        self.jobs[cell.name] = result.stdout.strip().partition(';')[0]
        return Outcome('submitted')

    def _run_here(self, cell: Cell, found: Progress, record: dict) -> _Steps:
        since, earlier = time.monotonic(), record['seconds']
        with cell.log.open('ab') as log:
            begin, status = log.tell(), 0
            try:
                for command in commands(cell, found, self.launch):
                    log.write(f'\n{time.ctime()}: {shlex.join(command)}\n'.encode())
                    log.flush()
                    begin = log.tell()
                    status = yield from self._wait_for(cell, command, log)
                    if status:
                        break
            finally:
                seconds = time.monotonic() - since
                record['seconds'] = round(earlier + seconds, 1)
                write_record(record, cell.work_dir)
        found = progress(cell)
        if status or not found.finished:
            text = cell.log.read_bytes()[begin:].decode(errors='replace')
            what = f'exit status {status}' if status else f'it ended {found}'
            if status < 0:
                what = f'killed by {signal.Signals(-status).name}'
            return Outcome('failed', f'{what}; it says:\n{reason_of_failure(text)}')
        record = finish_record(record, cell.work_dir)
        self.seconds.append(seconds)
        name, value = next(iter(record['metrics'].items()))
        text = f'ok in {_duration(seconds)}, {name} {value:.3f}'
        left = len(self.cells) - len(self.outcomes) - 1
        if left:
            ahead = fmean(self.seconds) * left / min(left, self.launch.jobs)
            text += f'; about {_duration(ahead)} left'
        self._tell(cell, text)
        self.on_record(cell, record)
        return Outcome('ok')

    def _wait_for(
        self, cell: Cell, command: list[str], log: BinaryIO
    ) -> Generator[None, None, int]:
        """Wait for a command to end, and return its exit status."""
        slot = next(n for n in range(self.launch.jobs) if n not in self.processes)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(cell, self.launch, slot),
            # In a session of its own, the process does not get Ctrl-C. This program
            # gets Ctrl-C, and then ends the processes of all runs.
            start_new_session=True,
            preexec_fn=functools.partial(end_with_parent, os.getpid(), signal.SIGTERM),
        )
        self.processes[slot] = process
        try:
            while process.poll() is None:
                yield
            return process.returncode
        finally:
            del self.processes[slot]
            try:
                _signal_group(process, signal.SIGTERM)
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                pass
            finally:
                # If the process crashed, its child processes may still run. So kill
                # all processes of its group.
                _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _say(text: str) -> None:
    # Without flush, the text would arrive late if the output goes into a pipe.
    print(text, flush=True)
