"""What the modules add to the operators: parameters, switches, dtypes, layouts."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prm_mmdet import LCT, PRM, SAC
from prm_mmdet.ops import reference


def randomize(block):
    """A trained-looking block: fresh ones have gates that hide their inputs."""
    generator = torch.Generator().manual_seed(1)
    for parameter in block.parameters():
        parameter.data.normal_(generator=generator)
    return block


def blocks(channels=128):
    torch.manual_seed(0)
    return [
        PRM(channels, groups=8),
        PRM(channels, groups=8, similarity='l1', normalization=False),
        PRM(channels, groups=8, similarity='cosine', position_encoding=False),
        LCT(channels, groups=8),
        LCT(channels, groups=8, normalization=False),
        LCT(channels, groups=8, transform=False),
        SAC(channels),
        SAC(channels, softmax=True),
        SAC(channels, transform='bottleneck'),
        SAC(channels, context=False),
    ]


def label(block):
    return repr(block).replace('\n', '').partition('(attention)')[0]


every_block = pytest.mark.parametrize('block', blocks(), ids=label)


@pytest.mark.parametrize('channels', [64, 256, 2048])
def test_parameter_counts(channels):
    def count(block):
        return sum(p.numel() for p in block.parameters())

    assert count(PRM(channels)) == 4 * 64 + 3
    assert count(PRM(channels, position_encoding=False)) == 4 * 64
    assert count(LCT(channels, groups=32)) == 2 * channels
    assert count(LCT(channels, groups=32, transform=False)) == 0
    k = max(1, channels // 32)
    context = 2 * (k * channels + k)
    assert count(SAC(channels)) == context + channels**2 + channels
    assert count(SAC(channels, context=False)) == channels**2 + channels
    h = channels // 16
    bottleneck = channels * h + h + 2 * h + h * channels + channels
    assert count(SAC(channels, transform='bottleneck')) == context + bottleneck
    assert SAC(16).attention.out_channels == 1  # K = max(1, C // l)


def test_state_dict_names_are_those_promised():
    assert set(PRM(64).state_dict()) == {
        *('alpha', 'beta', 'weight', 'bias', 'theta', 'sigma')
    }
    assert set(LCT(128).state_dict()) == {'weight', 'bias'}
    layers = ('attention', 'customization', 'transform')
    expected = {f'{layer}.{p}' for layer in layers for p in ('weight', 'bias')}
    assert set(SAC(64).state_dict()) == expected


def test_bottleneck_is_convolution_norm_relu_convolution():
    first, norm, relu, last = SAC(32, transform='bottleneck').transform
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(relu, nn.ReLU)
    assert first.kernel_size == last.kernel_size == (1, 1)
    assert first.out_channels == norm.num_features == last.in_channels == 2


def test_initial_values():
    prm, lct = PRM(128), LCT(128, init_weight=0.5, init_bias=-1)
    assert prm.similarity == 'dot' and prm.normalization and lct.groups == 64
    assert not prm.alpha.any() and (prm.beta == 1).all()
    assert not prm.weight.any() and (prm.bias == 1).all() and prm.sigma == 1
    theta = torch.stack([PRM(64).theta for _ in range(200)])
    assert 0 <= theta.min() < 0.05 and 0.95 < theta.max() < 1
    assert (lct.weight == 0.5).all() and (lct.bias == -1).all()
    fresh = LCT(128)
    assert not fresh.weight.any() and (fresh.bias == 1).all()


@every_block
def test_shapes_without_data(block):
    x = torch.empty(2, 128, 5, 6, device='meta')
    assert copy.deepcopy(block).to('meta')(x).shape == x.shape


@every_block
def test_module_computes_the_reference(block):
    block = randomize(copy.deepcopy(block)).double().eval()
    x = torch.randn(2, 128, 5, 6, dtype=torch.float64)
    if isinstance(block, PRM):
        names = ('alpha', 'beta', 'weight', 'bias', 'theta', 'sigma')
        parameters = [getattr(block, name) for name in names]
        switches = dict(similarity=block.similarity, normalization=block.normalization)
        expected = reference.prm(x, *parameters, **switches)
    elif isinstance(block, LCT):
        expected = reference.lct(
            x, block.weight, block.bias, 8, normalization=block.normalization
        )
    else:
        # What the block adds before its transform is the reference's Y, which the
        # reference yields with an identity for rho, less the residual.
        y = x
        if block.attention is not None:
            layers = []
            for layer in (block.attention, block.customization):
                layers += [layer.weight.flatten(1), layer.bias]
            identity = torch.eye(128, dtype=x.dtype)
            none = torch.zeros(128, dtype=x.dtype)
            y = reference.sac(x, *layers, identity, none, block.softmax) - x
        expected = x + block.transform(y)
    torch.testing.assert_close(block(x), expected, rtol=1e-7, atol=1e-7)
    y = block(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=1e-7, atol=1e-7)
    assert y.is_contiguous(memory_format=torch.channels_last)


@every_block
@pytest.mark.parametrize('size', [(1, 1), (1, 7), (5, 1), (13, 9)])
def test_odd_sizes(block, size):
    block = randomize(copy.deepcopy(block))
    x = torch.randn(2, 128, *size, requires_grad=True)
    y = block(x)
    assert y.shape == x.shape
    for gradient in torch.autograd.grad(y.square().sum(), [x, *block.parameters()]):
        assert gradient.isfinite().all()


@every_block
def test_autocast(block):
    block = randomize(copy.deepcopy(block)).eval()
    x = torch.randn(2, 128, 9, 8).bfloat16().requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = block(x)
        y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() for p in [x, *block.parameters()])
    exact = block(x.float())
    error = (y.float() - exact).norm() / exact.norm()
    # Convolutions run in bfloat16 where one follows; what else is computed must not.
    convolves = isinstance(block, SAC) and (
        block.attention is None or not isinstance(block.transform, torch.nn.Conv2d)
    )
    assert error < (0.02 if convolves else 0.004)


@every_block
def test_recomputation_gives_the_same_gradients(block):
    block = randomize(copy.deepcopy(block)).eval()
    x = torch.randn(2, 128, 6, 5, requires_grad=True)
    leaves = [x, *block.parameters()]
    plain = torch.autograd.grad(block(x).square().sum(), leaves)
    saved = checkpoint(block, x, use_reentrant=False).square().sum()
    for a, b in zip(plain, torch.autograd.grad(saved, leaves)):
        torch.testing.assert_close(a, b)


@every_block
def test_in_place_addition_to_the_output_keeps_the_gradients(block):
    # MMDetection's bottleneck adds its shortcut to what the plugin returns in place.
    block = randomize(copy.deepcopy(block)).eval()
    x = torch.randn(2, 128, 4, 5, requires_grad=True)
    leaves = [x, *block.parameters()]
    y = block(x)
    y += 1
    added = torch.autograd.grad(y.square().sum(), leaves)
    apart = torch.autograd.grad((block(x) + 1).square().sum(), leaves)
    for a, b in zip(added, apart):
        torch.testing.assert_close(a, b)


@every_block
def test_compiles_in_one_graph(block):
    block = randomize(copy.deepcopy(block)).eval()
    compiled = torch.compile(block, fullgraph=True, backend='aot_eager')
    x = torch.randn(2, 128, 6, 5, requires_grad=True)
    leaves = [x, *block.parameters()]
    results = []
    for function in (block, compiled):
        y = function(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    torch._dynamo.reset()
    for plain, joined in zip(*results):
        torch.testing.assert_close(joined, plain)


@pytest.mark.parametrize('transform', ['conv', 'bottleneck'])
@pytest.mark.parametrize('context', [True, False])
def test_a_fresh_sac_is_the_identity(transform, context):
    block = SAC(64, transform=transform, context=context)
    x = torch.randn(2, 64, 6, 7)
    assert torch.equal(block(x), x)
    block.init_weights()
    assert torch.equal(block(x), x)
    y = randomize(block)(x)
    assert not torch.equal(y, x)


def test_repr_names_the_switches():
    assert "similarity='l1'" in repr(PRM(64, similarity='l1'))
    assert 'groups=32' in repr(LCT(64, groups=32))
    assert "reduction=8, softmax=True, transform='conv'" in repr(
        SAC(64, reduction=8, softmax=True)
    )


class _Adapted(nn.Conv2d):
    """As adapters are: a layer with something of its own beside the weight."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize('transform', ['conv', 'bottleneck'])
