"""The operators against the reference: values and gradients, in every dtype, layout and
form, and for features that are hard to compute with."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import (
    LAYOUTS,
    check_close,
    convert,
    evaluate,
    grid,
    lay_out,
    prm_parameters,
    sac_parameters,
)
from torch.autograd import forward_ad

from prm_mmdet import ops
from prm_mmdet.ops import reference
from prm_mmdet.ops.backend import VARIABLE
from prm_mmdet.ops.kernels import LIBRARY

SIMILARITIES = ('dot', 'l1', 'cosine')
# The compiled kernels, if they were built, and the fallback.
FORMS = ['cpp', 'torch'] if LIBRARY is not None else ['torch']
every_form = pytest.mark.parametrize('form', FORMS)
HALF = (torch.float16, torch.bfloat16)
# Of the largest element: the rounding of the result, and what sums in float32 lose
# that cancel in part.
BOUNDS = {
    torch.float64: 1e-10,
    torch.float32: 2e-4,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}


def features(generator, kind, shape):
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return {
        'normal': x,
        'ties': x.round(),  # many positions share the maximum
        'sparse': x.clamp(min=0) * (x.sum(1, keepdim=True) > 0),  # as after a ReLU
        'negative': -x.abs() - 1,
        'huge': 1e4 * x.clamp(-3, 3),
        'zero': torch.zeros_like(x),
        'constant': torch.full_like(x, -37.5),
    }[kind]


KINDS = ('normal', 'ties', 'sparse', 'negative', 'huge', 'zero', 'constant')


@st.composite
def cases(draw, dtypes=tuple(BOUNDS), kinds=KINDS):
    """Features, a number that divides their channels, a source of random parameters,
    and the layout of the cotangent."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    groups, m = draw(st.sampled_from([(1, 6), (2, 3), (3, 2), (6, 1)]))
    size = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    shape = (draw(st.integers(1, 3)), groups * m, *size)
    dtype = draw(st.sampled_from(dtypes))
    x = features(generator, draw(st.sampled_from(kinds)), shape).to(dtype)
    x = lay_out(x, draw(st.sampled_from(LAYOUTS)))

    def number(*size):
        values = torch.randn(size, generator=generator, dtype=torch.float64)
        # As under autocast: parameters stay in float32.
        return values.to(torch.float32 if dtype in HALF else dtype)

    return x, groups, number, draw(st.sampled_from(LAYOUTS[:4]))


@settings(deadline=None, max_examples=150)
@given(
    cases((torch.float64,), KINDS[:5]),
    st.sampled_from(SIMILARITIES),
    st.booleans(),
    st.booleans(),
    st.sampled_from(FORMS),
)
def test_prm(case, similarity, encoding, normalization, form):
    x, groups, number, layout = case
    parameters = [number(groups) for _ in range(4)]
    parameters += [number(2), number()] if encoding else [None, None]
    if not normalization:
        parameters[2] = parameters[2] / (1 + x.square().sum(1).max())
    inputs = (x, *parameters, similarity, normalization)
    cotangent = torch.linspace(-1, 1.5, x.numel(), dtype=x.dtype).view(x.shape)
    cotangent = lay_out(cotangent, layout)
    # If the similarity is constant but for rounding errors, Eq. 7 divides these errors
    # by its 1e-5. The similarity of a constant map is constant, and so is the cosine of
    # single channels (1 or -1). Two positions have the same L1 distance to their mean.
    constant = (x.amax((2, 3)) == x.amin((2, 3))).all(1).any()
    constant |= similarity == 'cosine' and x.shape[1] == groups
    constant |= similarity == 'l1' and x[0, 0].numel() == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, form)
        results = evaluate(ops.prm, inputs, cotangent)
    expected = evaluate(reference.prm, inputs, cotangent)
    check_close(results, expected, 1e-5 if constant else 1e-7)


def check(name, inputs, form, layout, cancelling=0):
    """An operator against the reference in float64, and in the dtype of x."""
    fast, slow, x = getattr(ops, name), getattr(reference, name), inputs[0]
    doubles = convert(inputs, torch.float64)
    with torch.no_grad():
        shape = slow(*doubles).shape
    # Of one sign, for sums that do not cancel.
    cotangent = torch.linspace(0.5, 1.5, shape.numel()).view(shape).to(x.dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, form)
        ours = evaluate(fast, inputs, lay_out(cotangent, layout))
    assert ours[0].dtype == ours[1].dtype == x.dtype
    comparisons = [(evaluate(slow, doubles, cotangent), BOUNDS[x.dtype])]
    if x.dtype not in HALF:
        comparisons.append((evaluate(slow, inputs, cotangent), 2 * BOUNDS[x.dtype]))
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


def spread(x, groups):
    """How large terms in the gradient through LCT's normalisation are that cancel
    wholly between two channels: a map's size over the spread of its group's means."""
    x = x.double()
    means = x.mean((2, 3)).unflatten(1, (groups, -1))
    deviation = (means.var(2, correction=0) + 1e-5).sqrt()
    sizes = x.abs().sum((2, 3)).unflatten(1, (groups, -1)).amax(2)
    return (sizes / deviation).max()


