"""torchvision's and the PRM authors' weights: what they compute after conversion, the
way back, and what does not fit."""

import contextlib
import io
import math
import runpy
import sys

import pytest
import their_networks as theirs
import torch
from conftest import ROOT
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from prm_mmdet import PRM, attach_plugins, config_path
from prm_mmdet.models.convert import from_mmdet, to_mmdet

register_all_modules()


@pytest.fixture
def convert(monkeypatch):
    """Run the tool; returns what it printed."""

    def run(*arguments):
        monkeypatch.setattr(
            sys, 'argv', ['convert_checkpoint.py', *map(str, arguments)]
        )
        tool = str(ROOT / 'tools' / 'convert_checkpoint.py')
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            runpy.run_path(tool, run_name='__main__')
        return printed.getvalue()

    return run


def same(state, other):
    return state.keys() == other.keys() and all(
        value.dtype == other[key].dtype and torch.equal(value, other[key])
        for key, value in state.items()
    )


# -- what the weights compute ----------------------------------------------------------

MOBILENET = dict(type='MobileNetV2', out_indices=(7,))


def plugged(model, groups, at):
    plugins = [dict(cfg=dict(type='prm_mmdet.PRM', groups=groups), at=at)]
    return dict(type='prm_mmdet.Plugged', model=model, plugins=plugins)


# The whole of ResNet-50 is what a config of ours says.
C2_C5 = config_path('prm/retinanet_r50-prm-c2-c5_fpn_2x_coco.py')
NETWORKS = {
    ('torchvision', 18): dict(type='ResNet', depth=18),
    ('torchvision', 50): dict(type='ResNet', depth=50),
    ('torchvision', 'v2'): MOBILENET,
    ('prm-authors', 18): plugged(
        dict(type='ResNet', depth=18), 64, r'layer[1-4]\.\d+\.bn2'
    ),
    ('prm-authors', 50): Config.fromfile(C2_C5).model.backbone,
    ('prm-authors', 'v2'): plugged(MOBILENET, 8, r'layer\d\.\d+\.linear_conv'),
}


@pytest.mark.parametrize(('form', 'size'), NETWORKS)
def test_a_network_computes_the_same_and_comes_back(form, size, convert, tmp_path):
    groups = 0 if form == 'torchvision' else 8 if size == 'v2' else 64
    network = theirs.MobileNetV2(groups) if size == 'v2' else None
    network = theirs.randomized(network or theirs.ResNet(size, groups))
    state, checkpoint = network.state_dict(), network.state_dict()
    if form == 'prm-authors':  # as their training script leaves it
        checkpoint = dict(
            epoch=100,
            arch='prm_resnet',
            state_dict={f'module.{key}': value for key, value in state.items()},
            best_prec1=torch.tensor(77.0),
            optimizer=dict(state={0: dict(momentum_buffer=torch.zeros(2))}),
        )
    torch.save(checkpoint, tmp_path / 'theirs.pth')
    ours = tmp_path / 'checkpoints' / 'ours.pth'
    printed = convert(tmp_path / 'theirs.pth', ours, '--from', form)
    assert f'{len(state)} of {len(state)} weights' in printed

    cfg = Config(dict(model=dict(backbone=NETWORKS[form, size])))
    backbone = cfg.model.backbone
    init_cfg = dict(type='Pretrained', checkpoint=str(ours), prefix='backbone.')
    assert str(init_cfg['checkpoint']) in printed
    (backbone.model if 'model' in backbone else backbone)['init_cfg'] = init_cfg
    model = MODELS.build(backbone)
    model.init_weights()
    weights = torch.load(ours, weights_only=True)['state_dict']
    head = {key: weights.pop(f'fc.{key}') for key in ('weight', 'bias')}
    # No missing and no unexpected key: the same ones, with these values.
    assert same({f'backbone.{k}': v for k, v in model.state_dict().items()}, weights)

    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features, logits = network.double()(x.double())
        model.double().eval()
        y = model(x.double())[-1]
    torch.testing.assert_close(y, features, rtol=1e-9, atol=1e-9)
    head = torch.nn.functional.linear(
        y.mean((2, 3)), *(v.double() for v in head.values())
    )
    torch.testing.assert_close(head, logits, rtol=1e-9, atol=1e-9)

    cfg.dump(tmp_path / 'config.py')
    convert(
        ours, tmp_path / 'back.pth', '--to', form, '--config', tmp_path / 'config.py'
    )
    back = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert same(back if form == 'torchvision' else back['state_dict'], state)


