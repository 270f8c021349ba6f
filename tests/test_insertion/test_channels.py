"""Finding the channels of a module's maps: their axis, and a model that stays as it
was."""

import random

import numpy as np
import pytest
import torch
from mmdet.models import ResNet
from torch import nn

from prm_mmdet import LCT, SAC, attach_plugins

SAC_CFG = dict(type='prm_mmdet.SAC', reduction=4)


class Net(nn.Module):
    """An image to what ``way`` makes of it."""

    def __init__(self, way, **layers):
        super().__init__()
        self.way = way
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.way(self, x)


def last(x):
    return x.permute(0, 2, 3, 1)


def channels_last(size=4):
    """A patch embedding and a norm over the last axis, as in Swin Transformer."""
    layers = dict(
        a=nn.Conv2d(3, 16, size, size), b=nn.LayerNorm(16), c=nn.Linear(16, 8)
    )
    return Net(lambda m, x: m.c(m.b(last(m.a(x)))), **layers)


# -- channels-last maps ----------------------------------------------------------------


@pytest.mark.parametrize('image', [(64, 96), (40, 40)])
def test_plugins_behind_channels_last_maps_see_their_channels(image):
    model = attach_plugins(channels_last(), [dict(cfg=SAC_CFG, at='b')])
    block = model.b.sac_block
    assert block.in_channels == 16
    nn.init.normal_(block.transform.weight)
    x = torch.randn(2, 3, *image)
    y = nn.functional.layer_norm(
        last(model.a(x)), (16,), model.b.weight, model.b.bias, model.b.eps
    )
    expected = model.c(last(block(y.permute(0, 3, 1, 2))))
    torch.testing.assert_close(model(x), expected)
    assert not torch.allclose(model(x), model.c(y))


def test_the_map_behind_a_plugin_is_contiguous():
    model = channels_last()
    model.way = lambda m, x: m.b(last(m.a(x))).view(len(x), -1)
    attach_plugins(model, [dict(cfg=SAC_CFG, at='b')])
    assert model(torch.zeros(2, 3, 16, 24)).shape == (2, 4 * 6 * 16)


def test_channels_last_maps_in_a_list():
    model = Net(lambda m, x: [m.a(x), last(m.a(x))], a=nn.Conv2d(3, 8, 4, 4))
    attach_plugins(model, [dict(cfg=SAC_CFG, at='')])
    assert [p.in_channels for p in model.sac_block] == [8, 8]
    for p in model.sac_block:
        p.transform.bias.data += 1
    x = torch.randn(1, 3, 32, 48)
    for y, expected in zip(model(x), (model.a(x), last(model.a(x)))):
        torch.testing.assert_close(y, expected + 1)


def test_as_many_channels_as_rows():
    """At the size of the first run, the axes cannot be distinguished."""
    model = channels_last(8)
    attach_plugins(model, [dict(cfg=SAC_CFG, at='b')])  # 16 x 16 positions
    assert model(torch.zeros(1, 3, 128, 64)).shape == (1, 16, 8, 8)
    model = Net(lambda m, x: m.a(x), a=nn.Conv2d(3, 16, 8, 8))
    attach_plugins(model, [dict(cfg=SAC_CFG, at='a')])
    assert model(torch.zeros(1, 3, 128, 64)).shape == (1, 16, 16, 8)


def only_at(size, module):
    """A model that runs at one size, as a network with a table of positions does."""

    def way(m, x):
        assert tuple(x.shape[2:]) == (size, size)
        return m.inner(x)

    return Net(way, inner=module)


def test_models_of_one_size():
    model = only_at(64, channels_last())
    spec = dict(cfg=SAC_CFG, at=r'inner\.b')
    with pytest.raises(ValueError, match=r'could not be run.*Give input_shape'):
        attach_plugins(model, [spec])
    attach_plugins(only_at(32, channels_last()), [spec], (3, 32, 32))
    with pytest.raises(ValueError, match=r'\(1, 16, 16, 16\), which does not show'):
        attach_plugins(model, [spec], (3, 64, 64))


@pytest.mark.parametrize(
    'way',
    [
        lambda m, x: m.a(x).permute(0, 3, 1, 2),  # (B, W, C, H)
        # (B, H, H, W): no axis keeps its size.
        lambda m, x: x[:, :1].expand(-1, x.shape[2], -1, -1),
    ],
)
def test_maps_of_other_layouts_are_refused(way):
    model = Net(way, a=nn.Conv2d(3, 8, 4, 4))
    with pytest.raises(ValueError, match='neither axis 1 nor axis 3'):
        attach_plugins(model, [dict(cfg=SAC_CFG, at='')])


@pytest.mark.parametrize('size', [1, 7])
def test_maps_of_a_fixed_size(size):
    layers = dict(a=nn.Conv2d(3, 16, 4, 4), b=nn.AdaptiveAvgPool2d(size))
    model = Net(lambda m, x: m.b(m.a(x)), **layers)
    attach_plugins(model, [dict(cfg=SAC_CFG, at='b')])
    assert model.b.sac_block.in_channels == 16


# -- the model stays as it was ---------------------------------------------------------


