"""Plugins behind any module: what stays as it was, and what is refused."""

import copy
import pickle

import pytest
import torch
import torch.distributed
from mmcv.cnn.bricks import ContextBlock
from mmdet.models import FPN, PyramidVisionTransformer, ResNet
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from prm_mmdet import LCT, PRM, SAC, Plugged, attach_plugins
from prm_mmdet.files.checkpoints import read_checkpoint
from prm_mmdet.plugins import BAM

register_all_modules()

SAC_CFG = dict(type='prm_mmdet.SAC')
PRM_CFG = dict(type='prm_mmdet.PRM', groups=4)


def resnet(**settings):
    return ResNet(**dict(dict(depth=18, base_channels=16), **settings))


def plugged(first='layer2', second='layer3', **settings):
    """A network whose plugins stand in a norm, in a block, beside a Sequential, and at
    every level of the output; none of them hides its input."""
    model = attach_plugins(
        resnet(**settings),
        [
            dict(cfg=PRM_CFG, at=rf'{first}\.\d\.bn2'),
            dict(cfg=SAC_CFG, at=rf'{second}\.\d', blocks='last'),
            dict(cfg=dict(type='prm_mmdet.BAM'), at='layer[1-3]'),
            dict(cfg=dict(type='prm_mmdet.LCT', groups=4), at=''),
        ],
    )
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (PRM, LCT, SAC, BAM)):
            for p in module.parameters():
                p.data.normal_(std=0.3, generator=generator)
    model.eval()
    return model


def image(size=64):
    torch.manual_seed(1)
    return torch.randn(2, 3, size, size)


def same(outputs, others):
    assert len(outputs) == len(others) > 0
    for a, b in zip(outputs, others):
        torch.testing.assert_close(a, b)


def zero_plugins(model):
    for module in model.modules():
        if isinstance(module, (PRM, LCT, SAC, BAM)):
            for p in module.parameters():
                p.data.zero_()


def test_plugins_run_where_they_were_put():
    model = plugged()
    x, outputs, plain = image(), model(image()), resnet()
    plain.load_state_dict(model.state_dict(), strict=False)
    plain.eval()
    x = plain.maxpool(plain.relu(plain.norm1(plain.conv1(x))))
    levels = []
    for name in ('layer1', 'layer2', 'layer3', 'layer4'):
        for i, block in enumerate(getattr(plain, name)):
            theirs = getattr(model, name)[i]
            y = block.relu(block.norm1(block.conv1(x)))
            y = block.norm2(block.conv2(y))
            if name == 'layer2':
                y = theirs.bn2.prm(y)
            shortcut = x if block.downsample is None else block.downsample(x)
            x = block.relu(y + shortcut)
        if name == 'layer3':
            x = theirs.sac_block(x)
        if name != 'layer4':
            x = getattr(model, f'{name}_bam')(x)
        levels.append(model.lct[len(levels)](x))
    same(outputs, levels)


def test_the_module_itself_is_returned_and_named_as_promised():
    model = resnet()
    keys = set(model.state_dict())
    assert attach_plugins(model, [dict(cfg=SAC_CFG, at=r'layer3\.1')]) is model
    assert type(model) is ResNet and isinstance(model.layer3[1], BasicBlock)
    added = {k for k in model.state_dict() if k not in keys}
    layers = ('attention', 'customization', 'transform')
    assert added == {
        f'layer3.1.sac_block.{layer}.{kind}'
        for layer in layers
        for kind in ('weight', 'bias')
    }
    assert len(model.layer3) == 2


BUILD = """
from mmengine.registry import MODELS
plugins = [dict(cfg=dict(type='prm_mmdet.SAC'), at='layer4')]
model = dict(type='mmdet.ResNet', depth=18, base_channels=8)
model = MODELS.build(dict(type='prm_mmdet.Plugged', model=model, plugins=plugins))
print(type(model).__name__, type(model.layer4_sac_block).__name__)
"""


def test_the_scoped_name_needs_no_import(run_python):
    assert run_python('-c', BUILD, fork=True).stdout.splitlines()[-1] == 'ResNet SAC'


def test_classes_and_functions_are_types():
    cfg = dict(type=ResNet, depth=18, base_channels=8)
    plugins = [dict(cfg=dict(type=SAC), at='layer4')]
    model = MODELS.build(dict(type=Plugged, model=cfg, plugins=plugins))
    assert type(model.layer4_sac_block) is SAC


