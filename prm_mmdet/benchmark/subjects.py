"""What is measured: blocks alone, in a backbone and in a detector."""

import contextlib
import os
from dataclasses import dataclass
from typing import Callable, NamedTuple

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper

from ..config import config_path, load_config
from ..ops.backend import VARIABLE

# The configs that say where each block stands, and with which arguments.
BLOCKS = {
    'PRM': 'prm/mask-rcnn_r50-prm-c3-c5_fpn_1x_coco.py',
    'LCT': 'lct/mask-rcnn_r50-lct-c3-c5_fpn_1x_coco.py',
    'SAC': 'sac/mask-rcnn_r50-sac-c3-c5_fpn_4xb2-1x_coco.py',
    'SE': 'sac/mask-rcnn_r50-se-c3-c5_fpn_4xb2-1x_coco.py',
    'CBAM': 'sac/mask-rcnn_r50-cbam-c3-c5_fpn_4xb2-1x_coco.py',
    'GC': 'sac/mask-rcnn_r50-gc-c3-c5_fpn_4xb2-1x_coco.py',
    'DA': 'sac/mask-rcnn_r50-da-c3-c5_fpn_4xb2-1x_coco.py',
}
OURS = ('PRM', 'LCT', 'SAC')  # have a line-by-line form to compare with
DETECTOR = '_base_/v3/mask-rcnn_r50_fpn.py'
LIMIT = 'x * gate'


class Subject(NamedTuple):
    """Something to measure, as functions without arguments that keep nothing: one for
    inference, ``forward``, and one for training, ``step``."""

    forward: Callable
    step: Callable


@dataclass(frozen=True)
class Setting:
    """What subjects run on.

    Args:
        device (torch.device): Where.
        dtype (torch.dtype): Of the features of a block alone; backbones and detectors
            run under autocast to it, unless it is float32.
        batch (int): Images.
        size (tuple): Height and width of the images, in pixels.
    """

    device: torch.device
    dtype: torch.dtype
    batch: int
    size: tuple


def stages(setting, position):
    """Shapes of the maps that a plugin of ResNet-50 sees: from c2 to c5."""
    width = 64 if position == 'after_conv2' else 256
    height, wide = setting.size
    return [
        (setting.batch, width << i, -(-height // (4 << i)), -(-wide // (4 << i)))
        for i in range(4)
    ]


def blocks_alone(setting, name, stage):
    """A block on one stage's maps, its line-by-line form, and the limits.

    Args:
        setting (Setting): What they run on.
        name (str): Of :data:`BLOCKS`.
        stage (int): 0 for c2 to 3 for c5.

    Returns:
        tuple[tuple, dict, Callable]: The shape of the maps; names to
        :class:`Subject`; and a function that copies one such map.
    """
    register_all_modules()
    plugin = load_config(BLOCKS[name])['plugin']
    shape = stages(setting, plugin['position'])[stage]
    x = torch.randn(shape, device=setting.device, dtype=setting.dtype)
    x.requires_grad_()
    gradient = torch.randn_like(x)
    block = MODELS.build(dict(plugin['cfg'], in_channels=shape[1])).to(setting.device)
    with torch.no_grad():  # at their initial values some gradients are exactly zero
        for parameter in block.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    gate = torch.rand(shape[:2], device=setting.device, dtype=setting.dtype)
    gate = gate[:, :, None, None]

    # Under autocast, as in a network, parameters and features differ in dtype.
    context = _autocast(setting)
    subjects = {name: _operator(block, x, gradient, context)}
    if name in OURS:
        reference = _forced('reference', context)
        subjects[f'{name}, reference'] = _operator(block, x, gradient, reference)
    limit = _operator(lambda x: x * gate, x, gradient, context)
    subjects[LIMIT] = limit
    target = torch.empty_like(x, requires_grad=False)
    return shape, subjects, lambda: target.copy_(x.detach())


def _operator(function, x, gradient, context):
    leaves = [x, *getattr(function, 'parameters', list)()]

    def forward():
        with torch.no_grad(), context():
            function(x)

    def step():
        with context():
            y = function(x)
        torch.autograd.grad(y, leaves, gradient, allow_unused=True)

    return Subject(forward, step)


def backbones(setting, names):
    """ResNet-50 without a block and with each: names to :class:`Subject`.

    A training step is the forward, the backward of the sum of all maps' means and a
    step of SGD, with c1 and c2 frozen and BatchNorm in evaluation mode, as in the
    papers' rows.
    """
    register_all_modules()
    subjects = {}
    images = torch.randn(setting.batch, 3, *setting.size, device=setting.device)
    for name, plugins in _plugins(names).items():
        cfg = load_config(DETECTOR)['model']['backbone']
        model = MODELS.build(dict(cfg, plugins=plugins, init_cfg=None))
        model.to(setting.device)
        subjects[name] = _backbone(model, images, setting)
    return subjects


def _backbone(model, images, setting):
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9
    )
    context = _autocast(setting)

    def forward():
        model.eval()
        with torch.no_grad(), context():
            model(images)

    def step():
        model.train()
        with context():
            loss = sum(y.float().mean() for y in model(images))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(forward, step)


def detectors(setting, names):
    """Mask R-CNN with ResNet-50 and FPN, without a block and with each: names to
    :class:`Subject`. A training step is MMDetection's, on random images and boxes."""
    register_all_modules()
    subjects = {}
    for name, plugins in _plugins(names).items():
        cfg = Config.fromfile(config_path(DETECTOR))
        cfg.model.backbone.update(plugins=plugins, init_cfg=None)
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).to(setting.device)
        shapes = [(3, *setting.size)] * setting.batch
        inputs = demo_mm_inputs(
            setting.batch, shapes, with_mask=True, device=setting.device
        )
        subjects[name] = _detector(model, inputs, setting)
    return subjects


def _detector(model, inputs, setting):
    optimizer = dict(type='SGD', lr=1e-4, momentum=0.9)
    optim_wrapper = build_optim_wrapper(model, dict(optimizer=optimizer))
    context = _autocast(setting)

    def forward():
        model.eval()
        with torch.no_grad(), context():
            model.test_step(inputs)

    def step():
        model.train()
        with context():
            model.train_step(inputs, optim_wrapper)

    return Subject(forward, step)


def _plugins(names):
    return {'none': [], **{n: [load_config(BLOCKS[n])['plugin']] for n in names}}


def _autocast(setting):
    enabled = setting.dtype != torch.float32
    dtype = setting.dtype if enabled else None
    return lambda: torch.autocast(setting.device.type, dtype, enabled=enabled)


def _forced(backend, context):
    """A context with one implementation of the operators chosen for them."""

    @contextlib.contextmanager
    def forced():
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = backend
        try:
            with context():
                yield
        finally:
            del os.environ[VARIABLE]
            if before is not None:
                os.environ[VARIABLE] = before

    return forced
