"""What is recorded of a block, against its output and against NumPy in float64."""

import math

import numpy as np
import pytest
import torch
from mmcv.cnn.bricks import ContextBlock
from torch import nn

from prm_mmdet import LCT, PRM, SAC
from prm_mmdet.inspection.capture import COSINE_BINS, Moments, capture
from prm_mmdet.inspection.quantities import contribution_rate
from prm_mmdet.plugins import BAM, CBAM, GE, SE, SGE, SK, DoubleAttention

C = 16


def network(*blocks):
    """A stem of stride 2 and blocks with weights that look trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, C, 3, 2, 1), *blocks)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.5)
    return model


def every_block():
    return [
        *(PRM(C, groups=4), PRM(C, groups=4, position_encoding=False)),
        *(LCT(C, groups=4), SE(C, 4), SE(C, 4, groups=4), CBAM(C, 4), BAM(C, 4)),
        *(GE(C), SGE(C, groups=4), SK(C, groups=4, reduction=4)),
        *(SAC(C, 4), SAC(C, 4, softmax=True), SAC(C, 4, context=False)),
        SAC(C, 4, transform='bottleneck'),
        ContextBlock(C, 0.25, fusion_types=('channel_mul', 'channel_add')),
        ContextBlock(C, 0.25, pooling_type='avg', fusion_types=('channel_mul',)),
        DoubleAttention(C, 4),
    ]


def seen(block, batches=((2, 10, 14), (1, 6, 9)), images=0):
    """A block's record, and (inputs, outputs) of each batch in float64."""
    model, passes = network(block), []
    model.eval()
    block.register_forward_hook(
        lambda _, x, y: passes.append((x[0].double().numpy(), y.double().numpy()))
    )
    with torch.no_grad(), capture(model, images) as records:
        for b, h, w in batches:
            model(torch.randn(b, 3, h, w))
    assert len(records) == 1 and records[0].images == sum(b for b, *_ in batches)
    return records[0], passes


def flat(arrays):
    return np.concatenate([a.reshape(-1) for a in arrays])


@pytest.mark.parametrize(
    'block',
    [
        *(PRM(C, groups=4), SGE(C, groups=4)),
        *(LCT(C, groups=4), GE(C), SE(C, 4), SE(C, 4, groups=4)),
    ],
)
def test_gates_are_output_over_input(block):
    record, passes = seen(block)
    gates = [y / x for x, y in passes]
    if not isinstance(block, (PRM, SGE)):  # a gate for each channel
        gates = [gate.mean((2, 3)) for gate in gates]
    (gate,), gates = record.gates.values(), flat(gates)
    assert gate.mean == pytest.approx(gates.mean(), abs=1e-5)
    assert gate.std == pytest.approx(gates.std(), abs=1e-5)
    outside = ((gates < 0.05) | (gates > 0.95)).mean()
    assert gate.saturated == pytest.approx(outside, abs=2 / gates.size)


def test_gates_of_the_others():
    record, passes = seen(BAM(C, 4))
    gates = flat([y / x - 1 for x, y in passes])
    assert record.gates[''].mean == pytest.approx(gates.mean(), abs=1e-5)
    record, passes = seen(CBAM(C, 4))
    products = [y / x for x, y in passes]
    for product in products:  # of a channel's gate and a position's
        assert np.linalg.matrix_rank(product[0].reshape(C, -1), tol=1e-4) == 1
    channel = record.channel_gate
    assert np.corrcoef(channel, sum(p.mean((0, 2, 3)) for p in products))[0, 1] > 0.8
    assert 0 < record.gates['positions'].mean < 1
    assert record.gates['channels'].mean == pytest.approx(channel.mean(), abs=1e-6)
    record, passes = seen(
        ContextBlock(C, 0.25, pooling_type='avg', fusion_types=('channel_mul',))
    )
    gates = np.concatenate([(y / x).mean((2, 3)) for x, y in passes])
    assert record.channel_gate == pytest.approx(gates.mean(0), abs=1e-5)


def test_share_of_the_dense_branch():
    record, passes = seen(SK(C, groups=4, reduction=4))
    shares = []
    for x, y in passes:
        with torch.no_grad():
            x = torch.from_numpy(x).float()
            dense, grouped = record.block.dense(x), record.block.grouped(x)
        dense, grouped = dense.double().numpy(), grouped.double().numpy()
        far = np.abs(dense - grouped) > 0.1  # y = share dense + (1 - share) grouped
        share = np.where(far, (y - grouped) / np.where(far, dense - grouped, 1), np.nan)
        shares.append(np.nanmean(share, (2, 3)))
    assert record.gates['dense'].mean == pytest.approx(
        np.nanmean(np.concatenate(shares)), abs=1e-4
    )


def test_contexts_are_means_over_positions_and_images():
    record, passes = seen(LCT(C, groups=4))
    for name, arrays in zip(('context_in', 'context_out'), zip(*passes)):
        means = np.concatenate([a.mean((2, 3)) for a in arrays])
        assert getattr(record, name) == pytest.approx(means.mean(0), abs=1e-6)