def test_plugins_on_one_module_run_in_the_order_of_the_specs():
    specs = [
        dict(cfg=dict(PRM_CFG, postfix=1), at='conv1'),
        dict(cfg=SAC_CFG, at='conv1'),
        dict(cfg=dict(PRM_CFG, postfix='_b'), at='conv1'),
    ]
    model = attach_plugins(resnet(), specs)
    conv = model.conv1
    for p in (*conv.prm1.parameters(), *conv.sac_block.parameters()):
        p.data.normal_()
    x = image()
    expected = nn.functional.conv2d(x, conv.weight, None, 2, 3)
    for plugin in (conv.prm1, conv.sac_block, conv.prm_b):
        expected = plugin(expected)
    assert torch.equal(conv(x), expected)


@pytest.mark.parametrize(
    ('copied', 'how'),
    [
        (copy.deepcopy, 'deepcopy'),
        (lambda m: pickle.loads(pickle.dumps(m)), 'pickle'),
        (lambda m: ExponentialMovingAverage(m).module, 'EMA'),
    ],
)
def test_copies_run_their_own_plugins(copied, how):
    model = plugged()
    twin = copied(model)
    assert type(twin) is ResNet
    before = model(image())
    same(twin(image()), before)
    zero_plugins(model)
    same(twin(image()), before)
    zero_plugins(twin)
    same(twin(image()), model(image()))
    # What init_weights does, it does to the copy.
    twin.init_weights()
    assert not any(p.any() for p in model.layer3[1].sac_block.parameters())


def test_the_moving_average_follows_the_plugins():
    model = plugged()
    average = ExponentialMovingAverage(model, momentum=0.5)
    average.update_parameters(model)
    zero_plugins(model)
    weight = average.module.layer1_bam.spatial[0].weight.clone()
    average.update_parameters(model)
    updated = average.module.layer1_bam.spatial[0].weight
    torch.testing.assert_close(updated, weight / 2)


def gradients(model, forward):
    model.zero_grad()
    sum(y.square().mean() for y in forward(image())).backward()
    return [p.grad.clone() for p in model.parameters()]


