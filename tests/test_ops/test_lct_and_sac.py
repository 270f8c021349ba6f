"""What LCT's and SAC's operators promise beside the equations: accuracy in every
dtype and layout, what they keep and cost, and how PyTorch's tools see them."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from prm_mmdet import ops
from prm_mmdet.ops import operator, reference
from prm_mmdet.ops.kernels import LIBRARY

# Of the largest element: the rounding of the result, and what sums in float32 lose
# that cancel in part.
BOUNDS = {
    torch.float64: 1e-10,
    torch.float32: 2e-4,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}
HALF = (torch.float16, torch.bfloat16)
LAYOUTS = ('contiguous', 'channels_last', 'sliced', 'transposed', 'expanded')


def features(generator, kind, shape):
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return {
        'normal': x,
        'negative': -x.abs() - 1,
        'zero': torch.zeros_like(x),
        'constant': torch.full_like(x, -37.5),
        'huge': 1e4 * x.clamp(-3, 3),
    }[kind]


def lay_out(x, layout):
    """The same values at other strides."""
    b, c, h, w = x.shape
    if layout == 'channels_last':
        return x.contiguous(memory_format=torch.channels_last)
    if layout == 'sliced':
        room = x.new_full((b, c + 2, h, 2 * w), float('nan'))
        room[:, 1:-1, :, ::2] = x
        return room[:, 1:-1, :, ::2]
    if layout == 'transposed':
        return x.mT.contiguous().mT
    if layout == 'expanded':
        return x[:1, :, :1].expand(b, c, h, w)
    return x


@st.composite
def cases(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    groups, m = draw(st.sampled_from([(1, 6), (2, 3), (3, 2), (6, 1)]))
    size = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    shape = (draw(st.integers(1, 3)), groups * m, *size)
    kind = draw(st.sampled_from(['normal', 'negative', 'zero', 'constant', 'huge']))
    dtype = draw(st.sampled_from(list(BOUNDS)))
    x = features(generator, kind, shape).to(dtype)
    x = lay_out(x, draw(st.sampled_from(LAYOUTS)))

    def number(*size):
        values = torch.randn(size, generator=generator, dtype=torch.float64)
        # As under autocast: parameters stay in float32.
        return values.to(torch.float32 if dtype in HALF else dtype)

    return x, groups, number, draw(st.sampled_from(LAYOUTS[:4]))


def results(function, tensors, cotangent):
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = function(*tensors)
    return [y, *torch.autograd.grad(y, tensors, cotangent)]


def check(fast, slow, x, parameters, layout, cancelling=0):
    with torch.no_grad():
        shape = slow(x.double(), *(p.double() for p in parameters)).shape
    # Of one sign, for sums that do not cancel.
    cotangent = torch.linspace(0.5, 1.5, shape.numel()).view(shape).to(x.dtype)
    tensors = [x, *parameters]
    ours = results(fast, tensors, lay_out(cotangent, layout))
    exact = results(slow, [t.double() for t in tensors], cotangent.double())
    comparisons = [(exact, BOUNDS[x.dtype])]
    if x.dtype not in HALF:
        comparisons.append((results(slow, tensors, cotangent), 2 * BOUNDS[x.dtype]))
    for theirs, bound in comparisons:
        # Parameters' gradients may cancel wholly: they are held to the largest of all.
        largest = max(t.abs().max().double() for t in theirs[1:])
        rounding = torch.finfo(torch.float32).eps * cancelling / BOUNDS[x.dtype]
        for i, (a, b) in enumerate(zip(ours, theirs)):
            scale = b.abs().max().double()
            if i == 1 and x.dtype == torch.float32:
                scale = scale + 16 * rounding
            if i > 1:
                scale = largest
            error = (a.double() - b.double()).abs().max()
            assert error <= bound * scale.clamp(min=1e-3), (i, error, scale)
        assert [a.shape for a in ours] == [b.shape for b in theirs]
    assert ours[0].dtype == ours[1].dtype == x.dtype


@settings(deadline=None, max_examples=200)
@given(cases(), st.booleans())
def test_lct_is_accurate(case, normalization):
    x, groups, number, layout = case
    c = x.shape[1]
    normalization = normalization and c > groups
    weight = number(c)
    if not normalization:  # a saturated gate's derivative has no digits left
        weight = weight / (1 + x.double().abs().max().to(weight))
    switches = dict(groups=groups, normalization=normalization)
    check(
        lambda *t: ops.lct(*t, **switches),
        lambda *t: reference.lct(*t, **switches),
        x,
        [weight, number(c)],
        layout,
        spread(x, groups) if normalization else 0,
    )


def spread(x, groups):
    """How large terms in the gradient through LCT's normalisation are that cancel
    wholly between two channels: a map's size over the spread of its group's means."""
    x = x.double()
    means = x.mean((2, 3)).unflatten(1, (groups, -1))
    deviation = (means.var(2, correction=0) + 1e-5).sqrt()
    sizes = x.abs().sum((2, 3)).unflatten(1, (groups, -1)).amax(2)
    return (sizes / deviation).max()


@settings(deadline=None, max_examples=200)
@given(cases(), st.booleans(), st.booleans())
def test_sac_is_accurate(case, softmax, residual):
    x, k, number, layout = case
    c = x.shape[1]
    d = c if residual else 2
    # Attention of moderate sharpness, and results that float16 can hold.
    scale = 1 + x.double().abs().max().to(number(1))
    parameters = [number(k, c) / scale, number(k), number(k, c) / scale, number(k)]
    parameters += [number(d, c) / c**2 / 4, number(d)]
    switches = dict(softmax=softmax, residual=residual)
    check(
        lambda *t: ops.sac(*t, **switches),
        lambda *t: reference.sac(*t, **switches),
        x,
        parameters,
        layout,
    )


def leaves(*shapes, dtype=torch.float32):
    torch.manual_seed(8)
    return [torch.randn(s, dtype=dtype).requires_grad_() for s in shapes]


def lct_call(shape=(2, 8, 5, 3), **kwargs):
    c = shape[1]
    return ops.lct, [*leaves(shape, (c,), (c,), **kwargs), 2, 1e-5, True]


def sac_call(shape=(2, 8, 5, 3), k=2, **kwargs):
    c = shape[1]
    shapes = (shape, (k, c), (k,), (k, c), (k,), (c, c), (c,))
    return ops.sac, [*leaves(*shapes, **kwargs), False, True]


every_call = pytest.mark.parametrize('call', [lct_call, sac_call])
compiled = pytest.mark.skipif(LIBRARY is None, reason='needs the compiled kernels')


def test_the_accuracy_does_not_drown_in_a_large_map():
    # 60,000 positions and a mean far from zero, where naive sums lose digits.
    x = (torch.randn(1, 4, 200, 300) + 30).requires_grad_()
    w, b = torch.tensor([1.0, -1, 2, 0.5]), torch.zeros(4)
    for layout in ('contiguous', 'channels_last'):
        y = ops.lct(lay_out(x, layout), w, b, 1)
        exact = reference.lct(x.double(), w.double(), b.double(), 1)
        torch.testing.assert_close(y.double(), exact, rtol=3e-3, atol=0)


@every_call
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_two_runs_give_the_same_bits(call, layout):
    function, (x, *inputs) = call((2, 32, 24, 25))
    runs = []
    for _ in range(2):
        y = function(lay_out(x, layout), *inputs)
        tensors = [t for t in (x, *inputs) if isinstance(t, torch.Tensor)]
        runs.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@compiled
@every_call
def test_nothing_of_the_features_size_is_kept_but_the_features(call):
    function, (x, *inputs) = call((2, 64, 40, 50))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t) or t, lambda t: t
    ):
        function(x, *inputs)
    maps = [t for t in kept if t.data_ptr() != x.data_ptr()]
    assert len(maps) < len(kept)
    # SAC's maps are 2K of 64 channels, LCT keeps none.
    largest = max(t.numel() for t in maps)
    assert largest <= (
        2 * 2 / 64 * x.numel() if function is ops.sac else x.shape[1] * 2
    )


@every_call
def test_no_element_is_left_unwritten(call, monkeypatch):
    # Fresh memory holds NaN, which no sum or product hides.
    monkeypatch.setattr(torch.utils.deterministic, 'fill_uninitialized_memory', True)
    torch.use_deterministic_algorithms(True)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            for layout in LAYOUTS[:4]:
                function, (x, *inputs) = call((3, 8, 5, 3), dtype=dtype)
                y = function(lay_out(x, layout), *inputs)
                tensors = [t for t in (x, *inputs) if isinstance(t, torch.Tensor)]
                gradients = torch.autograd.grad(y.sum(), tensors)
                assert all(t.isfinite().all() for t in (y, *gradients))
    finally:
        torch.use_deterministic_algorithms(False)


@every_call
def test_an_empty_batch_and_single_positions(call):
    for shape in ((0, 8, 5, 3), (1, 8, 1, 1), (3, 8, 1, 1)):
        function, (x, *inputs) = call(shape)
        y = function(x, *inputs)
        gradient, bias = torch.autograd.grad(y.sum(), [x, inputs[1]])
        assert y.shape == gradient.shape == shape
        assert bias.isfinite().all()


@compiled
@every_call
def test_a_second_derivative_is_refused_and_the_reference_has_one(call, monkeypatch):
    function, (x, *inputs) = call(dtype=torch.float64)

    def twice():
        y = function(x, *inputs)
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    with pytest.raises(RuntimeError, match='PRM_MMDET_BACKEND=torch'):
        twice()
    monkeypatch.setenv('PRM_MMDET_BACKEND', 'reference')
    assert twice().isfinite().all()


@compiled
@every_call
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_the_operator_keeps_the_rules_of_its_kind(call, dtype, layout):
    function, (x, *inputs) = call(dtype=dtype)
    x = lay_out(x.detach(), layout).requires_grad_()
    packet = getattr(torch.ops.prm_mmdet, function.__name__)
    torch.library.opcheck(packet.default, (x, *inputs))
    if function is ops.lct:
        torch.library.opcheck(packet.default, (x, None, None, *inputs[2:]))


@compiled
@every_call
def test_older_torch_gets_the_same_from_a_function(call, monkeypatch):
    function, (x, *inputs) = call(dtype=torch.float64)
    module = sys.modules[function.__module__]
    tensors = [t for t in (x, *inputs) if isinstance(t, torch.Tensor)]
    monkeypatch.delattr(torch.library, 'custom_op')
    names = ', '.join(f'Tensor t{i}' for i in range(len(tensors)))
    older = operator._join(function.__name__, names, '', '', module._shapes, ())
    results = []
    for form in (function, lambda *t: older(*t)[0]):
        y = form(x, *inputs)
        results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*results))
    (gradient,) = torch.autograd.grad(
        older(x, *inputs)[0].square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


@compiled
def test_multiply_adds_of_sac_are_those_of_its_products():
    _, (x, *inputs) = sac_call((2, 64, 10, 12), k=2)
    w_phi, b_phi, w_theta, b_theta, w_rho = inputs[:5]

    def products(x):
        X = x.flatten(2)
        attention = (w_phi @ X + b_phi[:, None]).softmax(2)
        weights = w_theta @ X + b_theta[:, None]
        return (w_rho @ (X @ attention.mT)) @ weights + X

    counts = []
    for function in (products, lambda x: ops.sac(x, *inputs)):
        with FlopCounterMode(display=False) as forward:
            y = function(x)
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    # Backward forms the maps and the small product of rho and the contexts once more.
    again = 2 * 2 * (64 * 64 * 2 + 2 * 64 * 2 * 120)
    assert counts[1] == (counts[0][0], counts[0][1] + again)


def test_sac_at_the_default_reduction_costs_nine_times_less_than_the_papers_order():
    function, (x, *inputs) = sac_call((1, 256, 50, 84), k=8)
    counts = []
    for form in (reference.sac, function):
        with FlopCounterMode(display=False) as counter:
            form(x, *inputs)
        counts.append(counter.get_total_flops())
    assert 8.5 < counts[0] / counts[1] < 9.5


@every_call
def test_shapes_and_counts_without_data(call):
    function, (x, *inputs) = call()
    tensors = [t.to('meta') if isinstance(t, torch.Tensor) else t for t in (x, *inputs)]
    with FlopCounterMode(display=False) as counter:
        y = function(*tensors)
    assert y.shape == x.shape and y.is_meta
    assert bool(counter.get_total_flops()) == (function is not ops.lct)
