"""The blocks that the papers compare with, against loops over their equations."""

import functools
import math

import numpy as np
import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.utils import register_all_modules

from prm_mmdet.plugins import BAM, CBAM, GE, LCT, PRM, SAC, SE, SGE, SK, DoubleAttention

register_all_modules()

SE_PLUS = functools.partial(SE, groups=4)
SGE_8 = functools.partial(SGE, groups=8)
SK_4 = functools.partial(SK, groups=4)
PRM_16 = functools.partial(PRM, groups=16)
LCT_16 = functools.partial(LCT, groups=16)
BLOCKS = [SE, SE_PLUS, GE, SGE_8, SK_4, CBAM, BAM, DoubleAttention]


def build(block, channels=32):
    torch.manual_seed(0)
    block = block(channels).double()
    for p in block.parameters():
        p.data.normal_(std=0.5)
    for name, buffer in block.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            buffer.uniform_(0.5, 1.5)
    return block.eval()


def run(layer, y):
    """A layer on one map (C, H, W), or on one vector (C,)."""
    x = torch.from_numpy(y if y.ndim == 3 else y[:, None, None])
    out = layer(x[None])[0].detach().numpy()
    return out if y.ndim == 3 else out[:, 0, 0]


def relu(a):
    return np.maximum(a, 0)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def loop_se(block, x):
    z = x.mean((1, 2))
    if block.groups:
        for v in np.split(z, block.groups):  # views: LCT's Eqs. 2 and 3
            v -= v.mean()
            v /= math.sqrt((v**2).mean() + 1e-5)
    gate = sigmoid(run(block.excite, relu(run(block.squeeze, z))))
    return x * gate[:, None, None]


def loop_ge(block, x):
    return np.stack([m * sigmoid(m.mean()) for m in x])


def loop_sge(block, x):
    out = np.empty_like(x)
    weight, bias = block.weight.detach().numpy(), block.bias.detach().numpy()
    width = len(x) // len(weight)
    for n in range(len(weight)):
        part = x[n * width : (n + 1) * width]
        g = part.mean((1, 2))
        c = np.einsum('chw,c->hw', part, g)
        c = (c - c.mean()) / (math.sqrt(((c - c.mean()) ** 2).mean()) + 1e-5)
        out[n * width : (n + 1) * width] = part * sigmoid(weight[n] * c + bias[n])
    return out


def loop_sk(block, x):
    dense, grouped = (
        relu(run(m.bn, run(m.conv, x))) for m in (block.dense, block.grouped)
    )
    squeezed = run(block.squeeze.conv, (dense + grouped).mean((1, 2)))
    scores = run(block.excite, relu(run(block.squeeze.bn, squeezed)))
    out = np.empty_like(dense)
    for c in range(len(out)):
        first, second = softmax([scores[c], scores[len(out) + c]])
        out[c] = first * dense[c] + second * grouped[c]
    return out


def loop_cbam(block, x):
    score = 0
    for pooled in (x.mean((1, 2)), x.max((1, 2))):
        score = score + run(block.excite, relu(run(block.squeeze, pooled)))
    x = x * sigmoid(score)[:, None, None]
    return x * sigmoid(run(block.spatial, np.stack([x.mean(0), x.max(0)])))


def loop_bam(block, x):
    reduce, reduced, _, expand = block.channel
    channel = run(expand, relu(run(reduced, run(reduce, x.mean((1, 2))))))
    reduce, reduced, _, first, one, _, second, two, _, last = block.spatial
    y = relu(run(reduced, run(reduce, x)))
    y = relu(run(one, run(first, y)))
    y = relu(run(two, run(second, y)))
    return x * (1 + sigmoid(channel[:, None, None] + run(last, y)))


def softmax(values):
    e = [math.exp(v - max(values)) for v in values]
    return [v / sum(e) for v in e]


def loop_double_attention(block, x):
    points = [x[:, i, j] for i, j in np.ndindex(*x.shape[1:])]
    features = [run(block.feature, v) for v in points]
    gathers = [run(block.gather, v) for v in points]
    collected = []
    for n in range(len(gathers[0])):
        weights = softmax([g[n] for g in gathers])
        collected.append(sum(w * f for w, f in zip(weights, features)))
    y = np.empty_like(x)
    for (i, j), v in zip(np.ndindex(*x.shape[1:]), points):
        weights = softmax(list(run(block.distribute, v)))
        mixed = sum(w * c for w, c in zip(weights, collected))
        y[:, i, j] = v + run(block.expand, mixed)
    return y


@pytest.mark.parametrize(
    ('block', 'loop'),
    [
        (SE, loop_se),
        (SE_PLUS, loop_se),
        (GE, loop_ge),
        (SGE_8, loop_sge),
        (SK_4, loop_sk),
        (functools.partial(SK, groups=8, reduction=4, stride=2), loop_sk),
        (functools.partial(SK, groups=1, dilation=2), loop_sk),
        (CBAM, loop_cbam),
        (BAM, loop_bam),
        (DoubleAttention, loop_double_attention),
    ],
)
def test_equations(block, loop):
    block = build(block)
    x = torch.randn(2, 32, 5, 4, dtype=torch.float64)
    expected = np.stack([loop(block, sample) for sample in x.numpy()])
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize('block', BLOCKS)
def test_autocast_and_layout(block):
    block = build(block).float()
    x = torch.randn(2, 32, 6, 5).to(memory_format=torch.channels_last)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = block(x.bfloat16())
    assert y.dtype == torch.bfloat16
    exact = block(x.bfloat16().float())
    assert (y.float() - exact).norm() < 0.02 * exact.norm()