def test_compiled_in_one_graph():
    torch._dynamo.reset()
    one_stage = dict(num_stages=1, strides=(2,), dilations=(1,), out_indices=(0,))
    model = plugged('layer1', 'layer1', **one_stage)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    same(compiled(image()), model(image()))
    for a, b in zip(gradients(model, model), gradients(model, compiled)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_with_cp_gives_the_same_gradients():
    # The block adds in place to the output of a plugin, so that may be no view.
    model, recomputing = plugged(), plugged(with_cp=True)
    recomputing.load_state_dict(model.state_dict())
    found = [gradients(m, m) for m in (model, recomputing)]
    for plain, recomputed in zip(*found):
        torch.testing.assert_close(plain, recomputed)


def test_distributed(tmp_path):
    # In training, with a frozen stage: an unused parameter would be an error.
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    try:
        model = plugged(frozen_stages=1)
        expected = model(image())
        wrapped = DistributedDataParallel(model)
        same(wrapped(image()), expected)
        wrapped.train()
        for _ in range(3):
            sum(y.square().mean() for y in wrapped(image())).backward()
        for name, p in model.named_parameters():
            frozen = name.startswith(('conv1', 'bn1', 'layer1.'))
            assert (p.grad is None) == frozen, name
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize('wrong', [dict(at='layer9'), dict(input_shape=64)])
def test_a_refusal_attaches_nothing(wrong):
    model = resnet()
    keys = list(model.state_dict())
    specs = [dict(cfg=SAC_CFG, at=at) for at in ('layer1', wrong.pop('at', 'layer2'))]
    with pytest.raises(ValueError):
        attach_plugins(model, specs, **wrong)
    assert list(model.state_dict()) == keys
    assert not any(m._forward_hooks for m in model.modules())


def test_plugins_take_dtype_and_device_of_what_they_follow():
    model = resnet().to(torch.bfloat16)
    attach_plugins(model, [dict(cfg=SAC_CFG, at='layer1'), dict(cfg=SAC_CFG, at='')])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.device('meta'):
        model = resnet()
    attach_plugins(model, [dict(cfg=SAC_CFG, at='')])
    assert all(p.is_meta for p in model.parameters())


# -- initial values --------------------------------------------------------------------

ZEROS = [SAC_CFG, dict(type='ContextBlock', ratio=1 / 4)]
# Kaiming's numbers in every Conv2d, Xavier's, and a loop over all modules.
INITIALISED = {
    'ResNet': (dict(type='ResNet', depth=18, base_channels=16), r'layer2\.\d\.bn2'),
    'FPN': (dict(type='FPN', in_channels=[8, 16], out_channels=8, num_outs=2), ''),
    'PVT': (
        dict(
            type='PyramidVisionTransformer',
            embed_dims=8,
            num_layers=(1, 1, 1, 1),
            num_heads=(1, 1, 1, 1),
        ),
        '',
    ),
}


@pytest.mark.parametrize('cfg', ZEROS, ids=lambda cfg: cfg['type'])
@pytest.mark.parametrize('name', INITIALISED)
def test_init_weights_is_the_models_own_and_spares_the_plugins(name, cfg):
    model, at = INITIALISED[name]
    model = MODELS.build(
        dict(type='prm_mmdet.Plugged', model=model, plugins=[dict(cfg=cfg, at=at)])
    )
    blocks = [m for m in model.modules() if isinstance(m, (SAC, ContextBlock))]
    built = [copy.deepcopy(m.state_dict()) for m in blocks]
    others = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    inside = {m for block in blocks for m in block.modules()}
    before = [m.weight.clone() for m in others]
    model.init_weights()
    for block, state in zip(blocks, built):
        assert all(torch.equal(v, state[k]) for k, v in block.state_dict().items())
        x = torch.randn(2, block.in_channels, 4, 4)
        assert torch.equal(block(x), x)
    for m, weight in zip(others, before):
        assert (m in inside) == torch.equal(m.weight, weight)
    assert isinstance(model, (ResNet, FPN, PyramidVisionTransformer))


@pytest.mark.parametrize('name', ['ResNet', 'PVT'])
@pytest.mark.parametrize('with_plugins', [True, False])
def test_pretrained_weights_are_loaded(tmp_path, name, with_plugins):
    cfg, _ = INITIALISED[name]
    path = str(tmp_path / 'x.pth')

    def build(**settings):
        model = ConfigDict(cfg, **settings)
        return Plugged(model, [dict(cfg=SAC_CFG, at='')])

    trained = build()
    for p in trained.parameters():
        p.data.normal_()
    state = trained.state_dict()
    torch.save(
        {k: v for k, v in state.items() if with_plugins or 'sac_block' not in k}, path
    )
    model = build(init_cfg=dict(type='Pretrained', checkpoint=path))
    built = copy.deepcopy(model.state_dict())
    model.init_weights()
    for key, value in model.state_dict().items():
        loaded = with_plugins or 'sac_block' not in key
        assert torch.equal(value, (state if loaded else built)[key]), key


def detector(name):
    """One of MMDetection's, of ResNet-18."""
    cfg = Config.fromfile(Config._get_cfg_path(f'mmdet::{name}', '')[0]).model
    cfg.backbone.update(init_cfg=None, depth=18)
    cfg.neck.in_channels = [64, 128, 256, 512]
    return cfg


def test_a_detectors_init_weights_reaches_the_plugins():
    cfg = detector('retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.backbone = dict(
        type='prm_mmdet.Plugged',
        model=cfg.backbone,
        plugins=[dict(cfg=SAC_CFG, at=r'layer4\.1\.bn2')],
    )
    model = MODELS.build(cfg)
    model.init_weights()
    block = model.backbone.layer4[1].bn2.sac_block
    assert not block.transform.weight.any() and block.attention.weight.any()


def test_a_lost_plugin_is_noticed():
    model = resnet()
    attach_plugins(model, [dict(cfg=SAC_CFG, at=r'layer2\.\d\.bn2')])
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.raises(ValueError, match='BatchNorm2d before a SAC was replaced'):
        model.init_weights()
    synced = resnet(norm_cfg=dict(type='SyncBN'))
    attach_plugins(synced, [dict(cfg=SAC_CFG, at=r'layer2\.\d\.bn2')])
    synced.init_weights()


# -- training flags and frozen parts ---------------------------------------------------


def test_frozen_stages_freeze_what_stands_in_them():
    model = resnet(frozen_stages=1)
    attach_plugins(
        model,
        [
            dict(cfg=SAC_CFG, at=r'layer1\.\d', blocks='last'),
            dict(cfg=dict(type='prm_mmdet.BAM'), at='layer[12]'),
        ],
    )

    def check():
        assert not any(p.requires_grad for p in model.layer1.parameters())
        beside = (model.layer1_bam, model.layer2_bam)
        assert all(p.requires_grad for bam in beside for p in bam.parameters())
        # norm_eval, the default, is for all of the backbone's.
        assert not any(bam.spatial[1].training for bam in beside)

    check()
    model.train()
    check()


# -- where -----------------------------------------------------------------------------


def names(model, block=SAC):
    return [n for n, m in model.named_modules() if isinstance(m, block)]


@pytest.mark.parametrize(
    ('at', 'blocks', 'expected'),
    [
        (r'layer[23]\.\d', 'last', ['layer2.3', 'layer3.5']),
        (r'layer[23]\.\d', [0], ['layer2.0', 'layer3.0']),
        (r'layer[23]\.\d', (0, -1), ['layer2.0', 'layer2.3', 'layer3.0', 'layer3.5']),
        (r'layer[23]\.\d', [-1, 3], ['layer2.3', 'layer3.3', 'layer3.5']),
        (r'layer[23]\.\d\.bn2', 'last', ['layer2.3.bn2', 'layer3.5.bn2']),
        ('layer[23]', 'last', ['layer3_']),
        (r'layer3\.[024]', None, ['layer3.0', 'layer3.2', 'layer3.4']),
    ],
)
def test_blocks(at, blocks, expected):
    spec = dict(cfg=SAC_CFG, at=at)
    if blocks is not None:
        spec['blocks'] = blocks
    model = attach_plugins(resnet(depth=50, base_channels=8), [spec])
    found = [name.replace('.sac_block', '') for name in names(model)]
    assert [name.replace('sac_block', '') for name in found] == expected


def test_nested_sequentials_are_left_as_long_as_they_were():
    model = nn.Module()
    model.body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1)), nn.ReLU())
    model.forward = lambda x: model.body(x)
    attach_plugins(model, [dict(cfg=SAC_CFG, at=r'body\.0')])
    assert len(model.body) == 2 and len(model.body[0]) == 1
    assert names(model) == ['body_0_sac_block']
    model.body_0_sac_block.transform.bias.data += 1
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(model(x), (model.body[0][0](x) + 1).relu())