def test_prm_differs_from_prmlayer_by_the_divisor_of_the_deviation():
    layer = theirs.PRMLayer(4, ddof=1).double()
    block = PRM(12, groups=4).double()
    own = {'one': 'beta', 'zero': 'alpha', 'scale': 'sigma'}
    state = {own.get(k, k): v.squeeze() for k, v in layer.state_dict().items()}
    block.load_state_dict(state)
    x = torch.randn(2, 12, 7, 7, dtype=torch.float64)
    difference = (block(x) - layer(x)).abs().max()
    assert 1e-4 < difference < 0.02
    with torch.no_grad():
        block.weight *= math.sqrt(48 / 49)  # exact but for the 1e-5 in the divisor
    torch.testing.assert_close(block(x), layer(x), rtol=0, atol=1e-6)


# -- what does not fit -----------------------------------------------------------------


def narrow(at=r'layer[1-4]\.\d+\.bn2', **prm):
    """MMDetection's ResNet-18 of few channels with PRM, for the weights below."""
    model = MODELS.build(dict(type='ResNet', depth=18, base_channels=8))
    cfg = dict(type='prm_mmdet.PRM', groups=4, **prm)
    return attach_plugins(model, [dict(cfg=cfg, at=at)])


@pytest.fixture
def state():
    return theirs.ResNet(18, groups=4, width=8).state_dict()


def test_renamed_values_are_in_their_place(state):
    ours = to_mmdet(state, 'prm-authors', narrow())
    for name, key in dict(
        alpha='zero', beta='one', weight='weight', bias='bias'
    ).items():
        value = ours[f'backbone.layer2.1.bn2.prm.{name}']
        assert torch.equal(value, state[f'layer2.1.prm.{key}'].flatten())
    assert ours['backbone.layer2.1.bn2.prm.sigma'].shape == ()
    assert torch.equal(ours['fc.bias'], state['fc.bias'])


def test_sigma_comes_back_without_its_sign(state):
    ours = to_mmdet(state, 'prm-authors', narrow())
    sigma = 'backbone.layer1.0.bn2.prm.sigma'
    ours[sigma] = -ours[sigma]
    assert same(from_mmdet(ours, 'prm-authors', narrow()), state)


def test_old_weights_have_no_counters(state):
    old = {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')}
    ours = to_mmdet(old, 'prm-authors', narrow())
    assert not any(key.endswith('num_batches_tracked') for key in ours)
    assert same(from_mmdet(ours, 'prm-authors', narrow()), old)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('layer3.1.prm.one'), r'missing: layer3\.1\.prm\.one$'),
        (lambda s: s.pop('bn1.running_var'), r'missing: bn1\.running_var$'),
        (
            lambda s: s.update(
                {'layer3.1.prm.extra': torch.ones(1), 'se': torch.ones(1)}
            ),
            r'unknown: layer3\.1\.prm\.extra, se \(drop',
        ),
        (
            lambda s: s.update({'layer1.0.prm.one': torch.ones(1, 8, 1)}),
            r'another shape: layer1\.0\.prm\.one \(1, 8, 1\), not \(1, 4, 1\)$',
        ),
        (
            lambda s: s.update({'layer1.0.prm.theta': torch.ones(2)}),
            r'theta \(2\), not \(1, 2, 1, 1\)$',
        ),
        (
            lambda s: s.update({'fc.weight': torch.ones(10, 63)}),
            r'fc\.weight \(10, 63\), not \(any, 64\)$',
        ),
        (
            lambda s: s.update({'conv1.weight': s['conv1.weight'].to_sparse()}),
            r'no dense real tensors: conv1\.weight \(torch\.float32, .*sparse_coo\)$',
        ),
        (
            lambda s: s.update({'fc.bias': s['fc.bias'].to(torch.complex64)}),
            r'no dense real tensors: fc\.bias \(torch\.complex64, torch\.strided\)$',
        ),
        (
            lambda s: [s.pop(k) for k in list(s) if '.prm.' in k],
            r'missing: .* and 42 more$',
        ),
    ],
)
def test_every_weight_that_does_not_fit_is_named(state, change, message):
    change(state)
    with pytest.raises(ValueError, match=message):
        to_mmdet(state, 'prm-authors', narrow())


