"""PRM's Triton kernels against the reference, on a GPU or in Triton's interpreter."""

import itertools

import pytest
import torch
from operator_cases import (
    check_close,
    convert,
    evaluate,
    far_apart,
    grid,
    prm_parameters,
)

from prm_mmdet import ops
from prm_mmdet.ops import reference

pytest.importorskip('triton')
from prm_mmdet.ops import prm_triton, triton_launch

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
SIMILARITIES = ('dot', 'l1', 'cosine')
SWITCHES = list(itertools.product(SIMILARITIES, (True, False), (True, False)))


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv('PRM_MMDET_BACKEND', 'triton')


def share(monkeypatch, programs):
    """Make so many programs share a slab, in blocks of 16 positions if k is 4."""
    monkeypatch.setattr(prm_triton, '_programs', lambda *_: programs)
    monkeypatch.setattr(prm_triton, '_BLOCK', 4 * 16)


def check(x, groups, switches, bound, cotangent=None, dtype=torch.float64):
    similarity, encoding, normalization = switches
    switches = dict(similarity=similarity, normalization=normalization)
    values = prm_parameters(groups, encoding)
    if not normalization:  # keep the gate away from 0 and 1
        values[2] = values[2] / 40
    if cotangent is None:
        cotangent = grid(*x.shape)
    doubles = convert([x, *values], torch.float64)
    expected = evaluate(reference.prm, doubles, cotangent, **switches)
    inputs = [x.to(DEVICE), *convert(values, DEVICE, dtype)]
    results = evaluate(ops.prm, inputs, cotangent.to(DEVICE), **switches)
    check_close([r.cpu() for r in results], expected, bound)
    return results


# 35 positions fill two blocks of 16 and a part of a third one; k is not a power of two.
@pytest.mark.parametrize(
    'switches, programs',
    [(s, 2) for s in SWITCHES] + [(s, 1) for s in SWITCHES[::6]],
    ids=str,
)
def test_float64(monkeypatch, switches, programs):
    share(monkeypatch, programs)
    check(grid(1, 3, 5, 7).double(), 1, switches, 1e-9)


def test_a_program_without_a_block(monkeypatch):
    share(monkeypatch, 4)
    check(grid(2, 2, 5, 7).double(), 1, ('dot', True, True), 1e-9)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('switches', SWITCHES[::5], ids=str)
def test_every_dtype(switches, dtype):
    bound = 2e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    x = grid(1, 10, 6, 8).to(dtype)
    y, gx, *rest = check(x, 2, switches, bound, dtype=torch.float32)
    assert y.dtype == gx.dtype == dtype
    assert all(g.dtype == torch.float32 for g in rest)


@pytest.mark.parametrize('shape', [(1, 4, 1, 1), (1, 2, 1, 17), (2, 3, 19, 1)])
@pytest.mark.parametrize('groups', ['one', 'all'])
def test_odd_shapes(shape, groups):
    groups = 1 if groups == 'one' else shape[1]
    check(grid(*shape).double(), groups, ('dot', True, True), 1e-9)


def test_layouts(monkeypatch):
    share(monkeypatch, 2)
    last = grid(1, 4, 5, 6).double().contiguous(memory_format=torch.channels_last)
    # PyTorch leaves the stride of a dimension of size 1 undefined; here it is 1.
    narrow = grid(1, 20, 4).double().mT.unsqueeze(3)
    assert narrow.is_contiguous(memory_format=torch.channels_last)
    assert narrow.stride(3) == 1
    transposed = grid(1, 4, 6, 5).double().mT
    for x, cotangent, channels_last in (
        (last, None, True),
        (last, last / 2, True),
        (narrow, None, True),
        (transposed, torch.ones(1).double().expand(1, 4, 5, 6), False),
    ):
        y, gx, *_ = check(x, 2, ('l1', True, True), 1e-9, cotangent)
        for t in (y, gx):
            assert t.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize('programs', [1, 4])
def test_ties_go_to_the_first(monkeypatch, programs):
    share(monkeypatch, programs)
    x = torch.zeros(1, 4, 6, 9, device=DEVICE)
    x[0, :2, 3, 2:] = x[0, 2:, 1:, 5] = x[0, 3, 4] = 1
    values = convert(prm_parameters(2), DEVICE)
    _, index, *_ = prm_triton.forward(x, *values, 'dot', True)
    means = x.view(1, 2, 2, -1).mean(2)
    first = [[row.tolist().index(row.max()) for row in s] for s in means]
    assert index.tolist() == first


@pytest.mark.parametrize('value', [0.0, 0.1, -37.5])
@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_constant_map_has_the_bare_gate(monkeypatch, similarity, value):
    share(monkeypatch, 2)
    values = convert(prm_parameters(1, False), DEVICE)
    x = torch.full((1, 3, 5, 7), value, device=DEVICE)
    y, *gradients = evaluate(ops.prm, [x, *values], similarity=similarity)
    gate = values[3].sigmoid().repeat_interleave(3)[:, None, None]
    torch.testing.assert_close(y, x * gate)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize('encoding', [True, False])
@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_gradients_of_huge_features_are_finite(similarity, encoding):
    # With 'dot', the variance of the score overflows float32 and Eq. 7 divides by
    # infinity, in the reference too.
    inputs = [1e12 * grid(1, 3, 5, 7), *prm_parameters(1, encoding), similarity]
    cotangent = grid(1, 3, 5, 7)
    expected = evaluate(reference.prm, inputs, cotangent)
    assert all(t.isfinite().all() for t in expected)
    results = evaluate(ops.prm, convert(inputs, DEVICE), cotangent.to(DEVICE))
    check_close([r.cpu() for r in results], expected, 1e-4)


def test_nan_fills_its_slab():
    x = grid(1, 4, 5, 6).to(DEVICE)
    x[0, 3, 2, 2] = float('nan')
    values = convert(prm_parameters(2), DEVICE)
    y, gx, *_ = evaluate(ops.prm, [x, *values], torch.ones_like(x))
    for t in (y, gx):
        assert t[0, 2:].isnan().all() and t[0, :2].isfinite().all()


def test_empty_batch():
    x = torch.empty(0, 4, 3, 5, device=DEVICE)
    y, gx, *rest = evaluate(ops.prm, [x, *convert(prm_parameters(2), DEVICE)])
    assert y.shape == gx.shape == x.shape
    assert all(not g.any() for g in rest)


@pytest.mark.skipif(DEVICE == 'cuda', reason='reads files, through the interpreter')
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_elements_beyond_two_to_the_31(monkeypatch, tmp_path, layout):
    small = grid(1, 2, 1, 3).double()
    values = convert(prm_parameters(1), torch.float64)
    expected = evaluate(reference.prm, [small, *values], small)
    x, gradient, y, gx = far_apart(monkeypatch, prm_triton, tmp_path, small, layout)
    kept = prm_triton.forward(x, *values, 'dot', True)[1:]
    _, *rest = prm_triton.backward(gradient, x, *values, *kept, 'dot', True)
    check_close([y, gx, *rest], expected, 1e-9)


def test_offsets_are_wide_where_a_sample_is_large():
    for elements, expected in ((2**30 - 1, False), (2**30, True)):
        x = torch.empty(3, elements, 1, 1, device='meta')
        assert triton_launch.wide(x) == expected


def test_a_map_with_too_many_positions_is_refused():
    x = torch.empty(1, 2, 2**16, 2**15, device='meta')
    values = convert(prm_parameters(1), 'meta')
    with pytest.raises(ValueError, match='PRM_MMDET_BACKEND=torch'):
        prm_triton.forward(x, *values, 'dot', True)