def test_se_plus_and_lct_normalise_alike():
    # With layers that pass the means on, SE+ gates by what LCT gates by.
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64).abs()
    se, lct = SE(16, reduction=1, groups=4).double(), LCT(16, groups=4).double()
    for layer in (se.squeeze, se.excite):
        layer.weight.data[:, :, 0, 0] = torch.eye(16)
        layer.bias.data.zero_()
    # The ReLU between the layers passes what is not negative.
    se.squeeze.bias.data.fill_(10)
    se.excite.bias.data.fill_(-10)
    lct.weight.data.fill_(1)
    lct.bias.data.zero_()
    torch.testing.assert_close(se(x), lct(x))


def test_sge_is_prm_with_the_mean_alone_and_starts_with_one_gate():
    fresh = SGE(128)
    assert set(fresh.state_dict()) == {'weight', 'bias'}
    assert fresh.weight.shape == (64,)
    x = torch.randn(1, 128, 3, 4)
    torch.testing.assert_close(fresh(x), x * torch.sigmoid(torch.ones(())))
    flat = torch.full((1, 128, 3, 4), 2.0, requires_grad=True)
    torch.nn.init.normal_(fresh.weight)
    fresh(flat).sum().backward()  # a map without differences
    assert flat.grad.isfinite().all() and fresh.weight.grad.isfinite().all()


def test_sk_mixes_with_weights_that_sum_to_one():
    block = build(SK_4)
    with torch.no_grad():
        block.grouped.conv.weight.zero_()
        block.grouped.bn.bias.copy_(block.grouped.bn.running_mean)
        block.excite.weight[32:] = -1e6  # all weight to the first branch
        x = torch.randn(2, 32, 5, 4, dtype=torch.float64)
        block.squeeze.bn.bias.fill_(10)
        block.squeeze.bn.weight.zero_()
        torch.testing.assert_close(block(x), block.dense(x))


def test_gc_keeps_its_zeros_in_a_backbone_from_nothing():
    keys = []
    for block in ('ContextBlock', 'prm_mmdet.GC'):
        plugin = dict(cfg=dict(type=block, ratio=1 / 16), position='after_conv3')
        model = ResNet(50, base_channels=16, plugins=[plugin])
        model.init_weights()
        keys.append(list(model.state_dict()))
    assert keys[0] == keys[1]
    for stage in model.res_layers:
        for bottleneck in getattr(model, stage):
            x = torch.randn(1, bottleneck.planes * 4, 3, 4)
            assert torch.equal(bottleneck.context_block(x), x)


def test_bam_wants_two_images_while_its_norms_train():
    block = BAM(32)
    assert block(torch.randn(2, 32, 4, 4)).isfinite().all()
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        block(torch.randn(1, 32, 4, 4))


def test_a_fresh_double_attention_is_the_identity():
    block = DoubleAttention(16)
    x = torch.randn(1, 16, 3, 4)
    assert torch.equal(block(x), x)
    block.expand.weight.data.fill_(1)
    block.init_weights()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize('block', [SE, SK, CBAM, BAM, DoubleAttention])
def test_refusals(block):
    name = block.__name__
    with pytest.raises(ValueError, match=rf'{name}: reduction=7 does not divide in_ch'):
        block(32, reduction=7)
    with pytest.raises(ValueError, match=rf'{name}: reduction must be a positive'):
        block(32, reduction=0)
    with pytest.raises(ValueError, match=rf'{name}: the input .* got \(1, 16, 2, 2\)'):
        block(32)(torch.zeros(1, 16, 2, 2))


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: BAM(32, dilation=0), 'BAM: dilation must be a positive'),
        (lambda: SK(32, dilation=0), 'SK: dilation must be a positive'),
        (lambda: SK(32, stride=-1), 'SK: stride must be a positive'),
        (lambda: SK(48), 'SK: groups=32 does not divide in_channels=48'),
        (lambda: SGE(96), 'SGE: groups=64 does not divide .* groups=32 or 48'),
        (lambda: SE(64, groups=64), 'SE: groups=64 leaves 1 channel a group'),
        (lambda: GE(0), 'GE: in_channels must be a positive'),
        (lambda: GE(8)(torch.zeros(1, 4, 2, 2)), r'GE: the input .* \(1, 4, 2, 2\)'),
        (lambda: SGE(64)(torch.zeros(64, 2, 2)), r'SGE: the input .* \(64, 2, 2\)'),
    ],
)
def test_more_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize('block', [*BLOCKS, PRM_16, LCT_16, SAC])
@pytest.mark.parametrize('training', [True, False])
def test_a_batch_without_images(block, training):
    model = block(64).train(training)
    x = torch.zeros(0, 64, 5, 7, requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