class Remembers(nn.Module):
    """A network that changes its buffers and attributes even in inference."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.register_buffer('mean', torch.zeros(8))
        self.register_buffer('calls', torch.zeros((), dtype=torch.long))
        self.register_buffer('positions', torch.zeros(1), persistent=False)
        self.sizes = {}

    def forward(self, x):
        x = nn.functional.dropout(self.conv(x), 0.1, training=True)
        random.random()
        np.random.rand()
        nn.functional.batch_norm(x, self.mean, torch.ones(8), training=True)
        self.calls += 1
        self.positions = torch.arange(x.shape[-1]).float()
        self.last = x
        self.sizes[tuple(x.shape)] = x
        return x


def test_the_search_for_channels_leaves_no_trace():
    model = Remembers()
    model.conv.eval()
    attributes = set(vars(model))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    # A plugin that draws no random numbers.
    cfg = dict(type='prm_mmdet.LCT', groups=4)
    attach_plugins(model, [dict(cfg=cfg, at='conv')])
    assert model.training and not model.conv.training
    assert not model.mean.any() and model.calls == 0
    assert model.positions.tolist() == [0]
    assert set(vars(model)) == attributes and model.sizes == {}
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert [len(m._forward_hooks) for m in model.modules()] == [0, 1, 0]
    assert all(p.grad is None for p in model.parameters())


# -- levels ----------------------------------------------------------------------------


def test_levels_can_be_chosen():
    model = ResNet(18, base_channels=8)
    attach_plugins(model, [dict(cfg=SAC_CFG, at='', levels=(1, -1))])
    keys = {k.split('.')[1] for k in model.state_dict() if k.startswith('sac_block')}
    assert keys == {'1', '3'}
    for i in (1, 3):
        model.sac_block[i].transform.bias.data += 1
    plain = ResNet(18, base_channels=8)
    plain.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    model.eval()
    plain.eval()
    for i, (y, expected) in enumerate(zip(model(x), plain(x))):
        torch.testing.assert_close(y, expected + (i in (1, 3)))
    # Every plugin is trained if levels 0 and 2 are not used.
    sum(model(x)[i].sum() for i in (1, 3)).backward()
    blocks = [m for m in model.modules() if isinstance(m, SAC)]
    assert all(p.grad is not None for block in blocks for p in block.parameters())


# -- what is refused or undone ---------------------------------------------------------


class Narrow(nn.Module):
    """A plugin that changes the channels."""

    _abbr_ = 'narrow'

    def __init__(self, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels // 2, 1)

    def forward(self, x):
        return self.conv(x)


class Pair(Narrow):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize('plugin', [Narrow, Pair])
def test_plugins_that_change_the_shape_are_refused(plugin):
    model = ResNet(18, base_channels=8)
    with pytest.raises(ValueError, match=r'16 channels: .*has to keep the shape'):
        attach_plugins(model, [dict(cfg=dict(type=plugin), at='layer2')])


def test_a_train_method_that_raises_leaves_nothing_attached():
    class Stubborn(ResNet):
        def train(self, mode=True):
            if hasattr(self.layer2[0], 'sac_block'):
                raise RuntimeError('I do not train')
            return super().train(mode)

    model = Stubborn(18, base_channels=8)
    keys = list(model.state_dict())
    specs = [dict(cfg=SAC_CFG, at=at) for at in (r'layer2\.\d', 'layer3')]
    with pytest.raises(RuntimeError, match='I do not train'):
        attach_plugins(model, specs)
    assert list(model.state_dict()) == keys
    assert not any(m._forward_hooks for m in model.modules())
    assert 'init_weights' not in vars(model)


def test_no_postfix():
    cfg = dict(SAC_CFG, postfix=None)
    model = attach_plugins(ResNet(18, base_channels=8), [dict(cfg=cfg, at='conv1')])
    assert type(model.conv1.sac_block) is SAC


class Features(nn.ModuleDict):
    """Returns what each of its submodules returns, as timm's feature extractors do."""

    def forward(self, x):
        found = []
        for module in self.values():
            x = module(x)
            found.append(x)
        return found


def test_places_in_a_container_that_runs_all_of_it():
    def build():
        return Features(
            dict(
                stem=nn.Conv2d(3, 8, 1), layer1=nn.Sequential(nn.Conv2d(8, 8, 1), norm)
            )
        )

    norm = nn.BatchNorm2d(8)
    for at in ('', 'layer1'):
        with pytest.raises(ValueError, match=r"container, such as .*'layer1\.1'$"):
            attach_plugins(build(), [dict(cfg=SAC_CFG, at=at)])
    attach_plugins(build(), [dict(cfg=SAC_CFG, at=r'stem|layer1\.1')])


def test_a_distributed_wrapper_is_refused():
    model = nn.DataParallel(ResNet(18, base_channels=8))
    with pytest.raises(ValueError, match='before you wrap it'):
        attach_plugins(model, [dict(cfg=SAC_CFG, at=r'module\.layer2')])


@pytest.mark.parametrize('how', ['compile()', 'torch.compile'])
def test_models_that_were_compiled_and_run(how):
    torch._dynamo.reset()
    model = Net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(3, 8, 1), b=nn.ReLU())
    x = torch.randn(1, 3, 8, 8)
    compiled = model
    if how == 'compile()':
        model.compile(backend='eager')
    else:
        compiled = torch.compile(model, backend='eager')
    before = compiled(x)
    specs = [dict(cfg=dict(type='prm_mmdet.LCT', groups=4), at='b')]
    assert attach_plugins(compiled, specs) is compiled
    assert type(model.b.lct) is LCT
    torch.testing.assert_close(compiled(x), model.b.lct(before))


def test_groups_that_fit_all_places_are_named():
    model = ResNet(18, base_channels=12)  # 12, 24, 48 and 96 channels
    spec = dict(cfg=dict(type='prm_mmdet.PRM', groups=16), at='layer[1-4]')
    with pytest.raises(ValueError, match=r'use groups=4 or 6 or 12, which fits all of'):
        attach_plugins(model, [spec])
