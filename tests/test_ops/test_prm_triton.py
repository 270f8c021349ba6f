"""The Triton kernels against the reference: on a GPU, or else in Triton's interpreter,
which tests/conftest.py switches on."""

import itertools
import os
from pathlib import Path

import pytest
import torch
from prm_cases import check_close, evaluate, grid, parameters

from prm_mmdet import ops
from prm_mmdet.ops import reference

pytest.importorskip('triton')
from prm_mmdet.ops import prm_triton

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
SWITCHES = list(
    itertools.product(('dot', 'l1', 'cosine'), (True, False), (True, False))
)


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv('PRM_MMDET_BACKEND', 'triton')


def share(monkeypatch, programs, positions):
    """So many programs to a slab, in blocks of so many positions and k = 4."""
    monkeypatch.setattr(prm_triton, '_splits', lambda *_: programs)
    monkeypatch.setattr(prm_triton, '_BLOCK', 4 * positions)


def check(x, groups, switches, bound, cotangent=None, dtype=torch.float64):
    similarity, encoding, normalization = switches
    switches = dict(similarity=similarity, normalization=normalization)
    values = parameters(groups, encoding)
    if not normalization:
        values[2] = values[2] / 40
    values = [v if v is None else v.double() for v in values]
    if cotangent is None:
        cotangent = grid(*x.shape)
    expected = evaluate(reference.prm, x.double(), values, cotangent, **switches)
    values = [v if v is None else v.to(DEVICE, dtype) for v in values]
    results = evaluate(ops.prm, x.to(DEVICE), values, cotangent.to(DEVICE), **switches)
    check_close([r.cpu() for r in results], expected, bound)
    return results


@pytest.mark.parametrize(
    'switches, programs',
    [(s, 4) for s in SWITCHES] + [(s, 1) for s in SWITCHES[::5]],
    ids=str,
)
def test_float64(monkeypatch, switches, programs):
    # Blocks of 16 positions: 63 are no multiple, and leave the fourth program short.
    share(monkeypatch, programs, 16)
    check(grid(2, 6, 9, 7).double(), 2, switches, 1e-9)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('switches', SWITCHES[::3], ids=str)
def test_every_dtype(switches, dtype):
    bound = 2e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    x = grid(1, 10, 6, 7).to(dtype)
    y, gx, *rest = check(x, 2, switches, bound, dtype=torch.float32)
    assert y.dtype == gx.dtype == dtype
    assert all(g.dtype == torch.float32 for g in rest)


@pytest.mark.parametrize('shape', [(1, 4, 1, 1), (1, 2, 1, 17), (2, 3, 19, 1)])
@pytest.mark.parametrize('groups', ['one', 'all'])
def test_odd_shapes(shape, groups):
    groups = 1 if groups == 'one' else shape[1]
    check(grid(*shape).double(), groups, ('dot', True, True), 1e-9)


@pytest.mark.parametrize('programs', [1, 2])
def test_layouts(monkeypatch, programs):
    share(monkeypatch, programs, 16)
    last = grid(1, 8, 5, 6).double().contiguous(memory_format=torch.channels_last)
    for x, cotangent in (
        (last, None),
        (last, last / 2),
        (grid(1, 8, 6, 5).double().mT, torch.ones(1).double().expand(1, 8, 5, 6)),
    ):
        y, gx, *_ = check(x, 4, ('cosine', True, True), 1e-9, cotangent)
        for t in (y, gx):
            assert t.is_contiguous(
                memory_format=torch.channels_last
                if x is last
                else torch.contiguous_format
            )


@pytest.mark.parametrize('programs', [1, 4])
def test_ties_go_to_the_first(monkeypatch, programs):
    share(monkeypatch, programs, 16)
    x = torch.zeros(2, 2, 8, 9, device=DEVICE)
    x[0, :, 3, 2:] = x[1, :, 1:, 5] = x[1, 1, 7] = 1
    _, index, *_ = prm_triton.forward(
        x, *(v.to(DEVICE) for v in parameters(2)), 'dot', True
    )
    means = x.flatten(2).unsqueeze(2).mean(2)
    first = [[row.tolist().index(row.max()) for row in s] for s in means]
    assert index.tolist() == first


@pytest.mark.parametrize('value', [0.0, 0.1, -37.5])
@pytest.mark.parametrize('similarity', ['dot', 'l1', 'cosine'])
def test_constant_map_has_the_bare_gate(monkeypatch, similarity, value):
    share(monkeypatch, 2, 16)
    values = [v if v is None else v.to(DEVICE) for v in parameters(2, False)]
    x = torch.full((1, 6, 5, 7), value, device=DEVICE)
    y, *gradients = evaluate(
        ops.prm, x, values, torch.ones_like(x), similarity=similarity
    )
    gate = values[3].sigmoid().repeat_interleave(3)[:, None, None]
    torch.testing.assert_close(y, x * gate)
    assert all(g.isfinite().all() for g in gradients)


def test_nan_fills_its_slab():
    x = grid(1, 4, 5, 6).to(DEVICE)
    x[0, 3, 2, 2] = float('nan')
    values = [v.to(DEVICE) for v in parameters(2)]
    y, gx, *_ = evaluate(ops.prm, x, values, torch.ones_like(x))
    for t in (y, gx):
        assert t[0, 2:].isnan().all() and t[0, :2].isfinite().all()


def test_what_torch_keeps_triton_takes(monkeypatch):
    # The two may meet where the variable changes between forward and backward.
    x, values = grid(1, 8, 6, 5).to(DEVICE), [v.to(DEVICE) for v in parameters(2)]
    cotangent = grid(1, 8, 6, 5).to(DEVICE)
    expected = evaluate(ops.prm, x, values, cotangent)

    def mixed(*inputs):
        monkeypatch.setenv('PRM_MMDET_BACKEND', 'torch')
        y = ops.prm(*inputs)
        monkeypatch.setenv('PRM_MMDET_BACKEND', 'triton')
        return y

    check_close(evaluate(mixed, x, values, cotangent), expected, 2e-5)


def test_kernels_compile_for_a_gpu(run_python, tmp_path):
    root = Path(__file__).parents[2]
    env = {**os.environ, 'TRITON_CACHE_DIR': str(tmp_path), 'TRITON_INTERPRET': '0'}
    env['PYTHONPATH'] = os.pathsep.join([str(root), env.get('PYTHONPATH', '')])
    del env['PRM_MMDET_BACKEND']
    script = Path(__file__).with_name('compile_prm_kernels.py')
    assert run_python(script, env=env).stdout.count('_kernel') == 6