def test_the_input_can_be_described():
    block = BasicBlock(16, 16)
    spec = dict(cfg=SAC_CFG, at='')
    with pytest.raises(ValueError, match=r'could not be run.*Give input_shape=\(C, H'):
        attach_plugins(block, [spec])
    # Certain without a run.
    attach_plugins(block, [dict(cfg=SAC_CFG, at='bn2'), dict(cfg=SAC_CFG, at='conv1')])
    attach_plugins(block, [spec], input_shape=(16, 8, 8))
    assert block.sac_block.in_channels == 16
    neck = dict(type='ChannelMapper', in_channels=[8, 16], out_channels=4)
    neck = Plugged(neck, [spec], input_shape=[(8, 4, 4), (16, 2, 2)])
    assert [p.in_channels for p in neck.sac_block] == [4, 4]


def test_a_whole_detector_can_be_given():
    model = MODELS.build(detector('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'))
    specs = [
        dict(cfg=SAC_CFG, at=r'backbone\.layer3\.\d'),
        dict(cfg=SAC_CFG, at='neck'),
    ]
    attach_plugins(model, specs)
    assert len(names(model)) == 2 + 5


def test_attaching_again_adds():
    model = attach_plugins(resnet(), [dict(cfg=SAC_CFG, at='layer1')])
    attach_plugins(model, [dict(cfg=SAC_CFG, at='layer2')])
    model.init_weights()
    for block in (model.layer1_sac_block, model.layer2_sac_block):
        assert not block.transform.weight.any()


# -- refusals --------------------------------------------------------------------------


