"""What the operators promise beside the equations: what they keep and cost, and how
autograd, the compiler and the counters see them."""

import shutil
import sys

import pytest
import torch
from operator_cases import LAYOUTS, evaluate, lay_out
from torch.utils.flop_counter import FlopCounterMode

from prm_mmdet import ops
from prm_mmdet.ops import operator, reference
from prm_mmdet.ops.backend import backend
from prm_mmdet.ops.kernels import LIBRARY


def prm_call(shape=(2, 8, 5, 3), dtype=torch.float32):
    shapes = (shape, *[(4,)] * 4, (2,), ())
    return ops.prm, [*(torch.randn(s, dtype=dtype) for s in shapes), 'dot', True]


def lct_call(shape=(2, 8, 5, 3), dtype=torch.float32):
    shapes = (shape, shape[1], shape[1])
    return ops.lct, [*(torch.randn(s, dtype=dtype) for s in shapes), 2, 1e-5, True]


def sac_call(shape=(2, 8, 5, 3), dtype=torch.float32, k=2):
    c = shape[1]
    shapes = (shape, (k, c), k, (k, c), k, (c, c), c)
    return ops.sac, [*(torch.randn(s, dtype=dtype) for s in shapes), False, True]


every_call = pytest.mark.parametrize('call', [prm_call, lct_call, sac_call])
registered = pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op') or LIBRARY is None,
    reason='needs torch 2.4 and the compiled kernels',
)


def with_gradients(inputs):
    return [v.requires_grad_() if torch.is_tensor(v) else v for v in inputs]


SWITCHES = [
    *(
        (prm_call, {7: similarity, 8: normalization, **without})
        for similarity in ('dot', 'l1', 'cosine')
        for normalization in (True, False)
        for without in ({}, {5: None, 6: None})  # position encoding
    ),
    *((lct_call, {5: n, **w}) for n in (True, False) for w in ({}, {1: None, 2: None})),
    *((sac_call, {7: s, 8: r}) for s in (True, False) for r in (True, False)),
]


@pytest.mark.parametrize(('call', 'changes'), SWITCHES)
def test_gradients(call, changes):
    function, inputs = call((1, 8, 3, 2), torch.float64)
    for index, value in changes.items():
        inputs[index] = value
    assert torch.autograd.gradcheck(function, with_gradients(inputs))


@every_call
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('layout', LAYOUTS[:4])
def test_every_element_is_written_and_two_runs_agree(call, dtype, layout):
    function, (x, *inputs) = call((2, 32, 24, 25), dtype)
    x = lay_out(x, layout)
    plain = evaluate(function, [x, *inputs])
    # Fresh memory then holds NaN, which no sum or product hides.
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        poisoned = evaluate(function, [x, *inputs])
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(plain, poisoned):
        assert a.isfinite().all() and torch.equal(a, b)


@every_call
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_kept_in_both_directions(call, layout):
    function, (x, *inputs) = call()
    x = x.contiguous(memory_format=layout)
    y, gx, *_ = evaluate(function, [x, *inputs], torch.ones(x.shape))
    assert y.is_contiguous(memory_format=layout)
    if backend(x) != 'torch':  # autograd chooses the layout of its own gradients
        assert gx.is_contiguous(memory_format=layout)


@registered
@every_call
def test_nothing_of_the_features_size_is_kept_but_the_features(call):
    function, (x, *inputs) = call((2, 64, 40, 50))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        function(*with_gradients([x, *inputs]))
    maps = [t for t in kept if t.data_ptr() != x.data_ptr()]
    assert len(maps) == len(kept) - 1
    assert max(t.numel() for t in maps) < x.numel() / 30  # SAC's matrix of 64 x 64


@every_call
@pytest.mark.parametrize('shape', [(0, 8, 5, 3), (1, 8, 1, 1), (3, 8, 1, 1)])
def test_an_empty_batch_and_single_positions(call, shape):
    function, inputs = call(shape)
    y, gx, *gradients = evaluate(function, inputs)
    assert y.shape == gx.shape == shape
    assert all(g.isfinite().all() for g in gradients)
    assert shape[0] or not any(g.any() for g in gradients)


