"""The Triton kernels compile for GPUs, also on a machine without one."""

import os
from pathlib import Path

import pytest

pytest.importorskip('triton')
ROOT = Path(__file__).parents[2]


def test_kernels_compile_for_a_gpu(run_python, tmp_path):
    env = {**os.environ, 'TRITON_CACHE_DIR': str(tmp_path), 'TRITON_INTERPRET': '0'}
    env['PYTHONPATH'] = os.pathsep.join([str(ROOT), env.get('PYTHONPATH', '')])
    script = Path(__file__).with_name('compile_triton_kernels.py')
    compiled = [
        tuple(line.split()[:2])
        for line in run_python(script, env=env).stdout.splitlines()
    ]
    names = (
        '_find_query _measure_score _write_output _forward_kernel _sum_logits '
        '_differentiate_targets _write_gradient _backward_kernel _sum_kernel '
        '_scale_kernel _gate_kernel _gate_gradient_kernel'
    )
    assert {(name, '90') for name in names.split()} <= set(compiled)
    assert ('_backward_kernel', '80') in compiled