@settings(deadline=None, max_examples=150)
@given(cases(), st.booleans(), st.booleans(), st.sampled_from(FORMS))
def test_lct(case, normalization, transform, form):
    x, groups, number, layout = case
    c = x.shape[1]
    normalization = normalization and c > groups
    weight, bias = number(c), number(c)
    if not normalization:  # a saturated gate's derivative has no digits left
        weight = weight / (1 + x.double().abs().max().to(weight))
        transform = True
    if not transform:
        weight = bias = None
    inputs = (x, weight, bias, groups, 1e-5, normalization)
    check('lct', inputs, form, layout, spread(x, groups) if normalization else 0)


@settings(deadline=None, max_examples=150)
@given(cases(), st.booleans(), st.integers(0, 5), st.sampled_from(FORMS))
def test_sac(case, softmax, width, form):
    x, k, number, layout = case
    c = x.shape[1]
    d = width or c  # none: the block's own form, with a residual
    # Attention of moderate sharpness, and results that float16 can hold.
    scale = 1 + x.double().abs().max().to(number(1))
    parameters = [number(k, c) / scale, number(k), number(k, c) / scale, number(k)]
    parameters += [number(d, c) / c**2 / 4, number(d)]
    check('sac', (x, *parameters, softmax, not width), form, layout)


@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize('normalization', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, *HALF])
@pytest.mark.parametrize('shape', [(2, 12, 9, 11), (1, 6, 1, 1), (2, 20, 1, 13)])
def test_prm_in_every_dtype(similarity, normalization, dtype, shape):
    x, cotangent = grid(*shape), grid(*shape)
    switches = dict(similarity=similarity, normalization=normalization)
    bound = 2e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for groups in {1, 2, shape[1]}:
        if similarity == 'cosine' and groups == shape[1] and normalization:
            continue  # +-1 up to rounding errors, which Eq. 7 divides by 1e-5
        values = prm_parameters(groups)
        values[2] = values[2] / (1 if normalization else 40)
        doubles = convert([x, *values], torch.float64)
        expected = evaluate(reference.prm, doubles, cotangent, **switches)
        single = evaluate(reference.prm, [x, *values], cotangent, **switches)
        results = evaluate(ops.prm, [x.to(dtype), *values], cotangent, **switches)
        assert results[0].dtype == results[1].dtype == dtype
        check_close(results, expected, bound, single)


# -- large, small and constant features ------------------------------------------------


@every_form
@pytest.mark.parametrize(
    'scale, dtype, bound',
    # Dot products of 1e9, far over float16's largest number. Squares of scores that
    # overflow float32.
    [(2500, torch.float16, 1e-3), (1e12, torch.float32, 1e-4)],
)
def test_prm_of_large_features(form, scale, dtype, bound, monkeypatch):
    monkeypatch.setenv(VARIABLE, form)
    x, cotangent = (scale * grid(2, 16, 10, 12)).to(dtype), grid(2, 16, 10, 12)
    inputs = [x, *prm_parameters(4)]
    doubles = convert(inputs, torch.float64)
    expected = evaluate(reference.prm, doubles, cotangent)
    check_close(evaluate(ops.prm, inputs, cotangent), expected, bound)


@every_form
def test_a_closed_gate_is_zero(form, monkeypatch):
    """Without normalisation, large features close gates entirely."""
    monkeypatch.setenv(VARIABLE, form)
    inputs = [1e12 * torch.randn(1, 4, 3, 5), *[torch.ones(2)] * 4, None, None]
    inputs += ['dot', False]
    for ours, theirs in zip(evaluate(ops.prm, inputs), evaluate(reference.prm, inputs)):
        torch.testing.assert_close(ours, theirs)


@every_form
def test_gradient_of_sacs_attention_far_from_zero(form, monkeypatch):
    # The mean is a thousand times the deviation.
    monkeypatch.setenv(VARIABLE, form)
    inputs = [torch.randn(2, 16, 20, 20) + 1000, *sac_parameters(16, 2)]
    cotangent = torch.randn(2, 16, 20, 20)
    ours = evaluate(ops.sac, inputs, cotangent)[2]
    exact = evaluate(reference.sac, convert(inputs, torch.float64), cotangent)[2]
    assert (ours - exact).norm() < 1e-3 * exact.norm()


def test_the_accuracy_of_lct_does_not_drown_in_a_large_map():
    # 60,000 positions and a mean far from zero, where naive sums lose digits.
    x = torch.randn(1, 4, 200, 300) + 30
    w, b = torch.tensor([1.0, -1, 2, 0.5]), torch.zeros(4)
    exact = reference.lct(x.double(), w.double(), b.double(), 1)
    for layout in ('contiguous', 'channels_last'):
        y = ops.lct(lay_out(x, layout), w, b, 1)
        torch.testing.assert_close(y.double(), exact, rtol=3e-3, atol=0)


