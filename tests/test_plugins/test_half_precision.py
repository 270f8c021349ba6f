"""Inference in half precision, by autocast and by models that are cast."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.optim import AmpOptimWrapper
from torch import nn

from prm_mmdet import LCT, PRM, SAC

register_all_modules()

HALF = (torch.float16, torch.bfloat16)
DEVICES = ('cpu', 'cuda')[: 1 + torch.cuda.is_available()]


# -- a block alone, on maps whose sums overflow float16 --------------------------------


def randomized(block):
    for name, parameter in block.named_parameters():
        # SAC's convolutions: logits, and an output that float16 can hold.
        small = dict(attention=1e-4, customization=1e-5, transform=1e-3)
        nn.init.normal_(parameter, std=small.get(name.partition('.')[0], 1))
    return block.eval()


BLOCKS = {
    'PRM': lambda: PRM(64, groups=8),
    'PRM l1': lambda: PRM(64, groups=8, similarity='l1'),
    'PRM cosine': lambda: PRM(64, groups=8, similarity='cosine'),
    'LCT': lambda: LCT(64, groups=8),
    'SAC': lambda: SAC(64),
    'SAC softmax': lambda: SAC(64, softmax=True),
    'SAC bottleneck': lambda: SAC(64, transform='bottleneck'),
}
SHAPE = (2, 64, 37, 29)
# Channels differ in size: LCT of equal ones would blow the last bits of means up.
SIZES = torch.linspace(1e4, 5e4, 64)[:, None, None]
MAPS = {
    'constant': lambda: torch.ones(SHAPE),
    'alternating': lambda: (-1.0) ** torch.arange(37 * 29).view(37, 29).expand(SHAPE),
    'positive': lambda: torch.rand(SHAPE),
    'normal': lambda: torch.randn(SHAPE).clamp(-3, 3) / 3,
}


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('maps', MAPS)
@pytest.mark.parametrize('block', BLOCKS)
def test_large_features(block, maps, dtype, device, monkeypatch):
    block = randomized(BLOCKS[block]()).to(device, dtype)
    x = (SIZES * MAPS[maps]()).to(device, dtype)
    y = block(x)
    assert y.dtype == dtype and y.isfinite().all()
    monkeypatch.setenv('PRM_MMDET_BACKEND', 'reference')
    exact = copy.deepcopy(block).double()(x.double())
    error = (y.double() - exact).abs().max() / exact.abs().max()
    # Half a unit in the last place; a block of several layers rounds after each.
    assert error < torch.finfo(dtype).eps * (3 if isinstance(block, SAC) else 0.51)


# -- in a network ----------------------------------------------------------------------

PLUGINS = {
    'PRM': dict(cfg=dict(type='prm_mmdet.PRM', groups=16), position='after_conv3'),
    'LCT': dict(cfg=dict(type='prm_mmdet.LCT', groups=16), position='after_conv3'),
    'SAC': dict(cfg=dict(type='prm_mmdet.SAC'), position='after_conv2'),
}


def resnet(block):
    torch.manual_seed(0)
    cfg = dict(type='ResNet', depth=50, base_channels=16, plugins=[PLUGINS[block]])
    model = MODELS.build(cfg)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.7)
        elif isinstance(module, (PRM, LCT, SAC)):
            for parameter in module.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.eval()
    return model


def rounded(model, dtype):
    """The same network in float64, but for results of layers and blocks: these are
    rounded as in half precision."""
    model = copy.deepcopy(model).to(dtype).double()
    blocks = [m for m in model.modules() if isinstance(m, (PRM, LCT, SAC))]
    inside = {child for block in blocks for child in block.children()}
    for module in model.modules():
        leaf = not list(module.children()) and module not in inside
        if leaf or module in blocks:
            module.register_forward_hook(lambda m, i, y: y.to(dtype).double())
    return model


def errors(levels, exact):
    return [((y.double() - e).norm() / e.norm()).item() for y, e in zip(levels, exact)]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('block', PLUGINS)
@torch.no_grad()
def test_a_network_loses_what_rounding_loses(block, device):
    model = resnet(block).to(device)
    x = torch.randn(1, 3, 64, 96, device=device)
    exact = copy.deepcopy(model).double()(x.double())
    for dtype in HALF:
        halved = copy.deepcopy(model).to(dtype)(x.to(dtype))
        with torch.autocast(device, dtype):
            cast = model(x)
        bounds = errors(rounded(model, dtype)(x.to(dtype).double()), exact)
        for levels in (halved, cast):
            assert {y.dtype for y in levels} == {dtype}
            for error, bound in zip(errors(levels, exact), bounds):
                assert error < 1.3 * bound


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.parametrize('block', PLUGINS)
def test_mixed_precision_training(block):
    model = resnet(block).cuda()
    model.train()
    before = {k: v.clone() for k, v in model.named_parameters()}
    optimizer = AmpOptimWrapper(
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3), loss_scale=128.0
    )
    for _ in range(2):
        with optimizer.optim_context(model):
            levels = model(torch.randn(2, 3, 64, 64, device='cuda'))
            loss = sum(y.float().square().mean() for y in levels)
        optimizer.update_params(loss)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.isfinite().all(), name
    learned = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert any(f'.{PLUGINS[block]["cfg"]["type"][-3:].lower()}' in n for n in learned)
