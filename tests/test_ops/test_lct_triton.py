"""LCT's Triton kernels against the reference, on a GPU or in Triton's interpreter."""

import pytest
import torch
from operator_cases import check_close, convert, evaluate, far_apart

from prm_mmdet import ops
from prm_mmdet.ops import reference

pytest.importorskip('triton')
from prm_mmdet.ops import lct_triton

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
BOUNDS = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv('PRM_MMDET_BACKEND', 'triton')


def check(
    shape=(2, 6, 5, 7),
    groups=2,
    normalization=True,
    transform=True,
    dtype=torch.float64,
    layout=torch.contiguous_format,
    values=torch.randn,
):
    x = values(shape).to(dtype).to(DEVICE, memory_format=layout)
    accumulated = torch.promote_types(dtype, torch.float32)
    parameters = torch.randn(2, shape[1], dtype=accumulated, device=DEVICE).unbind()
    if not transform:
        parameters = (None, None)
    cotangent = torch.randn(shape).to(x)
    inputs = [x, *parameters, groups, 1e-5, normalization]
    ours = evaluate(ops.lct, inputs, cotangent)
    exact = evaluate(reference.lct, convert(inputs, torch.float64), cotangent)
    check_close(ours, exact, BOUNDS[dtype])
    assert {t.dtype for t in ours} <= {dtype, accumulated}
    for t in ours[:2]:
        assert t.is_contiguous(memory_format=layout)


LAYOUTS = pytest.mark.parametrize(
    'layout', [torch.contiguous_format, torch.channels_last]
)


@LAYOUTS
@pytest.mark.parametrize(
    'normalization, transform, programs',
    [
        (True, True, 1),
        (True, True, 3),
        (True, False, 3),
        (False, True, 3),
        (False, False, 3),
    ],
)
def test_switches(monkeypatch, layout, normalization, transform, programs):
    # Blocks that fit neither the channels nor the positions.
    monkeypatch.setattr(lct_triton, '_BLOCK', 32)
    monkeypatch.setattr(lct_triton, '_INNER', 4)
    monkeypatch.setattr(lct_triton, '_CHANNELS', 3)
    monkeypatch.setattr(lct_triton, '_programs', lambda *_: programs)
    check(normalization=normalization, transform=transform, layout=layout)


@LAYOUTS
@pytest.mark.parametrize('dtype', list(BOUNDS))
def test_every_dtype(layout, dtype):
    check(dtype=dtype, layout=layout)


@pytest.mark.parametrize(
    'shape, groups',
    [((1, 8, 1, 1), 4), ((3, 7, 5, 1), 1), ((2, 12, 3, 4), 6), ((1, 300, 2, 3), 2)],
)
def test_shapes_and_groups(shape, groups):
    check(shape, groups)


def test_an_empty_batch():
    x, weight = torch.zeros(0, 4, 3, 3, device=DEVICE), torch.ones(4, device=DEVICE)
    y, _, *rest = evaluate(ops.lct, [x, weight, weight, 2])
    assert y.shape == x.shape
    assert not any(g.any() for g in rest)


@pytest.mark.parametrize('value', [-37.5, 0.0])
def test_constant_maps(value):
    check(values=lambda shape: torch.full(shape, value), dtype=torch.float16)


@pytest.mark.parametrize('scale, dtype', [(1e4, torch.float16), (1e12, torch.float32)])
def test_huge_maps(scale, dtype):
    check(values=lambda shape: scale * torch.randn(shape), dtype=dtype)


def test_strides_that_are_neither_and_gradients_in_another_layout():
    x = torch.randn(2, 4, 5, 12, device=DEVICE).double()[..., ::2]
    inputs = [x, *torch.randn(2, 4, device=DEVICE).double(), 2]
    g = torch.randn_like(x).contiguous(memory_format=torch.channels_last)
    results = evaluate(ops.lct, inputs, g)
    check_close(results, evaluate(reference.lct, inputs, g), 1e-7)


@pytest.mark.skipif(DEVICE == 'cuda', reason='reads files, through the interpreter')
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_elements_beyond_two_to_the_31(monkeypatch, tmp_path, layout):
    small = torch.randn(1, 2, 1, 3).double()
    weight, bias = torch.randn(2, 2).double()
    expected = evaluate(reference.lct, [small, weight, bias, 1], small)
    x, gradient, y, gx = far_apart(monkeypatch, lct_triton, tmp_path, small, layout)
    _, mean = lct_triton.forward(x, weight, bias, 1, 1e-5, True)
    _, *rest = lct_triton.backward(gradient, x, weight, bias, mean, 1, 1e-5, True)
    check_close((y, gx, *rest), expected, 1e-9)


def test_nan_stays_in_its_group():
    x = torch.randn(2, 4, 3, 3, device=DEVICE)
    x[0, 0, 1, 1] = float('nan')
    weight, bias = torch.randn(2, 4, device=DEVICE)
    y = ops.lct(x, weight, bias, 2)
    assert y[0, :2].isnan().all()
    assert y[0, 2:].isfinite().all() and y[1].isfinite().all()
