"""Test and measure the operators on an NVIDIA GPU, and write a report.

Requires Python, CUDA, PyTorch, Triton, NumPy, pytest and hypothesis, and nothing of
OpenMMLab. Run it from a clone of the repository. --minutes limits its running time.

The report is written to the folder --out after each part. report.json has all numbers,
and report.txt has the tables. The output of each part is in a log of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODULES = ('torch', 'triton', 'numpy', 'pytest', 'hypothesis')
PASSED, FAILED, LATE, ABSENT = 'passed', 'failed', 'ran out of time', 'not installed'
# Limit for the time of a pass, such as backward: a multiple of the time to copy the
# bytes that the pass must read and write.
BAR = 1.8
# An interrupted part writes its results. If it runs on for this many seconds, it is
# killed.
_GRACE = 15
_processes: set[subprocess.Popen[bytes]] = set()

# A forward and a backward pass of PRM and LCT, small enough for compute-sanitizer. With
# one sample, several programs of a PRM kernel share the work on a group of channels.
SMALL_CASE = """
import torch
from prm_mmdet import ops
for batch in (1, 4):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(batch, 64, 37, 53, device='cuda', dtype=dtype).requires_grad_()
        g = [torch.randn(64, device='cuda', requires_grad=True) for _ in range(4)]
        theta = torch.rand(2, device='cuda', requires_grad=True)
        sigma = torch.ones((), device='cuda', requires_grad=True)
        ops.prm(x, *g, theta, sigma).float().sum().backward()
        ops.lct(x, g[0], g[1], 8).float().sum().backward()
