"""PRM as an operator: what autograd, the compiler and the counters see of it."""

import shutil

import pytest
import torch
from prm_cases import check_close, evaluate, grid, parameters
from torch.utils.flop_counter import FlopCounterMode

from prm_mmdet import ops
from prm_mmdet.ops import reference
from prm_mmdet.ops.backend import backend
from prm_mmdet.ops.kernels import LIBRARY

SIMILARITIES = ('dot', 'l1', 'cosine')
registered = pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op') or LIBRARY is None,
    reason='needs torch 2.4 and the compiled kernels',
)


@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize('normalization', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('shape', [(2, 12, 9, 11), (1, 6, 1, 1), (2, 20, 1, 13)])
def test_every_dtype_against_float64(similarity, normalization, dtype, shape):
    x, cotangent = grid(*shape), grid(*shape)
    switches = dict(similarity=similarity, normalization=normalization)
    bound = 2e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for groups in {1, 2, shape[1]}:
        if similarity == 'cosine' and groups == shape[1] and normalization:
            continue  # +-1 up to rounding errors, which Eq. 7 divides by 1e-5
        values = parameters(groups)
        values[2] = values[2] / (1 if normalization else 40)
        exact = [v.double() for v in values]
        expected = evaluate(
            reference.prm, x.double(), exact, cotangent.double(), **switches
        )
        single = evaluate(reference.prm, x, values, cotangent, **switches)
        results = evaluate(ops.prm, x.to(dtype), values, cotangent, **switches)
        assert results[0].dtype == results[1].dtype == dtype
        check_close(results, expected, bound, single)


def test_large_features_in_float16():
    # Dot products of 1e9, far over float16's largest number.
    x, cotangent = 2500 * grid(2, 16, 10, 12).half(), grid(2, 16, 10, 12)
    values = parameters(4)
    exact = [v.double() for v in values]
    expected = evaluate(reference.prm, x.double(), exact, cotangent.double())
    check_close(evaluate(ops.prm, x, values, cotangent), expected, 1e-3)


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_nan_stays_in_its_slab_and_fills_it(similarity):
    x = grid(2, 8, 5, 6)
    x[1, 3, 2, 2] = float('nan')
    y, gx, *_ = evaluate(
        ops.prm, x, parameters(4), torch.ones_like(x), similarity=similarity
    )
    for t in (y, gx):
        slabs = t.unflatten(1, (4, 2)).isnan()
        assert slabs[1, 1].all()
        slabs[1, 1] = False
        assert not slabs.any()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_every_element_is_written_and_two_runs_agree(layout, dtype):
    x = grid(2, 12, 7, 9).to(dtype).to(memory_format=layout)
    arguments = (x, parameters(3), torch.linspace(-1, 1, x.numel()).view_as(x))
    plain = evaluate(ops.prm, *arguments)
    # Fills what is allocated with NaN.
    torch.use_deterministic_algorithms(True)
    try:
        poisoned = evaluate(ops.prm, *arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(plain, poisoned):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize('memory_format', ['contiguous_format', 'channels_last'])
def test_memory_format_is_kept_in_both_directions(memory_format):
    memory_format = getattr(torch, memory_format)
    x = grid(2, 8, 4, 5).contiguous(memory_format=memory_format)
    y, gx, *_ = evaluate(ops.prm, x, parameters(4), torch.ones(2, 8, 4, 5))
    assert y.is_contiguous(memory_format=memory_format)
    if backend(x) != 'torch':  # autograd chooses the layout of its own gradients
        assert gx.is_contiguous(memory_format=memory_format)


@registered
@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_backward_keeps_the_input_and_no_map(similarity):
    x = grid(2, 8, 20, 30).requires_grad_()
    values = [v.requires_grad_() for v in parameters(4)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        ops.prm(x, *values, similarity=similarity)
    large = [t for t in kept if t.numel() > 100]
    assert len(large) == 1
    assert large[0].data_ptr() == x.data_ptr()


def test_empty_batch():
    x = torch.empty(0, 8, 3, 4)
    y, gx, *rest = evaluate(ops.prm, x, parameters(4), x)
    assert y.shape == gx.shape == x.shape
    assert all(not g.any() for g in rest)


@registered
def test_second_derivative_is_refused_with_the_cure():
    x = grid(1, 4, 3, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(
        ops.prm(x, *parameters(2)).sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match='PRM_MMDET_BACKEND=torch'):
        gradient.sum().backward()


def test_reference_backend_has_a_second_derivative(monkeypatch):
    monkeypatch.setenv('PRM_MMDET_BACKEND', 'reference')
    x = grid(1, 4, 3, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(
        ops.prm(x, *parameters(2)).sum(), x, create_graph=True
    )
    gradient.sum().backward()
    assert x.grad.isfinite().all()


@registered
@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize('encoding', [True, False])
def test_operator_is_registered_well(similarity, encoding):
    layout = torch.channels_last if encoding else torch.contiguous_format
    x = grid(2, 8, 4, 5).double().contiguous(memory_format=layout).requires_grad_()
    values = [v if v is None else v.double() for v in parameters(4, encoding)]
    torch.library.opcheck(
        torch.ops.prm_mmdet.prm.default, (x, *values, similarity, encoding)
    )


@registered
@pytest.mark.skipif(shutil.which('g++') is None, reason='needs a C++ compiler')
def test_compiles_without_a_graph_break():
    pytest.importorskip('mmdet')
    from prm_mmdet import PRM

    block = PRM(16, groups=4).double()
    for parameter in block.parameters():
        parameter.data.normal_()
    results = []
    for function in (block, torch.compile(block, fullgraph=True)):
        x = torch.linspace(-2, 3, 2 * 16 * 30, dtype=torch.double).view(2, 16, 5, 6)
        x = x.sin().requires_grad_()
        y = function(x + 0)
        leaves = [x, *block.parameters()]
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@registered
def test_operations_are_counted():
    x = grid(2, 8, 4, 5).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        ops.prm(x, *parameters(4)).sum().backward()
    assert counter.get_total_flops() == (4 + 14) * x.numel()