@pytest.mark.parametrize('dtype', HALF)
def test_half_precision_is_accumulated_in_float32(dtype):
    # Features of 1e3: their sums overflow float16 and drown in bfloat16.
    x = (1e3 * torch.rand(2, 128, 12, 10)).to(dtype)
    maps = torch.randn(2, 4, 12, 10)
    half, exact = (ops.sac_context(v, maps, maps) for v in (x, x.double()))
    assert half.dtype == dtype
    error = (half.double() - exact).abs().max() / exact.abs().max()
    assert error < torch.finfo(dtype).eps


def test_cosine_of_tiny_features():
    # Under the floor of Eq. 2 the norms are constants.
    x = 1e-5 * torch.randn(1, 4, 3, 5, dtype=torch.float64)
    inputs = [x, *[torch.ones(2, dtype=torch.float64)] * 4, None, None]
    inputs += ['cosine', False]
    ours, theirs = (evaluate(f, inputs)[1] for f in (ops.prm, reference.prm))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize('value', [0.0, 1.0, -37.5])
def test_prm_of_a_constant_map_has_the_bare_gate(similarity, value):
    # Without the encoding S is constant, its deviation zero: the gate is
    # sigmoid(bias), and no gradient may be infinite or NaN.
    x, values = torch.full((2, 8, 5, 3), value), prm_parameters(4, encoding=False)
    y, *gradients = evaluate(ops.prm, [x, *values], similarity=similarity)
    expected = x * values[3].sigmoid().repeat_interleave(2)[:, None, None]
    torch.testing.assert_close(y, expected)
    assert all(g.isfinite().all() for g in gradients)


def test_prm_of_zeros_with_encoding_has_finite_gradients():
    x = torch.zeros(2, 8, 5, 3)
    y, *gradients = evaluate(ops.prm, [x, *prm_parameters(4)], x + 1)
    assert not y.any()
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize('sigma', [0.0, 1e-12, 0.3, 5.0])
def test_sign_of_sigma_does_not_matter_and_zero_is_finite(sigma):
    inputs = [torch.randn(1, 4, 5, 6), *prm_parameters(2)[:-1]]
    positive, negative = (
        evaluate(ops.prm, [*inputs, torch.tensor(sign * sigma)]) for sign in (1, -1)
    )
    assert all(t.isfinite().all() for t in (*positive, *negative))
    assert torch.equal(positive[0], negative[0])


# -- ties and NaN ----------------------------------------------------------------------

# The gate is larger where the distance to the query is smaller.
NEAR = [*(torch.ones(1), torch.zeros(1)) * 2, torch.ones(2), torch.tensor(0.5)]


def test_query_is_the_first_of_equals():
    # The maximum stands at positions 1 and 4; only the distance to 1 may count.
    x = torch.zeros(1, 1, 1, 6)
    x[..., 1] = x[..., 4] = 2.0
    gate = ops.prm(x, *NEAR) / x
    assert gate[..., 1] > gate[..., 4]


@pytest.mark.parametrize('form', [ops.prm, reference.prm])
@pytest.mark.parametrize('k', [1, 7, 8, 20, 32])
def test_equal_positions_tie_wherever_they_stand(form, k):
    # 950 positions: not a multiple of what processors add at a time.
    x = torch.randn(1, k, 1, 1).abs().expand(1, k, 25, 38).contiguous()
    gate = form(x, *NEAR) / x
    assert gate[0, 0].flatten().argmax() == 0


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_nan_stays_in_its_slab_of_prm_and_fills_it(similarity):
    x = grid(2, 8, 5, 6)
    x[1, 3, 2, 2] = float('nan')
    cotangent = torch.ones_like(x)
    y, gx, *_ = evaluate(
        ops.prm, [x, *prm_parameters(4)], cotangent, similarity=similarity
    )
    for t in (y, gx):
        slabs = t.unflatten(1, (4, 2)).isnan()
        assert slabs[1, 1].all()
        slabs[1, 1] = False
        assert not slabs.any()


def test_nan_passes_through_lct_and_sac():
    x = torch.randn(1, 4, 3, 3)
    x[0, 0, 1, 1] = float('nan')
    assert ops.lct(x, torch.ones(4), torch.zeros(4), 2).isnan().any()
    assert ops.sac(x, *sac_parameters(4, 2)).isnan().any()


# -- other ways to differentiate -------------------------------------------------------

FLAT_INPUTS = {
    'prm': [torch.ones(2)] * 4,
    'lct': [torch.ones(4), torch.ones(4), 2],
    'sac': [torch.ones(s) for s in ((1, 4), 1, (1, 4), 1, (4, 4), 4)],
}


@pytest.mark.parametrize('call', list(FLAT_INPUTS))
def test_transforms_of_torch_func_and_forward_mode(call, monkeypatch):
    x, tangent = torch.randn(2, 1, 4, 3, 3, dtype=torch.float64)
    inputs = convert(FLAT_INPUTS[call], torch.float64)

    def total(x):
        return getattr(ops, call)(x, *inputs).square().sum()

    gradient = torch.func.grad(total)(x)
    _, along = torch.func.jvp(total, (x,), (tangent,))
    with forward_ad.dual_level():
        dual = total(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, along)
    monkeypatch.setenv(VARIABLE, 'reference')
    x.requires_grad_()
    (expected,) = torch.autograd.grad(total(x), x)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(along, (expected * tangent).sum())
