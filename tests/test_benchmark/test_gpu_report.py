"""tools/gpu_report.py, as far as it can be tested without a GPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f'tools/{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def report(monkeypatch):
    monkeypatch.delitem(sys.modules, 'gpu_report', raising=False)
    module = load('gpu_report')
    yield module
    del sys.modules['gpu_report']


def test_without_a_gpu_it_says_what_is_missing(report, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert report.main(['--out', str(tmp_path / 'out')]) == 2
    assert 'finds no CUDA device' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
    monkeypatch.setattr(report, 'MODULES', ('torch', 'no_such_module'))
    assert report.main([]) == 2
    assert 'pip install no_such_module' in capsys.readouterr().err


def test_parts_that_pass_fail_and_take_too_long(report, monkeypatch, capsys, tmp_path):
    def part(name, code, seconds=60, records=None):
        return report.Part(name, [sys.executable, '-c', code], seconds, records)

    ratio = dict(median=1.5, low=1.4, high=1.6)
    record = {
        'block': 'PRM',
        'stage': 'c2',
        'pass': 'step',
        'seconds': {'ours': [2e-3, 2e-3]},
        'ratios': {'plain': ratio, 'plain, compiled': ratio, 'x * gate': ratio},
        'floor': dict(ratio, median=1.9),
        'copy_bandwidth': 2e12,
        'memory': {'ours': 5e6},
    }
    records = tmp_path / 'records.json'
    content = json.dumps(dict(settings=dict(dtype='float16'), records=[record]))
    # The benchmark writes what it has when it is interrupted.
    slow = (
        'import time\n'
        'try: time.sleep(99)\n'
        f'except KeyboardInterrupt: open({str(records)!r}, "w").write({content!r})'
    )
    stages = [
        [part('good', 'print("3 passed")'), part('bad', 'raise SystemExit("oh")')],
        [report.Part('sanitizer', [''], 60)],
        [part('slow', slow, 2, records)],
    ]
    monkeypatch.setattr(report, 'missing', lambda: None)
    monkeypatch.setattr(report, 'machine', lambda: dict(device='a device'))
    monkeypatch.setattr(report, 'stages', lambda *_: stages)
    out = tmp_path / 'out'
    assert report.main(['--out', str(out)]) == 1
    text = (out / 'report.txt').read_text()
    assert text in capsys.readouterr().out
    found = json.loads((out / 'report.json').read_text())
    assert found['machine'] == dict(device='a device')
    outcomes = {p['name']: (p['outcome'], p['note']) for p in found['parts']}
    assert outcomes['good'] == ('passed', '3 passed')
    assert outcomes['bad'] == ('failed', 'oh')
    assert outcomes['sanitizer'][0] == 'not installed'
    assert outcomes['slow'][0] == 'ran out of time'
    (row,) = [line for line in text.splitlines() if line.startswith('PRM c2')]
    assert 'float16 step' in row and row.endswith('floors, compiled')
    assert not list(out.glob('*.tmp'))

    # With no time left, nothing is started.
    assert report.main(['--out', str(out), '--minutes', '0']) == 1
    found = json.loads((out / 'report.json').read_text())
    assert {p['note'] for p in found['parts']} == {'no time was left'}


def test_the_benchmark_takes_its_commands(report, monkeypatch, tmp_path):
    benchmark = load('benchmark')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    parts = [part for stage in report.stages(tmp_path, 2) for part in stage]
    commands = [p for p in parts if 'tools/benchmark.py' in p.command]
    assert len(commands) == 6
    for part in commands:
        monkeypatch.setattr(sys, 'argv', part.command[1:])
        args = benchmark.parse_args()
        assert args.level == 'op' and Path(args.json) == part.records
    names = [p.name for p in parts]
    assert 'tests, test_on_cuda' in names and len(names) == len(set(names))
