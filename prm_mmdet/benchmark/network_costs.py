"""What the blocks cost in ResNet-50, and in a Mask R-CNN with ResNet-50."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Callable

import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn
from torch._dynamo.utils import counters

from ..config import config_path, load_config
from .measure import Function, Setting, interleave, multiply_adds, peak_memory, ratio

# Each config places its block as in the detection tables of the papers.
BLOCKS = {
    'PRM': 'prm/mask-rcnn_r50-prm-c3-c5_fpn_1x_coco.py',
    'LCT': 'lct/mask-rcnn_r50-lct-c3-c5_fpn_1x_coco.py',
    'SAC': 'sac/mask-rcnn_r50-sac-c3-c5_fpn_4xb2-1x_coco.py',
    'SE': 'sac/mask-rcnn_r50-se-c3-c5_fpn_4xb2-1x_coco.py',
    'CBAM': 'sac/mask-rcnn_r50-cbam-c3-c5_fpn_4xb2-1x_coco.py',
    'GC': 'sac/mask-rcnn_r50-gc-c3-c5_fpn_4xb2-1x_coco.py',
    'DA': 'sac/mask-rcnn_r50-da-c3-c5_fpn_4xb2-1x_coco.py',
}
NONE = 'none'
_DETECTOR = '_base_/v3/mask-rcnn_r50_fpn.py'
# Sizes (height, width) of batches in a multi-scale training, in pixels. These sizes are
# for a ``setting.size`` whose shorter side is 800. For another shorter side, all sizes
# are scaled in proportion.
MULTI_SCALE = ((640, 1088), (672, 1120), (704, 1184), (800, 1344), (1344, 800))

# Each network has two dicts. The first dict has the functions to measure, by names such
# as 'step' or 'inference'. The second dict has more entries for the network's record,
# such as multiply-adds.
_Networks = dict[str, tuple[dict[str, Function], dict[str, Any]]]


def measure_backbones(
    blocks: Sequence[str],
    setting: Setting,
    rounds: int,
    inference: bool = False,
    compiled: bool = False,
    progress: Callable[[str], Any] = lambda text: None,
) -> list[dict[str, Any]]:
    """Measure ResNet-50 without a block, and with each of the blocks.

    A training step is a forward, a backward and a step of SGD. Its loss is the sum of
    the means of all output maps. The stem and c2 (``layer1``) are frozen and batch norm
    keeps its statistics, as in the papers' detection tables.

    Args:
        blocks: Names in :data:`BLOCKS`.
        setting: Conditions of the measurement.
        rounds: How often each function is timed, at least 2.
        inference: Whether to measure inference, with batch norm and with batch norm
            folded into the convolutions, instead of a training step. Default: False.
        compiled: Whether to measure the network under torch.compile with dynamic
            shapes, too. The record of a training step then counts recompilations over
            the sizes of :data:`MULTI_SCALE`. Default: False.
        progress: Called with one line of text before each round. Default: no output.

    Returns:
        A record (dict) for each network, with:

        - ``name``: 'none' for the network without a block;
        - ``seconds``: for each kind of run, one time for each round. The kinds are
          'step' (training), 'inference', 'folded' (inference with folded batch norm)
          and 'compiled';
        - ``ratios``: for each kind of run, the time divided by the time of 'none';
        - ``memory``: peak memory of 'step' or of 'inference', in bytes;
        - ``multiply_adds``: number of multiply-adds in a forward;
        - ``recompilations``: number of recompilations, if a training step was compiled.
    """
    register_all_modules()
    images = torch.randn(setting.batch, 3, *setting.size, device=setting.device)
    networks: _Networks = {}
    for name, plugins in _plugins(blocks).items():
        cfg = load_config(_DETECTOR)['model']['backbone']
        model = MODELS.build(dict(cfg, plugins=plugins, init_cfg=None))
        model.to(setting.device).train(not inference)
        facts = dict(multiply_adds=multiply_adds(_forward(model, images, setting)))
        if inference:
            folded = fuse_conv_bn(copy.deepcopy(model))
            runs = dict(inference=_forward(model, images, setting))
            runs['folded'] = _forward(folded, images, setting)
            if compiled:
                network = torch.compile(folded, dynamic=True)
                runs['compiled'] = _forward(network, images, setting)
        else:
            runs = dict(step=_step(model, model, images, setting))
            if compiled:
                torch._dynamo.reset()
                progress(f'{name}: compiling')
                network = torch.compile(model, dynamic=True)
                facts['recompilations'] = _recompilations(model, network, setting)
                runs['compiled'] = _step(model, network, images, setting)
        networks[name] = runs, facts
    return _records(networks, setting, rounds, progress)


def measure_detectors(
    blocks: Sequence[str],
    setting: Setting,
    rounds: int,
    inference: bool = False,
    progress: Callable[[str], Any] = lambda text: None,
) -> list[dict[str, Any]]:
    """Measure Mask R-CNN with ResNet-50 and FPN, without a block and with each of the
    blocks, on random images and boxes. A training step is MMDetection's ``train_step``.

    Arguments and result are those of :func:`measure_backbones`. ``multiply_adds`` is
    None, because the work of the heads depends on random proposals.
    """
    register_all_modules()
    shapes = [(3, *setting.size)] * setting.batch
    networks: _Networks = {}
    for name, plugins in _plugins(blocks).items():
        cfg = Config.fromfile(config_path(_DETECTOR))
        cfg.model.backbone.update(plugins=plugins, init_cfg=None)
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).to(setting.device)
        model.train(not inference)
        inputs = demo_mm_inputs(
            setting.batch, shapes, with_mask=True, device=setting.device
        )
        run = _detector(model, inputs, setting, inference)
        runs = {'inference' if inference else 'step': run}
        networks[name] = runs, dict(multiply_adds=None)
    return _records(networks, setting, rounds, progress)


def _plugins(blocks: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    return {NONE: [], **{b: [load_config(BLOCKS[b])['plugin']] for b in blocks}}


def _forward(network: Callable[..., Any], images: Any, setting: Setting) -> Function:
    def forward() -> None:
        with torch.no_grad(), setting.autocast():
            network(images)

    return forward


def _step(
    model: nn.Module, network: Callable[..., Any], images: Tensor, setting: Setting
) -> Function:
    """A training step of a model. ``network`` is the model, or its compiled form."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9)

    def step() -> None:
        with setting.autocast():
            loss = torch.stack([y.float().mean() for y in network(images)]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _recompilations(
    model: nn.Module, network: Callable[..., Any], setting: Setting
) -> int:
    """Number of graphs that torch.compile makes for the sizes of :data:`MULTI_SCALE`.
    Graphs that the first size needs do not count."""
    graphs = []
    scale = min(setting.size) / 800
    for size in MULTI_SCALE:
        height, width = (max(64, 32 * round(scale * side / 32)) for side in size)
        images = torch.randn(setting.batch, 3, height, width, device=setting.device)
        _step(model, network, images, setting)()
        graphs.append(counters['stats']['unique_graphs'])
    return graphs[-1] - graphs[0]


def _detector(
    model: Any, inputs: dict[str, Any], setting: Setting, inference: bool
) -> Function:
    """Inference or a training step of a detector."""
    if inference:
        return _forward(model.test_step, inputs, setting)
    optimizer = dict(type='SGD', lr=1e-4, momentum=0.9)
    optim_wrapper = build_optim_wrapper(model, dict(optimizer=optimizer))

    def step() -> None:
        with setting.autocast():
            model.train_step(inputs, optim_wrapper)

    return step


def _records(
    networks: _Networks, setting: Setting, rounds: int, progress: Callable[[str], Any]
) -> list[dict[str, Any]]:
    functions = {
        (name, kind): function
        for name, (runs, _) in networks.items()
        for kind, function in runs.items()
    }

    def say(i: int) -> None:
        progress(f'round {i + 1} of {rounds}')

    times = interleave(functions, setting.device, rounds, say)
    return [
        dict(
            name=name,
            seconds={kind: times[name, kind] for kind in runs},
            ratios={k: asdict(ratio(times[name, k], times[NONE, k])) for k in runs},
            memory=peak_memory(next(iter(runs.values())), setting.device),
            **facts,
        )
        for name, (runs, facts) in networks.items()
    ]
