"""Which implementation runs."""

import pytest
import torch

from prm_mmdet import ops
from prm_mmdet.ops import backend as select
from prm_mmdet.ops import kernels, reference


class Input:
    """What a tensor says of itself; there may be no such device."""

    def __init__(self, device, dtype=torch.float32):
        self.device, self.dtype = torch.device(device), dtype
        self.is_cuda, self.is_meta = device == 'cuda', device == 'meta'


@pytest.mark.parametrize(
    'forced, device, dtype, expected',
    [
        ('', 'cpu', torch.float32, 'cpp'),
        ('', 'cpu', torch.float64, 'cpp'),
        ('', 'cpu', torch.float8_e5m2, 'torch'),
        ('torch', 'cpu', torch.float32, 'torch'),
        ('cpp', 'cpu', torch.bfloat16, 'cpp'),
        ('', 'cuda', torch.float32, 'triton'),
        ('', 'cuda', torch.bfloat16, 'triton'),
        ('', 'cuda', torch.float64, 'torch'),
        ('', 'meta', torch.float32, 'torch'),
        ('torch', 'cuda', torch.float32, 'torch'),
        ('reference', 'cuda', torch.float32, 'reference'),
        ('reference', 'meta', torch.float32, 'torch'),
        ('triton', 'cuda', torch.float64, 'triton'),
        ('triton', 'meta', torch.float32, 'torch'),
    ],
)
def test_choice(monkeypatch, forced, device, dtype, expected):
    monkeypatch.setenv('PRM_MMDET_BACKEND', forced)
    monkeypatch.setattr(select, '_HAS_TRITON', True)
    monkeypatch.setattr(select, 'LIBRARY', object())
    assert select.backend(Input(device, dtype)) == expected


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_without_kernels_torch_runs(monkeypatch, device):
    monkeypatch.delenv('PRM_MMDET_BACKEND', raising=False)
    monkeypatch.setattr(select, '_HAS_TRITON', False)
    monkeypatch.setattr(select, 'LIBRARY', None)
    assert select.backend(Input(device)) == 'torch'


@pytest.mark.parametrize(
    'forced, device, available, message',
    [
        ('triton', 'cuda', False, 'pip install triton'),
        ('triton', 'cpu', True, 'TRITON_INTERPRET=1'),
        ('cpp', 'cpu', False, 'were not compiled'),
        ('cpp', 'cuda', True, 'on cuda'),
    ],
)
def test_kernels_that_cannot_run(monkeypatch, forced, device, available, message):
    monkeypatch.setenv('PRM_MMDET_BACKEND', forced)
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    monkeypatch.setattr(select, '_HAS_TRITON', available)
    monkeypatch.setattr(select, 'LIBRARY', object() if available else None)
    monkeypatch.setattr(select, 'UNAVAILABLE', 'the CPU kernels were not compiled')
    with pytest.raises(RuntimeError, match=message):
        select.backend(Input(device))


def test_operator_without_kernels_takes_torch(monkeypatch):
    monkeypatch.setattr(select, '_HAS_TRITON', True)
    for forced in ('', 'triton'):
        monkeypatch.setenv('PRM_MMDET_BACKEND', forced)
        assert select.backend(Input('cuda'), kernels=('cpp',)) == 'torch'


def test_a_library_of_other_sources_is_not_loaded(monkeypatch):
    monkeypatch.setattr(kernels, 'source_hash', lambda folder: 'another')
    if kernels.LIBRARY is None:
        pytest.skip('needs the compiled kernels')
    with pytest.warns(UserWarning, match='compiled from other sources'):
        library, reason = kernels._load()
    assert library is None and 'build_ext' in reason


def test_unknown_name_is_refused(monkeypatch):
    monkeypatch.setenv('PRM_MMDET_BACKEND', 'numpy')
    with pytest.raises(ValueError, match='cpp, triton, torch, reference'):
        ops.prm(torch.ones(1, 2, 2, 2), *[torch.ones(1)] * 4)


def test_reference_runs_when_forced(monkeypatch):
    monkeypatch.setenv('PRM_MMDET_BACKEND', 'reference')
    calls = []
    original = reference.prm_steps
    monkeypatch.setattr(
        reference, 'prm_steps', lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    y = ops.prm(torch.ones(1, 2, 2, 2).half(), *[torch.ones(1)] * 4)
    assert calls and y.dtype == torch.half