def test_query_points_and_encoding():
    record, passes = seen(PRM(C, groups=4), images=3)
    theta, sigma = record.block.theta.tolist(), abs(record.block.sigma.item())
    images = [image for x, _ in passes for image in x]
    assert len(record.maps) == 3
    for x, maps in zip(images, record.maps):
        _, h, w = x.shape
        density = np.zeros((h, w))
        for group, (row, column) in zip(x.reshape(4, -1, h, w), maps.query):
            mean = group.mean(0)
            assert mean[row, column] == pytest.approx(mean.max(), abs=1e-5)
            for i, j in np.ndindex(h, w):
                for t, d in zip(theta, (abs(i - row), abs(j - column))):
                    exponent = -0.5 * (t * d / sigma) ** 2
                    density[i, j] += math.exp(exponent) / sigma
        density /= 4 * 2 * math.sqrt(2 * math.pi)
        assert maps.encoding == pytest.approx(density, rel=1e-4, abs=1e-6)
    record, _ = seen(PRM(C, groups=4, position_encoding=False), images=1)
    assert record.maps[0].query.any() and record.maps[0].encoding is None


def softmax(a, axis):
    e = np.exp(a - a.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize('block', [SAC(C, 4, softmax=True), DoubleAttention(C, 4)])
def test_attention_and_similarity_of_weights(block):
    record, passes = seen(block, images=9)
    maps = dict(block.named_children())
    attention = maps.get('attention', maps.get('gather'))
    customization = maps.get('customization', maps.get('distribute'))
    expected = {False: 0, True: 0}
    images = [image.reshape(C, -1) for x, _ in passes for image in x]
    for x, m in zip(images, record.maps):
        weight, bias = (p.detach().double().numpy() for p in attention.parameters())
        alpha = softmax(weight[:, :, 0, 0] @ x + bias[:, None], 1)
        assert m.attention.reshape(4, -1) == pytest.approx(alpha, abs=1e-5)
        weight, bias = (p.detach().double().numpy() for p in customization.parameters())
        beta = weight[:, :, 0, 0] @ x + bias[:, None]
        for normalised, vectors in ((False, beta), (True, softmax(beta, 0))):
            unit = vectors / np.linalg.norm(vectors, axis=0)
            pairs = (unit.T @ unit)[np.triu_indices(x.shape[1], 1)]
            expected[normalised] += np.histogram(pairs.clip(-1, 1), COSINE_BINS)[0]
    for normalised, counts in expected.items():
        found = record.cosines[normalised]
        assert found.sum() == counts.sum()
        assert np.abs(np.cumsum(found - counts)).max() <= 3  # at edges of bins
    assert record.contexts == 4


@pytest.mark.parametrize('block', [SAC(C, 4), SAC(C, 4, context=False)])
def test_what_is_added(block):
    record, passes = seen(block, images=9)
    images = [(a, b) for x, y in passes for a, b in zip(x, y)]
    for (x, y), maps in zip(images, record.maps):
        assert maps.norm_in == pytest.approx(np.sqrt((x**2).sum(0)), rel=1e-5)
        expected = np.sqrt(((y - x) ** 2).sum(0))
        assert maps.norm_added == pytest.approx(expected, rel=1e-4, abs=1e-5)
    before, added = (flat(a) for a in zip(*((x, y - x) for x, y in images)))
    ratio = np.linalg.norm(added) / np.linalg.norm(before)
    assert record.added == pytest.approx(ratio, rel=1e-5)


def test_many_positions_are_sampled():
    record, _ = seen(SAC(C, 4), batches=[(1, 130, 130)])
    assert 0 < record.cosines[False].sum() < 512**2 / 2


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('low', [False, True])
def test_nothing_changes_to_the_bit(training, low):
    model = network(*every_block()).train(training)
    images = torch.randn(3, 3, 16, 20)
    results = []
    for captured in (False, True):
        state = {k: v.clone() for k, v in model.state_dict().items()}
        model.zero_grad()
        hooks = capture(model, 2) if captured else torch.enable_grad()
        with hooks as records, torch.autocast('cpu', torch.bfloat16, enabled=low):
            y = model(images)
        y.float().square().mean().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([y, *gradients, *model.state_dict().values()])
        results[-1] = [t.clone() for t in results[-1]]
        model.load_state_dict(state)
    assert len(records) == len(every_block())
    assert all(torch.equal(a, b) for a, b in zip(*results))
    assert len(results[0]) == len(results[1])


@pytest.mark.parametrize('batch', [1, 2])
def test_normalisation_is_not_synchronised(batch, monkeypatch):
    exchanges = []

    class Synchronised(nn.BatchNorm2d):
        def forward(self, x):
            exchanges.append(self.training)
            return x * self.weight[:, None, None]  # takes one image, as with others'

    monkeypatch.setattr(nn, 'BatchNorm2d', Synchronised)
    model = network(BAM(C, 4)).train()
    model(torch.randn(batch, 3, 8, 8))
    assert exchanges == [True] * 4
    with capture(model) as records:
        model(torch.randn(batch, 3, 8, 8))
    assert exchanges == [True] * 8
    assert all('forward' not in vars(m) for m in model.modules())
    assert 0 < records[0].gates[''].mean < 1


def hooks_of(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
    )


def test_no_hook_is_left():
    model = network(*every_block())
    with capture(model):
        assert hooks_of(model) > len(every_block())
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError, match='expected'), capture(model):
        model(torch.randn(1, 5, 8, 8))
    assert hooks_of(model) == 0


