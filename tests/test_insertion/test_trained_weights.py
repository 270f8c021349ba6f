"""Checkpoints without blocks: loaded at start, or rewritten."""

import os

import pytest
import torch
from conftest import ROOT
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint
from torch import nn

from prm_mmdet.insertion.trained_weights import adapt_checkpoint

register_all_modules()

PLUGIN = dict(
    cfg=dict(type='prm_mmdet.PRM', groups=4),
    stages=(False, False, False, True),
    position='after_conv3',
)
ELSEWHERE = dict(cfg=dict(type='prm_mmdet.LCT', groups=4), at=r'layer4\.\d\.bn2')
BACKBONE = dict(type='ResNet', depth=50, base_channels=8)
SCALED = {f'layer4.{i}.bn3.{kind}' for i in range(3) for kind in ('weight', 'bias')}


def with_block(**more):
    return dict(BACKBONE, plugins=[PLUGIN], **more)


def model(backbone):
    """A detector's config."""
    neck = dict(type='FPN', in_channels=[32, 64, 128, 256], out_channels=8, num_outs=5)
    head = dict(type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8)
    return dict(type='RetinaNet', backbone=backbone, neck=neck, bbox_head=head)


@pytest.fixture
def plain():
    """A detector with weights as training may leave them."""
    detector = MODELS.build(model(BACKBONE))
    generator = torch.Generator().manual_seed(0)
    for m in detector.modules():
        if isinstance(m, nn.BatchNorm2d):
            for value in (m.weight.data, m.bias.data, m.running_mean):
                value.normal_(std=0.5, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
    detector.eval()
    return detector


@pytest.fixture
def file(plain, tmp_path):
    """A checkpoint of it, as MMEngine writes it."""
    checkpoint = dict(
        meta=dict(dataset_meta=dict(classes=('a',))),
        state_dict=plain.state_dict(),
        optimizer=dict(state={0: torch.zeros(1)}),
        message_hub={},
    )
    torch.save(checkpoint, tmp_path / 'in.pth')
    return f'{tmp_path}/in.pth'


def same(plain, net):
    net.eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(plain.extract_feat(x), net.extract_feat(x)):
            assert a.abs().max() > 0
            assert (a - b).abs().max() < 1e-5 * a.abs().max()


def init(file, prefix=None):
    more = dict(prefix=prefix) if prefix else {}
    return dict(type='prm_mmdet.PreservedPretrained', checkpoint=file, **more)


@pytest.fixture
def log(monkeypatch):
    """What is logged."""
    lines = []
    logger = MMLogger.get_instance('test_checkpoints')
    monkeypatch.setattr(MMLogger, 'get_current_instance', lambda: logger)
    monkeypatch.setattr(logger, 'handle', lambda record: lines.append(record.msg))
    return lines


# -- at start --------------------------------------------------------------------------


@pytest.mark.parametrize('where', ['backbone', 'detector'])
@pytest.mark.parametrize('how', ['plugins', 'Plugged'])
def test_init_cfg(where, how, plain, file, log):
    on_backbone = dict(init_cfg=init(file, 'backbone.')) if where == 'backbone' else {}
    if how == 'plugins':
        backbone = with_block(**on_backbone)
    else:
        inner = dict(BACKBONE, **on_backbone)
        backbone = dict(type='prm_mmdet.Plugged', model=inner, plugins=[ELSEWHERE])
    cfg = model(backbone)
    if where == 'detector':
        cfg['init_cfg'] = init(file)
    net = MODELS.build(cfg)
    net.init_weights()
    if where == 'backbone':  # the rest starts anew
        state = {k: v for k, v in plain.state_dict().items() if 'backbone' not in k}
        net.load_state_dict(state, strict=False)
    same(plain, net)
    said = [line for line in log if 'scaled by 1.368' in f'{line}']
    assert len(said) == 3
    name = 'RetinaNet: backbone.' if where == 'detector' else 'ResNet: '
    block = 'layer4.0.prm, PRM' if how == 'plugins' else 'layer4.0.bn2.lct, LCT'
    assert said[0].startswith(f'{name}{block}: ')
    # Again, it is told that it has been done.
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_checkpoint_with_the_blocks_is_loaded_as_it_is(file, log, tmp_path):
    first = MODELS.build(model(with_block(init_cfg=init(file, 'backbone.'))))
    first.init_weights()
    torch.save(dict(state_dict=first.state_dict()), tmp_path / 'resumed.pth')
    log.clear()
    net = MODELS.build(
        model(with_block()) | dict(init_cfg=init(f'{tmp_path}/resumed.pth'))
    )
    net.init_weights()
    expected = first.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in net.state_dict().items())
    assert sum('its weights were loaded, too' in f'{line}' for line in log) == 3
    # A run that is resumed starts from the config's weights, then loads its own.
    net = MODELS.build(model(with_block(init_cfg=init(file, 'backbone.'))))
    net.init_weights()
    load_checkpoint(net, f'{tmp_path}/resumed.pth')
    assert all(torch.equal(v, expected[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize('wrapped', [False, True])
def test_trained_blocks_are_not_started_again(wrapped, tmp_path):
    """MMEngine starts submodules after a type other than Pretrained."""
    sac = dict(type='prm_mmdet.SAC')
    if wrapped:
        plugins = [dict(cfg=sac, at=r'layer4\.\d')]
        cfg = dict(type='prm_mmdet.Plugged', model=dict(BACKBONE), plugins=plugins)
    else:
        cfg = dict(BACKBONE, plugins=[dict(PLUGIN, cfg=sac)])
    trained = MODELS.build(cfg)
    for name, p in trained.named_parameters():
        if 'sac_block' in name:
            p.data.normal_()
    torch.save(trained.state_dict(), tmp_path / 'x.pth')
    (cfg['model'] if wrapped else cfg)['init_cfg'] = init(f'{tmp_path}/x.pth')
    net = MODELS.build(cfg)
    net.init_weights()
    expected = trained.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in net.state_dict().items())


def test_submodules_outside_mmengine_are_started_before(file):
    class Head(nn.Module):
        starts = 0

        def init_weights(self):
            self.starts += 1

    net = MODELS.build(dict(model(with_block()), init_cfg=init(file)))
    net.extra = Head()
    net.init_weights()
    assert net.extra.starts == 1


NO_IMPORT = """
from mmengine.registry import WEIGHT_INITIALIZERS
cfg = dict(type='prm_mmdet.PreservedPretrained', checkpoint='x', prefix='y')
print(WEIGHT_INITIALIZERS.build(cfg).prefix)
"""


def test_the_scoped_name_needs_no_import(run_python):
    assert run_python('-c', NO_IMPORT, fork=True).stdout.splitlines()[-1] == 'y'


@pytest.fixture
def resnet_file(plain, tmp_path):
    torch.save(plain.backbone.state_dict(), tmp_path / 'resnet.pth')
    return f'{tmp_path}/resnet.pth'


def said(log, *words):
    return [f'{line}' for line in log if all(w in f'{line}' for w in words)]


def test_a_forgotten_prefix_is_named(file, log):
    MODELS.build(with_block(init_cfg=init(file))).init_weights()
    assert said(log, 'ResNet: left as it is: no weights were loaded', 'a prefix?')
    assert not said(log, 'nothing to do')


def test_blocks_of_other_shapes_do_not_count_as_loaded(plain, log, tmp_path):
    other = MODELS.build(dict(BACKBONE, plugins=[PLUGIN]))
    torch.save(other.state_dict(), tmp_path / 'x.pth')
    plugin = dict(PLUGIN, cfg=dict(PLUGIN['cfg'], groups=8))
    MODELS.build(
        dict(BACKBONE, plugins=[plugin], init_cfg=init(f'{tmp_path}/x.pth'))
    ).init_weights()
    text = 'PRM: left as it is: no weights were loaded for its alpha, beta, weight, bia'
    assert len(said(log, text)) == 3
    assert not said(log, 'its weights were loaded, too')


KAIMING = dict(type='Kaiming', layer='Conv2d')


@pytest.mark.parametrize(
    'others',
    [
        lambda ours: [ours, KAIMING],
        lambda ours: [dict(type='Pretrained', checkpoint='x.pth'), ours],
    ],
)
def test_what_would_be_overwritten_is_refused(others, resnet_file):
    net = MODELS.build(with_block(init_cfg=others(init(resnet_file))))
    with pytest.raises(ValueError, match=r'init_cfg of ResNet has .*; put it last'):
        net.init_weights()


def test_last_of_several(plain, resnet_file):
    net = MODELS.build(with_block(init_cfg=[KAIMING, init(resnet_file)]))
    net.init_weights()
    x = torch.randn(1, 3, 64, 64)
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(x)[3], plain.backbone(x)[3])


# -- files -----------------------------------------------------------------------------


def config(backbone):
    return Config(dict(model=model(backbone)))


def test_adapted(plain, file, tmp_path):
    out = f'{tmp_path}/new/out.pth'
    outcomes = adapt_checkpoint(config(with_block()), file, out).outcomes
    assert [o.scaled for o in outcomes] == [
        f'backbone.layer4.{i}.bn3' for i in range(3)
    ]
    assert os.listdir(tmp_path / 'new') == ['out.pth']
    written = torch.load(out, weights_only=True)
    assert set(written) == {'state_dict'}
    net = MODELS.build(model(with_block()))
    net.load_state_dict(written['state_dict'])
    same(plain, net)
    # Nothing but the scaled layers has changed.
    old = plain.state_dict()
    changed = {k for k in old if not torch.equal(old[k], written['state_dict'][k])}
    assert changed == {f'backbone.{k}' for k in SCALED}
    # The same file each time; and given it, nothing more is done.
    adapt_checkpoint(config(with_block()), file, f'{tmp_path}/again.pth')
    again = torch.load(f'{tmp_path}/again.pth', weights_only=True)['state_dict']
    adapt_checkpoint(config(with_block()), out, f'{tmp_path}/twice.pth')
    twice = torch.load(f'{tmp_path}/twice.pth', weights_only=True)['state_dict']
    for key, value in written['state_dict'].items():
        assert torch.equal(value, again[key]) and torch.equal(value, twice[key])


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_backbone_and_its_classifier(prefix, plain, tmp_path):
    """Weights alone, in half precision, as of ImageNet."""
    weights = {f'{prefix}{k}': v.half() for k, v in plain.backbone.state_dict().items()}
    head = 'head.fc.weight' if prefix else 'fc.weight'
    weights[head] = torch.ones(2, 2)
    torch.save(weights, tmp_path / 'in.pth')
    plugged = dict(type='prm_mmdet.Plugged', model=BACKBONE, plugins=[ELSEWHERE])
    out = f'{tmp_path}/out.pth'
    adapted = adapt_checkpoint(config(plugged), f'{tmp_path}/in.pth', out)
    assert str(adapted) == (
        '3 blocks, the backbone computes what it did, to the rounding of float16; '
        f"taken for a backbone's checkpoint, {head} not looked at"
    )
    assert [o.scaled for o in adapted.outcomes] == [f'layer4.{i}.bn2' for i in range(3)]
    written = torch.load(out, weights_only=True)['state_dict']
    assert torch.equal(written.pop(head), weights.pop(head))
    added = set(written) - set(weights)
    assert added == {
        f'{prefix}layer4.{i}.bn2.lct.{kind}'
        for i in range(3)
        for kind in ('weight', 'bias')
    }
    assert {v.dtype for v in written.values() if v.is_floating_point()} == {torch.half}
    ratio = (
        written[f'{prefix}layer4.1.bn2.weight']
        / weights[f'{prefix}layer4.1.bn2.weight']
    )
    torch.testing.assert_close(
        ratio.float(), torch.full((64,), 1.3679), rtol=2e-3, atol=0
    )


@pytest.mark.parametrize(
    ('key', 'value', 'words'),
    [
        ('backbone.layer2.0.conv1.weight', None, '1 missing'),
        ('bbox_head.other.weight', torch.zeros(1), '1 unknown to the model'),
        ('neck.fpn_convs.0.conv.bias', torch.zeros(9), '1 of another shape'),
        ('backbone.layer4.0.prm.alpha', torch.zeros(5), '1 of another shape'),
    ],
)
def test_wrong_keys_are_named(key, value, words, file, tmp_path):
    checkpoint = torch.load(file, weights_only=True)
    checkpoint['state_dict'][key] = value
    if value is None:
        del checkpoint['state_dict'][key]
    torch.save(checkpoint, file)
    with pytest.raises(ValueError) as error:
        adapt_checkpoint(config(with_block()), file, f'{tmp_path}/out.pth')
    assert f'{words} ({key})' in str(error.value) and file in str(error.value)
    assert os.listdir(tmp_path) == ['in.pth']


def test_another_models_weights(file, tmp_path):
    other = config(dict(with_block(), depth=101))
    message = r'\d+ missing \(backbone\.layer3\.6.*, \.\.\.\)\. Give a checkpoint and'
    with pytest.raises(ValueError, match=message):
        adapt_checkpoint(other, file, f'{tmp_path}/out.pth')


def test_a_detector_that_changes_its_config(monkeypatch, plain, file, tmp_path):
    """As DETR does, which cannot be built from the same config again."""
    build = MODELS.build

    def build_once(cfg):
        if cfg['type'] == 'RetinaNet':
            assert not cfg.setdefault('built', False)
            cfg.built = True
            cfg = {k: v for k, v in cfg.items() if k != 'built'}
        return build(cfg)

    monkeypatch.setattr(MODELS, 'build', build_once)
    adapted = adapt_checkpoint(config(with_block()), file, f'{tmp_path}/out.pth')
    assert str(adapted) == '3 blocks, the network computes what it did'


def test_a_config_without_a_model(file, tmp_path):
    with pytest.raises(ValueError, match='has no model'):
        adapt_checkpoint(Config(dict(a=1)), file, f'{tmp_path}/out.pth')


def test_heads_of_other_names_are_not_looked_at(file, tmp_path):
    weights = torch.load(file, weights_only=True)['state_dict']
    renamed = {
        k if k.startswith('backbone.') else f'x.{k}': v for k, v in weights.items()
    }
    torch.save(renamed, file)
    adapted = str(adapt_checkpoint(config(with_block()), file, f'{tmp_path}/out.pth'))
    others = len([k for k in renamed if k.startswith('x.')])
    assert 'the backbone computes what it did; taken for' in adapted
    assert adapted.endswith(f'... ({others}) not looked at')


CONFIG = ROOT / 'configs/demo/mask-rcnn_r50-lct_fpn_demo.py'


def test_the_tool(run_python, tmp_path):
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.plugins = None
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'in.pth')
    tool = [ROOT / 'tools/adapt_checkpoint.py', tmp_path / 'in.pth']
    position = 'model.backbone.plugins.0.position=after_conv3'
    options = ['--config', CONFIG, '--cfg-options', position]
    lines = run_python(*tool, tmp_path / 'out.pth', *options).stdout.splitlines()
    first = 'backbone.layer2.0.lct, LCT: backbone.layer2.0.bn3 scaled by 1.368'
    assert first in lines
    assert lines[-1].endswith('out.pth: 13 blocks, the network computes what it did')
    refused = run_python(*tool, tmp_path / 'in.pth', *options, check=False)
    assert refused.returncode == 1
    assert 'in.pth is the file to be read; name another one' in refused.stdout
    assert 'Traceback' not in refused.stdout
