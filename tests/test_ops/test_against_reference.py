"""The operators against the reference, values and gradients, in float64."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

from prm_mmdet import ops
from prm_mmdet.ops import reference
from prm_mmdet.ops.backend import VARIABLE
from prm_mmdet.ops.kernels import LIBRARY

SIMILARITIES = ('dot', 'l1', 'cosine')
# The compiled kernels, if they were built, and the fallback.
FORMS = ['cpp', 'torch'] if LIBRARY is not None else ['torch']


def features(generator, kind, shape):
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == 'ties':  # few distinct values: many positions share the maximum
        return x.round()
    if kind == 'sparse':  # as after a ReLU, with whole positions at zero
        return x.clamp(min=0) * (x.sum(1, keepdim=True) > 0)
    if kind == 'large':
        return x * 1e4
    if kind == 'negative':
        return -x.abs() - 1
    return x


LAYOUTS = {
    'contiguous': lambda x: x,
    'channels_last': lambda x: x.to(memory_format=torch.channels_last),
    'transposed': lambda x: x.mT.contiguous().mT,
    'every second': lambda x: x.repeat_interleave(2, 3).repeat_interleave(2, 1)[
        :, ::2, :, ::2
    ],
    'expanded': lambda x: x[:1].expand_as(x),
}


@st.composite
def cases(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    groups, k = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = (
        draw(st.integers(1, 3)),
        groups * k,
        draw(st.integers(1, 7)),
        draw(st.integers(1, 7)),
    )
    kind = draw(st.sampled_from(['normal', 'ties', 'sparse', 'large', 'negative']))
    x = features(generator, kind, shape)
    x = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](x)

    def number(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    return x, groups, number


def compare(fast, slow, x, parameters, tolerance=1e-7):
    """Same values and same gradients for a random weighting of the output."""
    results = []
    for function in (fast, slow):
        inputs = [
            None if t is None else t.detach().requires_grad_() for t in (x, *parameters)
        ]
        y = function(*inputs)
        cotangent = torch.linspace(-1, 1.5, y.numel(), dtype=y.dtype).view_as(y)
        learned = [t for t in inputs if t is not None]
        results.append([y, *torch.autograd.grad(y, learned, cotangent)])
    # Sums over positions cancel, that of SAC's attention bias wholly: errors are
    # relative to the largest element, and to a millionth of the largest of all.
    largest = max(t.abs().max() for t in results[1])
    for ours, theirs in zip(*results):
        assert ours.shape == theirs.shape
        scale = torch.maximum(theirs.abs().max(), 1e-6 * largest + 1e-3)
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)


@settings(deadline=None, max_examples=150)
@given(
    cases(),
    st.sampled_from(SIMILARITIES),
    st.booleans(),
    st.booleans(),
    st.sampled_from(FORMS),
)
def test_prm(case, similarity, encoding, normalization, form):
    x, groups, number = case
    parameters = [number(groups) for _ in range(4)]
    parameters += [number(2), number()] if encoding else [None, None]
    switches = dict(similarity=similarity, normalization=normalization)
    if not normalization:
        parameters[2] = parameters[2] / (1 + x.square().sum(1).max())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, form)
        compare(
            lambda *t: ops.prm(*t, **switches),
            lambda *t: reference.prm(*t, **switches),
            x,
            parameters,
            # The cosine of single channels is +-1: a similarity that is constant but
            # for rounding errors, which Eq. 7 divides by its 1e-5.
            tolerance=1e-5 if similarity == 'cosine' and x.shape[1] == groups else 1e-7,
        )


@settings(deadline=None, max_examples=100)
@given(cases(), st.booleans(), st.booleans(), st.sampled_from(FORMS))
def test_lct(case, transform, normalization, form):
    x, groups, number = case
    assume(not normalization or x.shape[1] > groups)
    parameters = [number(x.shape[1]) if transform else None for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, form)
        compare(
            lambda *t: ops.lct(*t, groups, normalization=normalization),
            lambda *t: reference.lct(*t, groups, normalization=normalization),
            x,
            parameters,
        )


@settings(deadline=None, max_examples=100)
@given(cases(), st.booleans(), st.integers(0, 5), st.sampled_from(FORMS))
def test_sac(case, softmax, width, form):
    x, k, number = case
    c = x.shape[1]
    # Attention of moderate sharpness, also for large features.
    scale = 1 + x.abs().max()
    d = width or c  # none: the block's own form, with a residual
    parameters = [number(k, c) / scale, number(k), number(k, c), number(k)]
    parameters += [number(d, c), number(d)]
    switches = dict(softmax=softmax, residual=not width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, form)
        compare(
            lambda *t: ops.sac(*t, **switches),
            lambda *t: reference.sac(*t, **switches),
            x,
            parameters,
        )


def leaf(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize('encoding', [True, False])
@pytest.mark.parametrize('normalization', [True, False])
def test_prm_gradcheck(similarity, encoding, normalization):
    torch.manual_seed(3)
    inputs = [leaf(2, 6, 3, 4), leaf(2), leaf(2), leaf(2), leaf(2)]
    if encoding:
        inputs += [leaf(2), leaf()]
    else:
        inputs += [None, None]
    assert torch.autograd.gradcheck(
        lambda *t: ops.prm(*t, similarity=similarity, normalization=normalization),
        inputs,
    )


@pytest.mark.parametrize('normalization', [True, False])
def test_lct_gradcheck(normalization):
    torch.manual_seed(4)
    assert torch.autograd.gradcheck(
        lambda *t: ops.lct(*t, 2, normalization=normalization),
        [leaf(2, 6, 3, 2), leaf(6), leaf(6)],
    )


@pytest.mark.parametrize('softmax', [True, False])
@pytest.mark.parametrize('width', [4, 3])
def test_sac_gradcheck(softmax, width):
    torch.manual_seed(5)
    convolutions = [leaf(3, 4), leaf(3), leaf(3, 4), leaf(3), leaf(width, 4)]
    assert torch.autograd.gradcheck(
        lambda *t: ops.sac(*t, softmax=softmax, residual=width == 4),
        [leaf(2, 4, 3, 2), *convolutions, leaf(width)],
    )


@pytest.mark.parametrize('softmax', [True, False])
def test_sac_context_gradcheck(softmax):
    torch.manual_seed(5)
    assert torch.autograd.gradcheck(
        lambda *t: ops.sac_context(*t, softmax=softmax),
        [leaf(2, 4, 3, 2), leaf(2, 3, 3, 2), leaf(2, 3, 3, 2)],
    )


def prm_parameters(groups, dtype=torch.float32):
    torch.manual_seed(6)
    parameters = [torch.randn(groups) for _ in range(4)]
    parameters += [torch.rand(2), torch.tensor(0.8)]
    return [p.to(dtype).requires_grad_() for p in parameters]


def sac_parameters(c, k):
    torch.manual_seed(6)
    shapes = [(k, c), (k,), (k, c), (k,), (c, c), (c,)]
    return [torch.randn(shape) / shape[-1] for shape in shapes]


@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize('value', [0.0, 1.0, -37.5])
def test_prm_of_a_constant_map_has_the_bare_gate(similarity, value):
    # Without the encoding S is constant, its deviation zero: the gate is
    # sigmoid(bias), and no gradient may be infinite or NaN.
    alpha, beta, weight, bias, _, _ = parameters = prm_parameters(4)
    x = torch.full((2, 8, 5, 3), value, requires_grad=True)
    y = ops.prm(x, alpha, beta, weight, bias, similarity=similarity)
    expected = x * bias.sigmoid().repeat_interleave(2)[:, None, None]
    torch.testing.assert_close(y, expected)
    for gradient in torch.autograd.grad(y.square().sum(), [x, *parameters[:4]]):
        assert gradient.isfinite().all()


def test_prm_of_zeros_with_encoding_has_finite_gradients():
    parameters = prm_parameters(4)
    x = torch.zeros(2, 8, 5, 3, requires_grad=True)
    y = ops.prm(x, *parameters)
    assert not y.any()
    for gradient in torch.autograd.grad((y - 1).square().sum(), [x, *parameters]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize('sigma', [0.0, 1e-12, 0.3, 5.0])
def test_sign_of_sigma_does_not_matter_and_zero_is_finite(sigma):
    *parameters, theta, _ = prm_parameters(2)
    x = torch.randn(1, 4, 5, 6)
    results = []
    for sign in (1, -1):
        s = torch.tensor(sign * sigma, requires_grad=True)
        y = ops.prm(x, *parameters, theta, s)
        gradients = torch.autograd.grad(y.sum(), [*parameters, theta, s])
        assert all(g.isfinite().all() for g in gradients)
        results.append(y)
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_query_is_the_first_of_equals():
    # The maximum stands at positions 1 and 4; only the distance to 1 may count.
    x = torch.zeros(1, 1, 1, 6)
    x[..., 1] = x[..., 4] = 2.0
    one, zero = torch.ones(1), torch.zeros(1)
    inputs = [one, zero, one, zero, torch.ones(2), torch.tensor(0.5)]
    gate = ops.prm(x, *inputs) / x
    assert gate[..., 1] > gate[..., 4]


@pytest.mark.parametrize('form', [ops.prm, reference.prm])
@pytest.mark.parametrize('k', [1, 7, 8, 20, 32])
def test_equal_positions_tie_wherever_they_stand(form, k):
    # 950 positions: not a multiple of what processors add at a time.
    x = torch.randn(1, k, 1, 1).abs().expand(1, k, 25, 38).contiguous()
    one, zero = torch.ones(1), torch.zeros(1)
    inputs = [one, zero, one, zero, torch.ones(2), torch.tensor(0.5)]
    gate = form(x, *inputs) / x
    assert gate[0, 0].flatten().argmax() == 0


FLAT_INPUTS = {
    'prm': [torch.ones(2)] * 4,
    'lct': [torch.ones(4), torch.ones(4), 2],
    'sac': [
        *(torch.ones(1, 4), torch.ones(1)),
        *(torch.ones(1, 4), torch.ones(1)),
        *(torch.ones(4, 4), torch.ones(4)),
    ],
}


@pytest.mark.parametrize('call', list(FLAT_INPUTS))
def test_transforms_of_torch_func_and_forward_mode(call, monkeypatch):
    x, tangent = torch.randn(2, 1, 4, 3, 3, dtype=torch.float64)
    inputs = [t.double() if torch.is_tensor(t) else t for t in FLAT_INPUTS[call]]

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


@pytest.mark.parametrize('form', FORMS)
def test_gradient_of_sacs_attention_far_from_zero(form, monkeypatch):
    # The mean is a thousand times the deviation.
    x = torch.randn(2, 16, 20, 20, dtype=torch.float64) + 1000
    parameters = [p.double() for p in sac_parameters(16, 2)]
    cotangent = torch.randn_like(x)
    gradients = []
    for dtype, function in ((torch.float32, ops.sac), (torch.float64, reference.sac)):
        monkeypatch.setenv(VARIABLE, form)
        leaves = [t.to(dtype).requires_grad_() for t in (x, *parameters)]
        y = function(*leaves)
        gradients.append(torch.autograd.grad(y, leaves[1], cotangent.to(dtype))[0])
    ours, exact = gradients
    assert (ours - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize('form', FORMS)
def test_prm_of_large_features_in_float32(form, monkeypatch):
    # The squares of the scores overflow float32.
    monkeypatch.setenv(VARIABLE, form)
    x = 1e12 * torch.randn(2, 16, 9, 8, dtype=torch.float64)
    cotangent = torch.randn_like(x)
    results = []
    for dtype, function in ((torch.float32, ops.prm), (torch.float64, reference.prm)):
        leaves = [
            t.detach().to(dtype).requires_grad_() for t in (x, *prm_parameters(4))
        ]
        y = function(*leaves)
        results.append([y, *torch.autograd.grad(y, leaves, cotangent.to(dtype))])
    for ours, exact in zip(*results):
        assert (ours - exact).norm() < 1e-4 * exact.norm()


def test_cosine_of_tiny_features():
    # Under the floor of Eq. 2 the norms are constants.
    x = (1e-5 * torch.randn(1, 4, 3, 5, dtype=torch.float64)).requires_grad_()
    values = [torch.ones(2, dtype=torch.float64)] * 4
    g = torch.randn_like(x)
    ours, theirs = (
        torch.autograd.grad(
            f(x, *values, similarity='cosine', normalization=False), x, g
        )[0]
        for f in (ops.prm, reference.prm)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_nan_passes_through():
    x = torch.randn(1, 4, 3, 3)
    x[0, 0, 1, 1] = float('nan')
    assert ops.lct(x, torch.ones(4), torch.zeros(4), 2).isnan().any()
    assert ops.sac(x, *sac_parameters(4, 2)).isnan().any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    # Features of 1e3: their sums overflow float16 and drown in bfloat16.
    torch.manual_seed(7)
    x = (1e3 * torch.rand(2, 128, 12, 10)).to(dtype)
    maps = torch.randn(2, 4, 12, 10)
    half, exact = (ops.sac_context(v, maps, maps) for v in (x, x.double()))
    assert half.dtype == dtype
    error = (half.double() - exact).abs().max() / exact.abs().max()
    assert error < torch.finfo(dtype).eps


def test_a_closed_gate_is_zero(monkeypatch):
    """Without normalisation, large features close gates entirely."""
    x = (1e12 * torch.randn(1, 4, 3, 5)).requires_grad_()
    alpha = torch.ones(2, requires_grad=True)
    values = [alpha, *[torch.ones(2)] * 3]
    results = []
    for backend in ('', 'reference'):
        monkeypatch.setenv('PRM_MMDET_BACKEND', backend)
        y = ops.prm(x, *values, normalization=False)
        results.append([y, *torch.autograd.grad(y.sum(), [x, alpha])])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)