@pytest.mark.parametrize('way', ['function', 'method', 'forward'])
@pytest.mark.parametrize('before', [True, False])
def test_a_compiled_model_runs_uncompiled_meanwhile(way, before):
    plain = network(PRM(C, groups=4), SAC(C, 4)).eval()
    images, calls = torch.randn(2, 3, 8, 8), []

    def backend(graph, inputs):
        def run(*arguments):
            calls.append(1)
            return graph(*arguments)

        return run

    model = plain
    if way == 'function':
        model = torch.compile(plain, backend=backend)
    elif way == 'method':
        plain.compile(backend=backend)
    else:  # as MMEngine's Runner does
        plain.forward = torch.compile(plain.forward, backend=backend)
    with torch.no_grad():
        if before:
            model(images)
        compiled = len(calls)
        with capture(model, 1) as records:
            model(images)
        assert len(calls) == compiled
        assert [r.name for r in records] == ['1', '2'] and records[0].stage == 'c1'
        model(images)
        assert len(calls) > compiled and records[0].images == 2
    torch._dynamo.reset()


def test_memory_is_bounded():
    model = network(PRM(C, groups=4), SAC(C, 4)).eval()
    with torch.no_grad(), capture(model, images=3) as records:
        for _ in range(4):
            model(torch.randn(2, 3, 8, 8))
    for record in records:
        assert record.images == 8 and len(record.maps) == 3
        assert record.stage == 'c1'


class Calling(nn.Module):
    """A model that calls its block in another way than a sequence of layers."""

    def __init__(self, block, call):
        super().__init__()
        self.block, self.call = block, call

    def forward(self, x):
        return self.call(self.block, x)


def test_a_block_that_runs_on_several_levels_keeps_maps_of_the_first():
    model = Calling(PRM(C, groups=4), lambda f, x: [f(x), f(x[..., ::2, ::2])])
    with torch.no_grad(), capture(model, images=2) as records:
        for _ in range(2):
            model(torch.randn(1, C, 8, 8))
    assert [m.encoding.shape for m in records[0].maps] == [(8, 8), (8, 8)]


def test_a_block_that_runs_on_regions_keeps_no_maps():
    model = Calling(SAC(C, 4), lambda f, x: f(x.expand(5, -1, -1, -1)[..., :4, :4]))
    with torch.no_grad(), capture(model, images=2) as records:
        model(torch.randn(1, C, 8, 8))
    assert records[0].images == 5 and not records[0].maps


def test_a_block_called_by_keyword():
    layers = network(LCT(C, groups=4))
    model = Calling(layers, lambda f, x: f[1](x=f[0](input=x)))
    with capture(model) as records:
        model(x=torch.randn(2, 3, 8, 8))
    assert records[0].images == 2 and records[0].stage == 'c1'


def test_a_wrapped_model():
    inner = network(LCT(C, groups=4))
    model = nn.DataParallel(inner)
    with capture(model) as records:
        model(torch.randn(2, 3, 8, 8))
        inner(torch.randn(1, 3, 8, 8))  # as a wrapper's test_step does
    assert records[0].name == '1' and records[0].stage == 'c1'
    assert records[0].images == 3 and hooks_of(model) == 0


def test_moments_do_not_cancel():
    moments = Moments()
    pieces = [torch.randn(n, dtype=torch.float64) + 1e6 for n in (1, 7, 100)]
    for piece in pieces:
        moments.update(piece)
    values = torch.cat(pieces).numpy()
    assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
    assert moments.std == pytest.approx(values.std(), rel=1e-6)


def test_contribution_rate():
    block = PRM(8, groups=4)
    assert contribution_rate(block) == 0
    block.alpha.data = torch.tensor([1.0, -3.0, 0.0, 0.0])
    block.beta.data = torch.tensor([1.0, 1.0, -2.0, 0.0])
    assert contribution_rate(block) == pytest.approx((0.5 + 0.75 + 0 + 0) / 4)


def test_refusals():
    with pytest.raises(ValueError, match='Linear has none of the blocks'):
        capture(nn.Linear(1, 1)).__enter__()
    model = network(SAC(C, 4))
    model[1].attention.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r'^1: a convolution has hooks'):
        capture(model).__enter__()
    model = network(PRM(C, groups=4))
    with capture(model), pytest.raises(RuntimeError, match='Call the whole model'):
        model[1](torch.randn(1, C, 4, 4))