def test_unknown_weights_can_be_dropped(state):
    state['aux.weight'] = torch.ones(1)
    ours = to_mmdet(state, 'prm-authors', narrow(), drop=['aux.', 'fc.'])
    assert not any(key.startswith(('aux', 'head', 'backbone.fc')) for key in ours)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda s: s.update({'layer1.2.bn1.weight': torch.ones(1)}),
            'give the backbone',
        ),
        (lambda s: [s.pop(k) for k in list(s) if 'layer4' in k], 'give the backbone'),
        (lambda s: None, r'conv1\.weight \(8, 3, 7, 7\), not \(64, 3, 7, 7\)'),
        (lambda s: s.update({'layer1.0.prm.one': torch.ones(1, 48, 1)}), 'groups=48'),
    ],
)
def test_weights_that_tell_no_network(state, change, message):
    change(state)
    with pytest.raises(ValueError, match=message):
        to_mmdet(state, 'prm-authors')


@pytest.mark.parametrize(
    ('backbone', 'message'),
    [
        (lambda: narrow(at=r'layer[1-4]\.\d+'), 'behind the last norm of a residual'),
        (lambda: narrow(at=r'layer[1-4]\.\d+\.bn1'), 'behind the last norm'),
        (lambda: narrow(at='layer[1-4]'), 'behind the last norm'),
        (lambda: narrow(similarity='cosine'), "no such form: .*'cosine'"),
        (lambda: narrow(normalization=False), 'no such form: .*normalization=False'),
        (lambda: narrow(position_encoding=False), 'always has the position encoding'),
        (
            lambda: MODELS.build(dict(type='ResNet', depth=50, style='caffe')),
            "ResNet in style 'caffe' is no network of torchvision's",
        ),
        (lambda: MODELS.build(dict(type='SSDVGG', depth=16)), 'SSDVGG is no network'),
    ],
)
def test_networks_that_they_do_not_have(state, backbone, message):
    backbone = backbone()
    with pytest.raises(ValueError, match=message):
        to_mmdet(state, 'prm-authors', backbone)
    with pytest.raises(ValueError, match=message):
        from_mmdet(state, 'prm-authors', backbone)


def test_weights_without_prm_are_torchvisions():
    plain = theirs.ResNet(18).state_dict()
    with pytest.raises(ValueError, match=r'no PRM in this ResNet; .* use that form'):
        to_mmdet(plain, 'prm-authors')
    ours = to_mmdet(plain, 'torchvision')
    with pytest.raises(ValueError, match='no PRM in this ResNet'):
        from_mmdet(ours, 'prm-authors', MODELS.build(dict(type='ResNet', depth=18)))


def test_plugins_that_a_form_has_no_names_for(state):
    backbone = narrow()
    with pytest.raises(ValueError, match=r'torchvision has no names for .*prm\.alpha'):
        to_mmdet(state, 'torchvision', backbone)
    ours = to_mmdet(state, 'prm-authors', backbone)
    with pytest.raises(ValueError, match=r'unknown: .*prm\.alpha'):
        from_mmdet(ours, 'torchvision', backbone)
    with pytest.raises(ValueError, match='torchvision, prm-authors, got'):
        from_mmdet(ours, 'timm', backbone)


# -- the tool --------------------------------------------------------------------------


def test_a_refusal_writes_nothing(state, convert, tmp_path):
    path, out = tmp_path / 'theirs.pth', tmp_path / 'ours.pth'
    torch.save(state, path)
    with pytest.raises(SystemExit, match=r'error: .*conv1\.weight'):
        convert(path, out, '--from', 'prm-authors')
    with pytest.raises(SystemExit, match=r'error: .*nowhere'):
        convert(tmp_path / 'nowhere.pth', out, '--from', 'prm-authors')
    (tmp_path / 'config.py').write_text('model = dict(detector=dict())')
    with pytest.raises(SystemExit, match=r'has no model\.backbone'):
        convert(path, out, '--from', 'prm-authors', '--config', tmp_path / 'config.py')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['config.py', 'theirs.pth']


def test_what_is_dropped_is_said(convert, tmp_path):
    torch.save(theirs.MobileNetV2().state_dict(), tmp_path / 'theirs.pth')
    arguments = ('--from', 'torchvision', '--drop', 'classifier.', 'neck.')
    printed = convert(tmp_path / 'theirs.pth', tmp_path / 'ours.pth', *arguments)
    assert (
        '312 of 314 weights\nleft out: 2 of classifier.*\nleft out: 0 of neck.*\n'
        in printed
    )
    weights = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    assert all(key.startswith('backbone.') for key in weights)


def test_giving_back_needs_to_know_where_plugins_stand(convert, capsys):
    with pytest.raises(SystemExit):
        convert('ours.pth', 'theirs.pth', '--to', 'torchvision')
    assert '--to needs --config' in capsys.readouterr().err