def test_sac_calls_layers_that_are_more_than_their_weights(transform):
    block = SAC(8, reduction=4, transform=transform).eval()
    last = block.transform if transform == 'conv' else block.transform[-1]
    nn.init.normal_(last.weight)
    x = torch.randn(2, 8, 5, 6)
    plain = block(x)

    # A hook that does nothing leaves the values, and is called.
    calls = []
    handle = block.attention.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(block(x), plain)
    assert calls
    handle.remove()

    doubled = copy.deepcopy(block)
    doubled.customization.weight.data *= 2
    doubled.customization.bias.data *= 2
    adapted = _Adapted(8, 2, 1)
    adapted.load_state_dict(block.customization.state_dict())
    block.customization = adapted
    torch.testing.assert_close(block(x), doubled(x))
    block.attention.bias = None
    assert block(x).shape == x.shape


def test_sac_with_an_older_weight_norm_trains_on():
    block = SAC(8, reduction=4)
    torch.nn.utils.weight_norm(block.attention)
    nn.init.normal_(block.transform.weight)
    for _ in range(2):
        block(torch.randn(1, 8, 3, 4)).square().sum().backward()
    assert block.attention.weight_v.grad.abs().sum() > 0


def test_defaults_are_those_of_the_papers():
    x = torch.randn(1, 128, 5, 6)
    for block in (PRM, LCT, SAC):
        assert block(128).in_channels == 128
    prm, lct, sac = (randomize(block(128)) for block in (PRM, LCT, SAC))
    names = ('alpha', 'beta', 'weight', 'bias', 'theta', 'sigma')
    parameters = [getattr(prm, name) for name in names]
    assert prm.alpha.shape == (64,)
    torch.testing.assert_close(
        prm(x), reference.prm(x, *parameters, similarity='dot', normalization=True)
    )
    torch.testing.assert_close(lct(x), reference.lct(x, lct.weight, lct.bias, 64))
    assert sac.attention.out_channels == 4
    layers = (sac.attention, sac.customization, sac.transform)
    parameters = [p for m in layers for p in (m.weight.flatten(1), m.bias)]
    expected = reference.sac(x, *parameters)
    torch.testing.assert_close(sac(x), expected, rtol=1e-3, atol=1e-2)


def permuted(x):
    order = torch.randperm(x[0, 0].numel(), generator=torch.Generator().manual_seed(2))
    return x.flatten(2)[..., order].view_as(x)


def test_prm_sees_positions_only_through_its_encoding():
    x = torch.randn(2, 64, 6, 7)
    without = randomize(PRM(64, groups=8, position_encoding=False))
    torch.testing.assert_close(without(permuted(x)), permuted(without(x)))
    with_encoding = randomize(PRM(64, groups=8))
    moved = with_encoding(permuted(x))
    assert (moved - permuted(with_encoding(x))).abs().max() > 0.01


def test_lct_gate_depends_on_the_means_alone():
    block = randomize(LCT(64, groups=8))
    x, other = torch.randn(2, 2, 64, 6, 7)
    other += (x - other).mean((2, 3), keepdim=True)  # another map of the same means
    torch.testing.assert_close(block(x) / x, block(other) / other, rtol=1e-3, atol=0)
    other[:, 0] += 1
    assert ((block(other) / other) - (block(x) / x)).abs().max() > 0.01
