"""Grad-CAM of a detection's or an image's class score.

Source: R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-Based Localization", ICCV 2017.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmdet.models import BaseDetector
from torch.overrides import TorchFunctionMode

from ..pretraining import ImageClassifier
from .geometry import Frame, Grids
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
    """Where in the image a class score comes from."""

    label: int
    score: float  # probability, 0 to 1
    maps: list  # of a stage each: (Grid, (h, w) at least 0, of maximum 1 or all zero)
    box: np.ndarray | None = None  # (4,), x1, y1, x2, y2 in pixels; None: the image


def class_cam(
    model: BaseDetector | ImageClassifier, data: dict, rank: int = 0
) -> ClassCAM | None:
    """Grad-CAM of a class score, at each map that the backbone returns.

    The model runs as in inference, with gradients. For a detector, the score is that of
    a box as the detector returns it: after sigmoid or softmax, and whatever its head
    multiplies it by. Scores that heads detach stay attached. This holds for the one-
    and two-stage heads of MMDetection, and for those of the DETR family. For a
    classifier, the score is a logit, and all stages of the backbone are looked at.

    Args:
        model: A detector of MMDetection or an ImageClassifier, in evaluation mode.
        data: The input of ``test_step``, of one image.
        rank: Which detection in the detector's order, or which class from the most
            probable one on. Default: 0.

    Returns:
        None if there is no such detection or class, or if its score has no finite
        gradient other than zero.
    """
    maps, grids = [], []

    def start(backbone, inputs):
        # So that there are gradients in frozen stages, too.
        return (inputs[0].clone().requires_grad_(), *inputs[1:])

    def keep(backbone, inputs, output):
        maps.extend(output if isinstance(output, (tuple, list)) else [output])
        grids.extend(tracker.of(m.shape[2:]) for m in maps)

    with contextlib.ExitStack() as stack:
        tracker = stack.enter_context(Grids(model))
        backbone = model.backbone
        stack.callback(backbone.register_forward_pre_hook(start).remove)
        stack.callback(backbone.register_forward_hook(keep).remove)
        if isinstance(model, ImageClassifier):
            stack.enter_context(_all_stages(backbone))
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
        # Of several maps of one size, the last one is the stage's.
        by_stage[grid] = raw / raw.max() if raw.max() > 0 else raw
    cam.maps = list(by_stage.items())
    tops = [raw.max() for _, raw in cam.maps]
    return cam if np.isfinite(tops).all() and any(tops) else None


def _ranked(found, rank):
    """The detection or class of a rank, and its score as a tensor."""
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


@contextlib.contextmanager
def _all_stages(backbone):
    """Let a backbone return the maps of all of its stages meanwhile."""
    before = getattr(backbone, 'out_indices', None)
    if before is not None:
        backbone.out_indices = tuple(range(max(before) + 1))
    try:
        yield
    finally:
        if before is not None:
            backbone.out_indices = before


def draw_cam(
    cam: ClassCAM, image: np.ndarray, frame: Frame, classes: Sequence[str]
) -> Figure:
    """Figure 5, bottom, of the PRM paper (Ma and Fu, IJCAI 2020): Grad-CAM at each
    stage, beside the image with the box, if there is one.

    Args:
        cam: As :func:`class_cam` returns it.
        image: The image, RGB, (H, W, 3).
        frame: Of this image.
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
                axis.add_patch(
                    Rectangle(
                        (x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=width
                    )
                )
    colour_bar(figure, drawn, axes, "Grad-CAM over the panel's maximum")
    return figure


class _Attached(TorchFunctionMode):
    """While it is entered, ``detach`` does nothing: one-stage heads detach scores
    before they pick the best."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.detach:
            return args[0]
        return function(*args, **(kwargs or {}))