torch.cuda.synchronize()
"""


@dataclass(frozen=True)
class Part:
    """A part of the report, which runs as a process of its own."""

    name: str  # name of the part and of its log
    command: Sequence[str]  # program ('' if it is not installed) and arguments
    seconds: float  # the longest time that the part may take
    records: Path | None = None  # file that tools/benchmark.py writes


@dataclass
class Result:
    """The result of a part."""

    name: str
    outcome: str
    seconds: float
    note: str = ''
    records: list[dict[str, Any]] = field(default_factory=list)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/gpu_report'),
        help='folder of the report (default: %(default)s)',
    )
    parser.add_argument(
        '--minutes',
        type=float,
        default=9.0,
        help='longest time of the whole report (default: %(default)s)',
    )
    parser.add_argument(
        '--batch', type=int, default=2, help='images of the maps (default: %(default)s)'
    )
    return parser.parse_args(arguments)


def missing() -> str | None:
    """A message that says what this machine lacks. None if nothing is missing."""
    absent = [name for name in MODULES if find_spec(name) is None]
    if absent:
        return f'{", ".join(absent)} cannot be imported: pip install {" ".join(absent)}'
    import torch

    if not torch.cuda.is_available():
        return (
            f'PyTorch {torch.__version__} finds no CUDA device. Run this on a machine '
            'with an NVIDIA GPU and its driver, and with a PyTorch built for CUDA'
        )
    return None


def machine() -> dict[str, str]:
    """Device, driver and versions."""
    import torch
    import triton

    from prm_mmdet.benchmark.measure import environment

    device = torch.cuda.get_device_properties(0)
    query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30)
        driver = found.stdout.split('\n')[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = ''
    return dict(
        environment(torch.device('cuda')),
        capability=f'{device.major}.{device.minor}',
        multiprocessors=str(device.multi_processor_count),
        memory=f'{device.total_memory / 2**30:.0f} GiB',
        driver=driver or 'unknown',
        triton=triton.__version__,
    )


def stages(out: Path, batch: int) -> Iterator[list[Part]]:
    """Lists of parts, the most important first. A list's parts run at the same time."""
    python = sys.executable
    # Each file of tests runs in a process of its own. So Triton compiles the kernels of
    # several files in parallel.
    pytest = [python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider']
    files = sorted((ROOT / 'tests/test_ops').glob('test_*.py'))
    yield [Part(f'tests, {f.stem}', [*pytest, str(f)], 240) for f in files]

    sanitizer = shutil.which('compute-sanitizer') or ''
    options = ['--error-exitcode=1', '--launch-timeout=120']
    yield [Part('sanitizer', [sanitizer, *options, python, '-c', SMALL_CASE], 75)]

    benchmark = [python, 'tools/benchmark.py', 'op', '--device=cuda', '--rounds=7']
    benchmark.append(f'--batch={batch}')
    for dtype in ('float32', 'bfloat16', 'float16'):
        records = out / f'costs-{dtype}.json'
        command = [*benchmark, f'--dtype={dtype}', '--no-compile', f'--json={records}']
        yield [Part(f'costs, {dtype}', command, 45, records)]
    # Compilation takes most of the time, so each block is a part with a time limit.
    for block in ('PRM', 'LCT', 'SAC'):
        records = out / f'compiled-{block}.json'
        command = [*benchmark, f'--blocks={block}', f'--json={records}']
        yield [Part(f'compiled, {block}', command, 100, records)]


def run(stage: Sequence[Part], out: Path, seconds: float) -> list[Result]:
    """Run parts at the same time, each for at most the given time."""
    with ThreadPoolExecutor(len(stage)) as pool:
        try:
            return list(pool.map(lambda part: _run(part, out, seconds), stage))
        except BaseException:
            # On Ctrl-C, too, end the processes of the parts.
            for process in _processes:
                _end(process)
            raise


def _run(part: Part, out: Path, seconds: float) -> Result:
    """Run a part. Its output goes to a log."""
    if not part.command[0]:
        return Result(part.name, ABSENT, 0.0, 'left out: it is not on the PATH')
    for file in (part.records, _log(part, out)):
        if file:
            file.unlink(missing_ok=True)
    begin = time.monotonic()
    paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    with open(_log(part, out), 'w', encoding='utf-8') as log:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _processes.add(process)
        try:
            status = process.wait(min(seconds, part.seconds))
            outcome = FAILED if status else PASSED
        except subprocess.TimeoutExpired:
            # Interrupt the process, so that the benchmark writes its results so far.
            _end(process)
            outcome = LATE
    taken = round(time.monotonic() - begin, 1)
    return Result(part.name, outcome, taken, _last_line(part, out), _records(part))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process and its children, and kill them if they do not end."""
    if process.poll() is not None:
        return
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _log(part: Part, out: Path) -> Path:
    return out / f'{re.sub("[^a-zA-Z0-9]+", "-", part.name)}.log'


def _last_line(part: Part, out: Path) -> str:
    text = _log(part, out).read_text(encoding='utf-8', errors='replace')
    lines = [line.strip(' =') for line in text.splitlines() if line.strip(' =')]
    return lines[-1] if lines else ''


def _records(part: Part) -> list[dict[str, Any]]:
    if part.records is None or not part.records.is_file():
        return []
    found = json.loads(part.records.read_text(encoding='utf-8'))
    dtype = found['settings']['dtype']
    return [dict(record, dtype=dtype) for record in found['records']]


def text_of(conditions: Mapping[str, str], results: Sequence[Result]) -> str:
    """The report as text: conditions, outcomes, and a table of all costs."""
    from prm_mmdet.benchmark import block_costs, cost_tables

    lines = [f'{key}: {value}' for key, value in conditions.items()]
    rows = [['part', 'outcome', 'seconds']]
    rows += [[r.name, r.outcome, f'{r.seconds:.0f}'] for r in results]
    lines += ['', cost_tables.columns(rows)]
    lines += [f'{r.name}: {r.note}' for r in results if r.note] + ['']
    records = [record for r in results for record in r.records]
    compiled = block_costs.PLAIN + block_costs.COMPILED
    rows = [['block, map, dtype, pass', 'ms', 'floors', 'GB/s of copy', 'MB']]
    rows[0] += ['ours / x*gate', 'ours / plain', 'ours / compiled', 'misses']
    for record in records:
        ratios, ours = record['ratios'], record['seconds'][block_costs.OURS]
        rows.append(
            [
                ' '.join(record[key] for key in ('block', 'stage', 'dtype', 'pass')),
                cost_tables.milliseconds(ours),
                f'{record["floor"]["median"]:.2f}',
                f'{record["copy_bandwidth"] / 1e9:.0f}',
                f'{record["memory"][block_costs.OURS] / 1e6:.0f}',
                cost_tables.spread(ratios.get(block_costs.LIMIT)),
                cost_tables.spread(ratios.get(block_costs.PLAIN)),
                cost_tables.spread(ratios.get(compiled)),
                ', '.join(misses(record)),
            ]
        )
    if records:
        lines += [
            cost_tables.columns(rows),
            'floors: time / time to copy the bytes that the pass must read and write.',
            f'misses: floors above {BAR} for PRM and LCT on c2 to c4; slower than the',
            'plain form under torch.compile.',
            '',
        ]
    return '\n'.join(lines)


def misses(record: Mapping[str, Any]) -> list[str]:
    """Names of the cost limits that a record exceeds. ``tools/benchmark.py op`` writes
    the records."""
    found = []
    gates = record['block'] in ('PRM', 'LCT') and record['stage'] != 'c5'
    if gates and record['floor']['median'] > BAR:
        found.append('floors')
    compiled = record['ratios'].get('plain, compiled')
    if compiled and compiled['median'] > 1:
        found.append('compiled')
    return found


def write(out: Path, conditions: Mapping[str, str], results: Sequence[Result]) -> str:
    """Write report.json and report.txt, whole or not at all. Returns the text."""
    from prm_mmdet.files.atomic import write_file

    report = dict(
        command=' '.join(sys.argv),
        machine=dict(conditions),
        parts=[asdict(result) for result in results],
    )
    text = text_of(conditions, results)
    write_file(out / 'report.json', json.dumps(report, indent=1) + '\n')
    write_file(out / 'report.txt', text)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    problem = missing()
    if problem:
        print(f'error: {problem}', file=sys.stderr)
        return 2
    out = args.out.resolve()
    end = time.monotonic() + 60 * args.minutes
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f'error: --out {args.out}: {error.strerror}', file=sys.stderr)
        return 2
    conditions = machine()
    results: list[Result] = []
    text = ''
    for stage in stages(out, args.batch):
        seconds = end - time.monotonic() - 2 * _GRACE
        names = ', '.join(part.name for part in stage)
        print(f'{names}: {seconds:.0f} s are left', file=sys.stderr, flush=True)
        if seconds < 10:
            note = 'no time was left'
            results += [Result(part.name, LATE, 0.0, note) for part in stage]
        else:
            results += run(stage, out, seconds)
        text = write(out, conditions, results)
    print(text)
    print(f'wrote {out}/report.json and report.txt')
    return int(any(result.outcome in (FAILED, LATE) for result in results))


if __name__ == '__main__':
    sys.exit(main())