def test_names_that_are_taken():
    model = resnet(depth=50, base_channels=8)
    spec = dict(cfg=SAC_CFG, at=r'layer2\.1')
    words = r"plugins\[1\]: .* has a 'sac_block' already; .* postfix='_2'"
    with pytest.raises(ValueError, match=words):
        attach_plugins(model, [spec, spec])
    beside = dict(spec, at='layer2')
    with pytest.raises(ValueError, match=r"has a 'layer2_sac_block' beside it already"):
        attach_plugins(model, [beside, beside])
    attach_plugins(model, [spec])
    with pytest.raises(ValueError, match=r"'layer2\.1' of ResNet has a 'sac_block'"):
        attach_plugins(model, [spec])
    attach_plugins(model, [dict(spec, cfg=dict(SAC_CFG, postfix='_2'))])
    assert names(model) == ['layer2.1.sac_block', 'layer2.1.sac_block_2']


def test_tokens_are_refused():
    settings = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    model = MODELS.build(dict(type='SwinTransformer', **settings))
    for at in (r'stages\.0', r'stages\.0\.blocks\.0\.norm1'):
        # Modules without weights, such as dropout, are not offered.
        words = (
            r'it returns .*\(1, 1.* not maps \(B, C, H, W\) or \(B, H, W, C\), which '
        )
        words += r"plugins require; maps are returned by '' \(the model itself\)$"
        with pytest.raises(ValueError, match=words):
            attach_plugins(model, [dict(cfg=SAC_CFG, at=at)])


def test_modules_that_are_never_called_are_refused():
    model = MODELS.build(dict(type='CSPDarknet', widen_factor=0.125))
    model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match=r"'unused' .*CSPDarknet never calls it"):
        attach_plugins(model, [dict(cfg=SAC_CFG, at='unused')])


def test_modules_of_several_widths_are_refused():
    model = resnet(depth=50, base_channels=8)
    with pytest.raises(ValueError, match='several times, with different channels'):
        attach_plugins(model, [dict(cfg=SAC_CFG, at=r'layer1\.0\.relu')])


def test_as_many_maps_in_training_as_in_inference():
    class Branches(nn.Module):
        def forward(self, x):
            return [x, x] if self.training else [x]

    model = attach_plugins(Branches(), [dict(cfg=SAC_CFG, at='')])
    model.train()
    with pytest.raises(ValueError, match=r'returned 2 maps, but .* it returned 1'):
        model(torch.zeros(1, 3, 4, 4))


def test_initial_weights_beside_a_model_that_has_its_own_are_refused():
    weights = dict(type='Pretrained', checkpoint='ours.pth')
    resnet18 = dict(type='ResNet', depth=18)
    cfg = dict(plugins=[dict(cfg=SAC_CFG, at='layer2')], init_cfg=weights)
    assert Plugged(resnet18, **cfg).init_cfg == weights
    with pytest.raises(ValueError, match=r'theirs\.pth.*set model\.init_cfg'):
        Plugged(dict(resnet18, init_cfg=dict(weights, checkpoint='theirs.pth')), **cfg)


class Learner(BaseModel):
    """A network that the Runner can train: it makes its maps small."""

    def __init__(self):
        super().__init__()
        self.backbone = plugged()

    def forward(self, x, mode):
        return dict(loss=sum(y.square().mean() for y in self.backbone(x)))


def test_the_ema_hook_averages_and_saves_the_plugins(tmp_path):
    runner = Runner(
        Learner(),
        str(tmp_path),
        train_dataloader=DataLoader([dict(x=x) for x in image()], batch_size=2),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='EMAHook', momentum=0.5)],
        default_scope='mmdet',
    )
    runner.train()
    saved = read_checkpoint(tmp_path / 'epoch_2.pth')
    trained = {
        k.removeprefix('module.'): v
        for k, v in saved['ema_state_dict'].items()
        if k != 'steps'
    }
    average = saved['state_dict']  # the hook swaps them
    assert set(average) == set(trained) == set(runner.model.state_dict())
    earlier = read_checkpoint(tmp_path / 'epoch_1.pth')['state_dict']
    for key in ('layer3.1.sac_block.transform.weight', 'lct.3.bias'):
        key = f'backbone.{key}'
        expected = (earlier[key] + trained[key]) / 2
        torch.testing.assert_close(average[key], expected)
        assert not torch.equal(average[key], trained[key])
