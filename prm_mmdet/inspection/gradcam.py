"""Grad-CAM of a detection's or an image's class score.

Source: R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-Based Localization", ICCV 2017.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmdet.models import BaseDetector
from torch.overrides import TorchFunctionMode

from ..pretraining import ImageClassifier
from .geometry import Frame, Grid, Grids
from .style import (
    class_name,
    colour_bar,
    image_grid,
    panel_shape,
    show_image,
    show_map,
)


@dataclass
class ClassCAM:
    """Grad-CAM of a class score at each stage of the backbone."""

    label: int
    score: float  # probability, 0 to 1
    # For each stage, the pixels of the map's positions (a Grid), and the map (h, w). A
    # map is divided by its maximum, unless the map is 0 everywhere.
    maps: list[tuple[Grid, np.ndarray]]
    # Box of the detection: x1, y1, x2, y2 in pixels, (4,). None for a classifier.
    box: np.ndarray | None = None


def class_cam(
    model: BaseDetector | ImageClassifier, data: dict, rank: int = 0
) -> ClassCAM | None:
    """Grad-CAM of a class score, at each map that the backbone returns.

    The model runs as in inference, but with gradients. For a detector, the score
    belongs to a box that the detector returns. Scores that a head detaches would have
    no gradient, so ``Tensor.detach`` does nothing during the run. This works for
    MMDetection's one-stage and two-stage heads and the DETR family. For a classifier,
    the score is a logit, and the backbone also returns the maps of earlier stages.

    Args:
        model: A detector of MMDetection or an ImageClassifier, in evaluation mode.
        data: Input of ``test_step`` for one image.
        rank: Which detection or class to explain. 0 is the first detection that the
            model returns, or the most probable class. Default: 0.

    Returns:
        The maps, with class, score and box. None if the detection or class does not
        exist, or if the gradient of its score is zero or not finite.
    """
    maps, grids = [], []

    def start(backbone, inputs):
        # Let the input require a gradient. Then maps of frozen stages get one, too.
        return (inputs[0].clone().requires_grad_(), *inputs[1:])

    def keep(backbone, inputs, output):
        maps.extend(output if isinstance(output, (tuple, list)) else [output])
        grids.extend(tracker.of(m.shape[2:]) for m in maps)

    with contextlib.ExitStack() as stack:
        tracker = stack.enter_context(Grids(model))
        backbone = model.backbone
        stack.callback(backbone.register_forward_pre_hook(start).remove)
        stack.callback(backbone.register_forward_hook(keep).remove)
        if isinstance(model, ImageClassifier) and hasattr(backbone, 'out_indices'):
            before = backbone.out_indices
            stack.callback(setattr, backbone, 'out_indices', before)
            backbone.out_indices = tuple(range(max(before) + 1))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_Attached())
        found = model.test_step(data)[0]
    cam, score = _ranked(found, rank)
    if cam is None or not score.requires_grad:
        return None
    gradients = torch.autograd.grad(score, maps, allow_unused=True)
    by_stage = {}
    for grid, features, gradient in zip(grids, maps, gradients):
        if gradient is None:
            gradient = torch.zeros_like(features)
        weights = gradient.mean((2, 3), keepdim=True)
        raw = (weights * features.detach()).sum(1)[0].relu().double().cpu().numpy()
        # Maps of the same size have the same grid. If a backbone returns several maps
        # of a size, the last one replaces the earlier ones.
        by_stage[grid] = raw / raw.max() if raw.max() > 0 else raw
    cam.maps = list(by_stage.items())
    tops = [raw.max() for _, raw in cam.maps]
    return cam if np.isfinite(tops).all() and any(tops) else None


def _ranked(found, rank):
    """A ClassCAM without maps for the detection or class number ``rank``, and the score
    as a tensor. (None, None) if there is no such detection or class."""
    if isinstance(found, dict):
        logits = found['logits']
        if rank >= len(logits):
            return None, None
        label = int(logits.argsort(descending=True)[rank])
        probability = found['pred_scores'][label].item()
        return ClassCAM(label, probability, []), logits[label]
    found = found.pred_instances
    if rank >= len(found):
        return None, None
    score = found.scores[rank]
    box = found.bboxes[rank].detach().cpu().numpy()
    return ClassCAM(int(found.labels[rank]), score.item(), [], box), score


def draw_cam(
    cam: ClassCAM, image: np.ndarray, frame: Frame, classes: Sequence[str]
) -> Figure:
    """Draw Grad-CAM at each stage beside the image, as in Figure 5 of the PRM paper.

    Args:
        cam: Result of :func:`class_cam`.
        image: The image, RGB, (H, W, 3).
        frame: The mapping from the network's input to the pixels of this image.
        classes: Names of the classes.
    """
    figure, axes = image_grid([image], 1 + len(cam.maps), panel=2.2)
    show_image(axes[0, 0], image, f'{class_name(classes, cam.label)} {cam.score:.2f}')
    for axis, (grid, values) in zip(axes[0, 1:], cam.maps):
        values = frame.resize(values, grid, panel_shape(image))
        title = grid.stage if values.any() else f'{grid.stage}: nowhere'
        drawn = show_map(axis, image, values, title, vmin=0, vmax=1)
    if cam.box is not None:
        x1, y1, x2, y2 = cam.box
        for axis in axes[0]:
            for colour, width in (('white', 2.4), ('#D55E00', 1.2)):
                look: dict[str, Any] = dict(fill=False, ec=colour, lw=width)
                axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **look))
    colour_bar(figure, drawn, axes, 'Grad-CAM (maximum 1)')
    return figure


class _Attached(TorchFunctionMode):
    """Makes ``Tensor.detach`` do nothing inside a ``with`` statement.

    One-stage heads detach scores before they select the best boxes. The scores of the
    boxes would then have no gradient.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.detach:
            return args[0]
        return function(*args, **(kwargs or {}))