@registered
@every_call
def test_a_second_derivative_is_refused_and_the_reference_has_one(call, monkeypatch):
    function, inputs = call(dtype=torch.float64)
    x, *_ = inputs = with_gradients(inputs)

    def twice():
        y = function(*inputs)
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    with pytest.raises(RuntimeError, match='PRM_MMDET_BACKEND=torch'):
        twice()
    monkeypatch.setenv('PRM_MMDET_BACKEND', 'reference')
    assert twice().isfinite().all()


@registered
@every_call
@pytest.mark.parametrize(
    ('dtype', 'layout'),
    [(torch.float32, 'contiguous'), (torch.bfloat16, 'channels_last')],
)
def test_the_operator_keeps_the_rules_of_its_kind(call, dtype, layout):
    function, (x, *inputs) = call(dtype=dtype)
    x, *inputs = with_gradients([lay_out(x, layout), *inputs])
    packet = getattr(torch.ops.prm_mmdet, function.__name__)
    torch.library.opcheck(packet.default, (x, *inputs))
    optional = dict(lct=slice(0, 2), prm=slice(4, 6)).get(function.__name__)
    if optional:
        inputs[optional] = None, None
        torch.library.opcheck(packet.default, (x, *inputs))


@registered
@every_call
def test_older_torch_gets_the_same_from_a_function(call, monkeypatch):
    function, inputs = call(dtype=torch.float64)
    monkeypatch.delattr(torch.library, 'custom_op')
    names = ', '.join('Tensor t' for v in inputs if torch.is_tensor(v))
    shapes = sys.modules[function.__module__]._shapes
    older = operator._join(function.__name__, names, '', '', shapes, ())
    results = [evaluate(f, inputs) for f in (function, lambda *t: older(*t)[0])]
    assert all(torch.equal(a, b) for a, b in zip(*results))
    x, *_ = inputs = with_gradients(inputs)
    y = older(*inputs)[0].square().sum()
    (gradient,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


@registered
@pytest.mark.skipif(shutil.which('g++') is None, reason='needs a C++ compiler')
def test_compiles_without_a_graph_break():
    function, inputs = prm_call(dtype=torch.float64)

    def shifted(x, *inputs):
        return function(x + 0, *inputs)

    compiled = torch.compile(shifted, fullgraph=True)
    for a, b in zip(evaluate(shifted, inputs), evaluate(compiled, inputs)):
        torch.testing.assert_close(a, b)


# -- counts ----------------------------------------------------------------------------


def count(function, inputs):
    """Floating point operations in forward and in backward."""
    inputs = with_gradients(inputs)
    with FlopCounterMode(display=False) as forward:
        y = function(*inputs)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@registered
def test_operations_of_prm_are_counted():
    function, inputs = prm_call()
    size = inputs[0].numel()
    assert count(function, inputs) == (4 * size, 14 * size)


@registered
def test_multiply_adds_of_sac_are_those_of_its_products():
    function, inputs = sac_call((2, 64, 10, 12), k=2)

    def products(x, w_phi, b_phi, w_theta, b_theta, w_rho, *_):
        X = x.flatten(2)
        attention = (w_phi @ X + b_phi[:, None]).softmax(2)
        weights = w_theta @ X + b_theta[:, None]
        return (w_rho @ (X @ attention.mT)) @ weights + X

    forward, backward = count(products, inputs)
    # Backward forms the maps and the small product of rho and the contexts once more.
    again = 2 * 2 * (64 * 64 * 2 + 2 * 64 * 2 * 120)
    assert count(function, inputs) == (forward, backward + again)


def test_sac_at_the_default_reduction_costs_nine_times_less_than_the_papers_order():
    function, inputs = sac_call((1, 256, 50, 84), k=8)
    (papers, _), (ours, _) = count(reference.sac, inputs), count(function, inputs)
    assert 8.5 < papers / ours < 9.5


@every_call
def test_shapes_and_counts_without_data(call):
    function, inputs = call()
    inputs = [v.to('meta') if torch.is_tensor(v) else v for v in inputs]
    with FlopCounterMode(display=False) as counter:
        y = function(*inputs)
    assert y.shape == inputs[0].shape and y.is_meta
    assert bool(counter.get_total_flops()) == (function is not ops.lct)
