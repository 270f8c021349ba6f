"""Blocks put into trained weights: the network computes what it did."""

import copy

import pytest
import torch
from conftest import ROOT
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import ContextBlock
from mmdet.models import FPN, ResNet
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn
from torch.nn import functional as F

from prm_mmdet import LCT, PRM, SAC, attach_plugins, preserve
from prm_mmdet.plugins import BAM, CBAM, GE, SE

register_all_modules()

BLOCKS = {'PRM': dict(type='prm_mmdet.PRM', groups=4)}
BLOCKS['LCT'] = dict(type='prm_mmdet.LCT', groups=4)


def trained(module, seed=0):
    """In float64, with weights and statistics as training may leave them."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    for m in module.modules():
        if isinstance(m, (PRM, LCT)):
            continue
        for name in ('weight', 'bias', 'running_mean'):
            value = getattr(m, name, None)
            if isinstance(value, torch.Tensor) and value.dim() == 1:
                value.data.normal_(std=0.5, generator=generator)
        if getattr(m, 'running_var', None) is not None:
            m.running_var.uniform_(0.5, 2, generator=generator)
    module.eval()
    return module


def random_gates(module):
    """Starting gates as ``init_bias`` may set them, a channel or group each."""
    for m in module.modules():
        if isinstance(m, (PRM, LCT)):
            m.bias.data.normal_(std=0.7)


def load(plain, net):
    """What preserve says of a network that is given another's weights."""
    net.double()
    random_gates(net)
    state = {k: v.clone() for k, v in plain.state_dict().items()}
    missing = net.load_state_dict(state, strict=False).missing_keys
    net.eval()
    return missing


def image(size=64):
    return torch.randn(2, 3, size, size, dtype=torch.float64)


def flat(outputs):
    return outputs if isinstance(outputs, (list, tuple)) else [outputs]


def same(plain, net, x):
    with torch.no_grad():
        expected, outputs = flat(plain(x)), flat(net(x))
    assert len(expected) == len(outputs) > 0
    for a, b in zip(expected, outputs):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9 * a.abs().max().item())


def parameters(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def unchanged(net, before):
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def resnet(position=None, block='PRM', **settings):
    settings = dict(dict(depth=50, base_channels=8), **settings)
    if position:
        stages = (False, True, False, True)
        plugin = dict(cfg=BLOCKS[block], stages=stages, position=position)
        settings['plugins'] = [plugin]
    return ResNet(**settings)


GN = dict(type='GN', num_groups=4)
DCN = dict(dcn=dict(type='DCNv2'), stage_with_dcn=(False, False, False, True))


@pytest.mark.parametrize(
    ('position', 'block', 'settings'),
    [
        ('after_conv1', 'PRM', {}),
        ('after_conv2', 'LCT', {}),
        ('after_conv3', 'PRM', {}),
        ('after_conv3', 'LCT', dict(frozen_stages=2, with_cp=True)),
        ('after_conv2', 'PRM', dict(norm_cfg=GN, style='caffe')),
        ('after_conv3', 'LCT', dict(norm_cfg=dict(type='SyncBN'), norm_eval=False)),
        ('after_conv2', 'PRM', DCN),
    ],
)
def test_every_position(position, block, settings):
    plain = trained(resnet(**settings))
    net = resnet(position, block, **settings)
    missing, x = load(plain, net), image()
    broken = [a - b for a, b in zip(plain(x), net(x))]
    assert broken[1].abs().max() > 1e-3  # it takes something to be preserved
    assert not broken[0].any()
    outcomes = preserve(net, missing)
    same(plain, net, x)
    norm = settings.get('norm_cfg', {}).get('type', 'BN').lower().replace('sync', '')
    assert [o.scaled for o in outcomes] == [
        f'layer{i}.{j}.{norm}{position[-1]}'
        for i, n in ((2, 4), (4, 3))
        for j in range(n)
    ]
    assert not any(o.left for o in outcomes)
    assert f'layer2.0.{norm}{position[-1]} scaled by ' in str(outcomes[0])


def test_in_training_too():
    plain, net = trained(resnet()), resnet('after_conv3')
    preserve(net, load(plain, net))
    plain.train()
    net.train()
    same(plain, net, image())


def test_the_model_stays_as_it_was():
    net = resnet('after_conv3', with_cp=True, frozen_stages=2)
    missing = load(trained(resnet()), net)
    net.train()
    before = parameters(net)
    flags = [(m.training, getattr(m, 'with_cp', None)) for m in net.modules()]
    grads = [p.requires_grad for p in net.parameters()]
    state = torch.get_rng_state()
    scaled = {o.scaled for o in preserve(net, missing)}
    assert flags == [(m.training, getattr(m, 'with_cp', None)) for m in net.modules()]
    assert grads == [p.requires_grad for p in net.parameters()] and False in grads
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    for key, value in net.state_dict().items():
        layer, _, kind = key.rpartition('.')
        touched = layer in scaled and kind in ('weight', 'bias')
        assert torch.equal(value, before[key]) != touched


# -- blocks behind any module ----------------------------------------------------------


def spec(at, block='PRM', **more):
    return dict(cfg=dict(BLOCKS[block], **more), at=at)


def test_behind_a_norm_two_in_sequence():
    specs = [spec(r'layer4\.\d\.bn2'), spec(r'layer4\.\d\.bn2', 'LCT')]
    specs += [spec('layer3'), spec('bn1', 'LCT')]
    plain, net = trained(ResNet(18, base_channels=8)), ResNet(18, base_channels=8)
    attach_plugins(net, specs)
    outcomes = {o.block: o for o in preserve(net, load(plain, net))}
    left = outcomes.pop('layer3_prm')
    assert left.left and 'does not scale with layer3.1.bn2 before it' in str(left)
    assert {k: o.scaled for k, o in outcomes.items()} == {
        'bn1.lct': 'bn1',
        'layer4.0.bn2.prm': 'layer4.0.bn2',
        'layer4.0.bn2.lct': 'layer4.0.bn2',
        'layer4.1.bn2.prm': 'layer4.1.bn2',
        'layer4.1.bn2.lct': 'layer4.1.bn2',
    }
    net.layer3._forward_hooks.clear()
    same(plain, net, image())


def necks(**settings):
    settings = dict(in_channels=[8, 16, 32], out_channels=8, num_outs=4, **settings)
    plain, net = trained(FPN(**settings)), attach_plugins(FPN(**settings), [spec('')])
    maps = [torch.randn(1, 8 << i, 16 >> i, 16 >> i).double() for i in range(3)]
    return plain, net, maps


@pytest.mark.parametrize('settings', [{}, dict(norm_cfg=dict(type='BN'))])
def test_the_levels_of_a_neck(settings):
    plain, net, maps = necks(**settings)
    missing = load(plain, net)
    # The last level is the one before, pooled: one convolution for both.
    net.prm[3].bias.data.copy_(net.prm[2].bias)
    outcomes = preserve(net, missing)
    layer = 'bn' if settings else 'conv'
    assert [o.scaled for o in outcomes] == [
        f'fpn_convs.{i}.{layer}' for i in (0, 1, 2, 2)
    ]
    same(plain, net, maps)


def test_levels_that_share_a_convolution_but_not_the_gate():
    plain, net, maps = necks()
    missing = load(plain, net)
    before = parameters(net)
    outcomes = preserve(net, missing)
    assert [o.left for o in outcomes] == [False, False, True, True]
    assert 'something else uses fpn_convs.2.conv, too' in str(outcomes[2])
    after = net.state_dict()
    for kind in ('weight', 'bias'):
        key = f'fpn_convs.2.conv.{kind}'
        assert torch.equal(after[key], before[key])
    with torch.no_grad():
        for a, b in list(zip(plain(maps), net(maps)))[:2]:
            torch.testing.assert_close(a, b)


class Net(nn.Module):
    """An image to a map of eight channels, by what it is given."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.block = PRM(8, groups=4)
        self.way = forward

    def forward(self, x):
        return self.way(self, x)


def conv(kind=nn.Conv2d, **settings):
    return kind(3, 8, 1, **settings)


def norm(**settings):
    return nn.BatchNorm2d(8, **settings)


KEPT = {
    'leaky ReLU in place': (
        lambda m, x: m.block(F.leaky_relu(m.b(m.a(x)), inplace=True)),
        lambda: dict(a=conv(), b=norm()),
        'b',
    ),
    'max pooling': (
        lambda m, x: m.block(F.max_pool2d(F.relu(m.a(x)), 3, 2)),
        lambda: dict(a=conv()),
        'a',
    ),
    'average pooling and upsampling': (
        lambda m, x: m.block(
            F.interpolate(F.avg_pool2d(m.a(x), 2), scale_factor=2.0, mode='bilinear')
        ),
        lambda: dict(a=conv(bias=False)),
        'a',
    ),
    'tokens': (
        lambda m, x: m.block(
            m.b(m.a(x).flatten(2).transpose(1, 2)).permute(0, 2, 1).unflatten(2, (8, 8))
        ),
        lambda: dict(a=conv(), b=nn.LayerNorm(8)),
        'b',
    ),
    'a head shared by levels': (
        lambda m, x: [m.block(F.relu(m.a(y))) for y in (x, x[..., ::2, ::2])],
        lambda: dict(a=conv()),
        'a',
    ),
    'no gradients': (
        lambda m, x: m.block(m.a(x).detach()),
        lambda: dict(a=conv()),
        'a',
    ),
    'the output of a block that is used twice': (
        lambda m, x: (lambda y: y + y.sigmoid())(m.block(m.a(x))),
        lambda: dict(a=conv()),
        'a',
    ),
}


@pytest.mark.parametrize('case', KEPT)
def test_what_lets_a_scale_through(case):
    way, layers, expected = KEPT[case]
    net = trained(Net(way, **layers()))
    random_gates(net)
    x = image(8)
    block, net.block = net.block, nn.Identity()
    with torch.no_grad():
        before = [y.clone() for y in flat(net(x))]
    net.block = block
    (outcome,) = preserve(net, block_keys(net), input_shape=(3, 8, 8))
    assert outcome.scaled == expected
    with torch.no_grad():
        for a, b in zip(before, flat(net(x))):
            torch.testing.assert_close(a, b)


def block_keys(net):
    return [k for k in net.state_dict() if k.startswith('block.')]


def shared(m, x):
    y = F.relu(m.a(x))
    return y + m.block(y)


CHANGED = 'its input does not scale with {} before it'
NO_LAYER = 'no norm or convolution of 8 channels comes before it'
NO_WEIGHT = 'last before it has no weight that can be scaled'
SCALED = 'when a is scaled, the outputs change, since something else uses a, too'
REFUSED = {
    'an addition': (lambda m, x: m.block(m.a(x) + m.b(x)), CHANGED.format('b')),
    'SiLU': (lambda m, x: m.block(F.silu(m.a(x))), CHANGED.format('a')),
    'ReLU6': (lambda m, x: m.block(F.relu6(m.a(x))), CHANGED.format('a')),
    'other users of the input': (shared, SCALED),
    'other users, unseen by autograd': (
        lambda m, x: (lambda y: m.block(y) + y.detach())(m.a(x)),
        SCALED,
    ),
    'outputs that tell nothing': (lambda m, x: m.block(m.a(x)) * float('inf'), SCALED),
    'an output before the block': (
        lambda m, x: (lambda y: (y, m.block(y)))(m.a(x)),
        SCALED,
    ),
    'weights used twice': (lambda m, x: m.block(m.a(x)) + m.a(x * 2), SCALED),
    'a regularised weight': (lambda m, x: m.block(m.a(x)) * m.a.weight.mean(), SCALED),
    'two layers': (lambda m, x: m.block(m.a(x)) + m.block(m.b(x)), CHANGED.format('b')),
    "the model's input": (
        lambda m, x: m.block(x[:, [0, 1, 2, 0, 1, 2, 0, 1]]),
        NO_LAYER,
    ),
    'not called': (lambda m, x: m.a(x), 'does not call it'),
    'channels permuted': (lambda m, x: m.block(m.a(x).flip(1)), CHANGED.format('a')),
    'channels permuted by views': (
        lambda m, x: m.block(
            m.a(x).unflatten(1, (2, 4)).transpose(1, 2).reshape(len(x), 8, 8, 8)
        ),
        CHANGED.format('a'),
    ),
    'channels split': (lambda m, x: m.block(m.wide(x).view(-1, 8, 8, 8)), NO_LAYER),
    'a limit far away': (
        lambda m, x: m.block(m.a(x).clamp(max=5000)),
        CHANGED.format('a'),
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_is_refused(case):
    way, words = REFUSED[case]
    net = trained(Net(way, a=conv(), b=conv(), wide=nn.Conv2d(3, 16, 1)))
    random_gates(net)
    before = parameters(net)
    (outcome,) = preserve(net, block_keys(net), input_shape=(3, 8, 8))
    assert words in str(outcome)
    assert outcome.left and outcome.scaled is None
    assert str(outcome).startswith('block, PRM: left as it is: ')
    assert ' (a factor of 0.' in str(outcome)
    unchanged(net, before)


@pytest.mark.parametrize(
    ('layer', 'words'),
    [
        (lambda: norm(affine=False), NO_WEIGHT),
        (lambda: nn.utils.parametrizations.weight_norm(conv()), NO_WEIGHT),
        (lambda: conv(nn.ConvTranspose2d), NO_WEIGHT),
        (
            lambda: ConvModule(3, 8, 1, act_cfg=dict(type='Swish')),
            CHANGED.format('last.conv'),
        ),
    ],
)
def test_layers_that_cannot_be_scaled(layer, words):
    layer = layer()
    is_norm = isinstance(layer, nn.BatchNorm2d)
    way = lambda m, x: m.block(m.last(m.a(x) if is_norm else x))  # noqa: E731
    net = trained(Net(way, a=conv(), last=layer))
    before = parameters(net)
    (outcome,) = preserve(net, block_keys(net), input_shape=(3, 8, 8))
    assert words in str(outcome) and outcome.left
    unchanged(net, before)


def test_of_two_blocks_the_one_that_can_be_preserved_is():
    def way(m, x):
        y = m.block(m.a(x))
        return y + m.second(y)

    net = trained(Net(way, a=conv(), second=LCT(8, groups=4)))
    x = image(8)
    expected = net.a(x) * (1 + torch.sigmoid(torch.tensor(1.0)))
    net.block.bias.data.fill_(1)
    net.second.bias.data.fill_(1)
    keys = [k for k in net.state_dict() if k.startswith(('block', 'second'))]
    second, first = sorted(preserve(net, keys, (3, 8, 8)), key=lambda o: o.scaled or '')
    assert first.block == 'block' and first.scaled == 'a'
    assert second.block == 'second' and second.left
    torch.testing.assert_close(net(x), expected)


def test_what_holds_is_kept_when_something_else_does_not():
    def way(m, x):
        y = m.a(x)
        return m.block(y) + y.detach() + m.second(m.b(x))

    net = trained(Net(way, a=conv(), b=conv(), second=LCT(8, groups=4)))
    before = parameters(net)
    keys = [k for k in before if k.startswith(('block', 'second'))]
    outcomes = {o.block: o.scaled for o in preserve(net, keys, (3, 8, 8))}
    assert outcomes == {'block': None, 'second': 'b'}
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {'b.weight', 'b.bias'}


def test_what_cannot_be_run():
    net = trained(Net(lambda m, x: m.block(m.a(x).view(1, 2, 3)), a=conv()))
    before = parameters(net)
    (outcome,) = preserve(net, block_keys(net))
    assert outcome.left
    assert 'Net cannot be run on (3, 128, 128) (RuntimeError: shape' in str(outcome)
    unchanged(net, before)


# -- other blocks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('block', 'words', 'left'),
    [
        (lambda: SAC(8, reduction=4), 'SAC: starts as the identity', False),
        (lambda: ContextBlock(8, 0.5), 'ContextBlock: starts as the identity', False),
        (lambda: SE(8, reduction=4), 'SE: left as it is: its output depends', True),
        (lambda: CBAM(8, reduction=4), 'CBAM: left as it is', True),
        (lambda: BAM(8, reduction=4), 'BAM: left as it is', True),
        (lambda: LCT(8, groups=4, transform=False), 'LCT: left as it is', True),
        (lambda: GE(8), 'GE: left as it is: its output depends', True),
    ],
)
def test_other_blocks(block, words, left):
    net = trained(Net(lambda m, x: m.block(m.a(x)), a=conv()))
    net.block = block().double()
    before = parameters(net)
    (outcome,) = preserve(net, block_keys(net), (3, 8, 8))
    assert words in str(outcome) and outcome.left is left
    unchanged(net, before)


def test_blocks_that_have_learnt():
    net = trained(Net(lambda m, x: m.block(m.a(x)), a=conv()))
    net.block.weight.data[1] = 0.1
    (outcome,) = preserve(net, block_keys(net), (3, 8, 8))
    assert 'depends on its input' in str(outcome) and outcome.left
    # Loaded with the rest, they are none of its business.
    before = parameters(net)
    (outcome,) = preserve(net, [], (3, 8, 8))
    assert 'its weights were loaded, too' in str(outcome) and not outcome.left
    unchanged(net, before)


def test_where_nothing_was_loaded():
    net = resnet('after_conv3').double()
    before = parameters(net)
    outcomes = preserve(net, list(net.state_dict()))
    assert [str(o) for o in outcomes] == [
        'the model itself, ResNet: left as it is: no weights were loaded for it; do '
        'their names begin with a prefix?'
    ]
    assert outcomes[0].left
    unchanged(net, before)


# -- what stands where -----------------------------------------------------------------


@pytest.mark.parametrize(
    ('build', 'at', 'scaled'),
    [
        (lambda: ResNet(18, base_channels=8), 'maxpool', ['bn1']),
        (lambda: ResNet(18, base_channels=8, deep_stem=True), r'stem\.[28]', None),
        (
            lambda: ResNet(50, base_channels=8, avg_down=True),
            r'layer[34]\.0\.downsample\.2',
            ['layer3.0.downsample.2', 'layer4.0.downsample.2'],
        ),
    ],
)
def test_behind_modules_without_weights(build, at, scaled):
    plain, net = trained(build()), attach_plugins(build(), [spec(at)])
    outcomes = preserve(net, load(plain, net))
    scaled = scaled or ['stem.1', 'stem.7']
    assert [o.scaled for o in outcomes] == scaled
    same(plain, net, image())


def test_a_pooled_shortcut_cannot_be_preserved():
    """It pools what the residual branch takes, too."""
    settings = dict(depth=50, base_channels=8, avg_down=True)
    net = attach_plugins(ResNet(**settings), [spec(r'layer3\.0\.downsample\.0')])
    missing = load(trained(ResNet(**settings)), net)
    (outcome,) = preserve(net, missing)
    assert outcome.block == 'layer3.0.downsample.0.prm' and outcome.left


def test_behind_layers_that_no_weights_came_for():
    net = trained(Net(lambda m, x: m.block(m.b(m.a(x))), a=conv(), b=norm()))
    before = parameters(net)
    fresh = [k for k in before if k.startswith(('block', 'b.'))]
    gated, new = sorted(preserve(net, fresh, (3, 8, 8)), key=lambda o: o.left)
    assert str(gated).endswith('no weights were loaded for b before it: nothing to do')
    assert new.block == 'b' and new.left  # the network is another one all the same
    unchanged(net, before)


def test_weights_loaded_in_part():
    net = trained(Net(lambda m, x: m.block(m.b(m.a(x))), a=conv(), b=norm()))
    before = parameters(net)
    outcomes = preserve(net, ['block.alpha', 'block.bias', 'b.weight'], (3, 8, 8))
    assert [str(o).partition(': left as it is: ')[::2] for o in outcomes] == [
        ('b, BatchNorm2d', 'no weights were loaded for its weight'),
        ('block, PRM', 'no weights were loaded for its alpha, bias'),
    ]
    assert all(o.left for o in outcomes)
    unchanged(net, before)


def test_outputs_that_are_not_finite_are_named():
    net = trained(Net(lambda m, x: m.block(m.b(m.a(x))), a=conv(), b=norm()))
    net.a.weight.data[0] = float('nan')
    (outcome,) = preserve(net, block_keys(net), (3, 8, 8))
    assert 'the outputs hold NaN or infinity, as a.weight does' in str(outcome)
    assert outcome.left


# -- detectors -------------------------------------------------------------------------


def mask_rcnn(plugins=None):
    cfg = Config.fromfile(ROOT / 'configs/demo/mask-rcnn_r50_fpn_demo.py').model
    cfg.backbone.plugins = plugins
    return trained(MODELS.build(cfg))


@pytest.fixture(scope='module')
def plain_detector():
    return mask_rcnn()


def test_a_detector_that_wants_annotations(plain_detector):
    stages = (False, False, False, True)
    plugin = dict(cfg=BLOCKS['LCT'], stages=stages, position='after_conv3')
    plain, net = plain_detector, mask_rcnn([plugin])
    attach_plugins(net.neck, [spec('')])
    missing = load(plain, net)
    net.neck.prm[4].bias.data.copy_(net.neck.prm[3].bias)
    outcomes = preserve(net, missing)
    scaled = [f'backbone.layer4.{i}.bn3' for i in range(3)]
    scaled += [f'neck.fpn_convs.{i}.bn' for i in (0, 1, 2, 3, 3)]
    assert [o.scaled for o in outcomes] == scaled
    with torch.no_grad():
        x = image()
        for a, b in zip(plain.extract_feat(x), net.extract_feat(x)):
            torch.testing.assert_close(a, b)


def test_a_detector_whole():
    def build():
        channels = dict(in_channels=8, feat_channels=8, stacked_convs=2)
        head = dict(type='RetinaHead', num_classes=3, norm_cfg=dict(type='BN'))
        backbone = dict(type='ResNet', depth=18, base_channels=8)
        neck = dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5)
        cfg = dict(backbone=backbone, neck=neck, bbox_head=dict(head, **channels))
        return MODELS.build(dict(type='RetinaNet', **cfg))

    plain, net = trained(build()), build()
    # Its convolutions see all levels: called five times, with one norm.
    attach_plugins(net.bbox_head, [spec('cls_convs.1')], [(8, 4, 4)] * 5)
    (outcome,) = preserve(net, load(plain, net))
    assert outcome.scaled == 'bbox_head.cls_convs.1.bn'
    with torch.no_grad():
        x = image()
        for levels, others in zip(plain(x), net(x)):
            for a, b in zip(levels, others):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize('plugin', ['PRM', 'CBAM', 'SAC'])
def test_parts_that_cannot_be_run(plugin, plain_detector):
    plain, net = plain_detector, copy.deepcopy(plain_detector)
    specs = [dict(cfg=dict(type=f'prm_mmdet.{plugin}'), at=r'convs\.[01]')]
    attach_plugins(net.roi_head.mask_head, specs, (64, 14, 14))
    net.add_module('extra', SE(8, reduction=4))  # in no part
    outcomes = preserve(net, load(plain, net))
    assert [o.block.rpartition('.')[0] for o in outcomes] == [
        '',
        'roi_head.mask_head.convs.0',
        'roi_head.mask_head.convs.1',
    ]
    assert all(o.left and 'cannot be run on' in str(o) for o in outcomes)


# -- wrong keys and second calls -------------------------------------------------------


def simple():
    return trained(Net(lambda m, x: m.block(m.a(x)), a=conv()))


@pytest.mark.parametrize(
    ('keys', 'words'),
    [
        (
            ['net.block.bias'],
            "1 names that Net does not have, such as 'net.block.bias'",
        ),
        (['block.bias', 'x'], "such as 'x'; give the missing_keys"),
        ('block.bias', "must be a list of names, got the string 'block.bias'"),
    ],
)
def test_keys_that_are_not_the_modules_are_refused(keys, words):
    net = simple()
    before = parameters(net)
    with pytest.raises(ValueError) as error:
        preserve(net, keys, (3, 8, 8))
    assert words in str(error.value)
    unchanged(net, before)


def test_a_second_call_finds_nothing_to_do():
    net = simple()
    loaded = {k: v.clone() for k, v in net.a.state_dict().items()}
    keys = block_keys(net)
    preserve(net, keys, (3, 8, 8))
    before = parameters(net)
    for twice in (net, copy.deepcopy(net)):
        (outcome,) = preserve(twice, keys, (3, 8, 8))
        assert 'an earlier call scaled a for it: nothing to do' in str(outcome)
        assert outcome.scaled is None and not outcome.left
        unchanged(twice, before)
    # The same weights again: they are not scaled.
    net.load_state_dict({f'a.{k}': v for k, v in loaded.items()}, strict=False)
    (outcome,) = preserve(net, keys, (3, 8, 8))
    assert outcome.scaled == 'a'
    unchanged(net, before)


def test_buffers_and_random_numbers_stay_as_they_were():
    class Counts(nn.BatchNorm2d):
        def forward(self, x):
            self.num_batches_tracked += 1
            torch.rand(1)
            return super().forward(x)

    net = trained(Net(lambda m, x: m.block(m.b(m.a(x))), a=conv(), b=Counts(8)))
    before, state = parameters(net), torch.get_rng_state()
    (outcome,) = preserve(net, block_keys(net), (3, 8, 8))
    assert outcome.scaled == 'b'
    assert torch.equal(state, torch.get_rng_state())
    for key in ('b.running_mean', 'b.running_var', 'b.num_batches_tracked'):
        assert torch.equal(net.state_dict()[key], before[key])


def test_single_precision():
    plain = trained(resnet()).float()
    net = resnet('after_conv2', 'LCT')
    missing = net.load_state_dict(plain.state_dict(), strict=False).missing_keys
    net.eval()
    assert len(preserve(net, missing)) == 7
    x = image().float()
    for a, b in zip(plain(x), net(x)):
        assert (a - b).abs().max() < 1e-5 * a.abs().max()
