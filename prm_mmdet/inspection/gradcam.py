"""Grad-CAM for a detection.

Source: R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-Based Localization", ICCV 2017.
"""

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.patches import Rectangle
from torch.overrides import TorchFunctionMode

from .geometry import Grids
from .style import colour_bar, image_grid, panel_shape, show_image, show_map


@dataclass
class DetectionCAM:
    """Where in the image a detection's class score comes from."""

    box: np.ndarray  # (4,): x1, y1, x2, y2 in pixels of the original image
    label: int
    score: float
    maps: list  # of a stage each: (Grid, (h, w) at least 0, of maximum 1 or all zero)


def detection_cam(model, data, detection=0):
    """Grad-CAM of the class score of a box, at each map that the backbone returns.

    The detector runs as in inference, with gradients, and the score is the one that it
    returns: after sigmoid or softmax, and whatever its head multiplies it by. What
    heads detach on the way stays attached. This holds for the one- and two-stage heads
    of MMDetection, and those of the DETR family.

    Args:
        model (nn.Module): A detector of MMDetection, in evaluation mode.
        data (dict): What ``test_step`` takes, of one image.
        detection (int): Which detection, in the order in which the detector returns
            them. Default: 0, of MMDetection's heads the one with the highest score.

    Returns:
        DetectionCAM | None: None where there is no such detection, or its score tells
        nothing: it has no gradient, being saturated at 0 or 1, or not a finite one.
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
        for add, hook in (
            (model.backbone.register_forward_pre_hook, start),
            (model.backbone.register_forward_hook, keep),
        ):
            stack.callback(add(hook).remove)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_Attached())
        found = model.test_step(data)[0].pred_instances
    if detection >= len(found):
        return None
    score = found.scores[detection]
    if not score.requires_grad:
        return None
    gradients = torch.autograd.grad(score, maps, allow_unused=True)
    result = []
    for grid, features, gradient in zip(grids, maps, gradients):
        if gradient is None:
            gradient = torch.zeros_like(features)
        weights = gradient.mean((2, 3), keepdim=True)
        cam = (weights * features.detach()).sum(1)[0].relu().double().cpu().numpy()
        result.append((grid, cam / cam.max() if cam.max() > 0 else cam))
    tops = [cam.max() for _, cam in result]
    if not np.isfinite(tops).all() or not any(tops):
        return None
    box = found.bboxes[detection].detach().cpu().numpy()
    return DetectionCAM(box, int(found.labels[detection]), score.item(), result)


def draw_cam(cam, image, frame, classes):
    """Figure 5, bottom, of the PRM paper (Ma and Fu, IJCAI 2020): the detection, and
    its Grad-CAM at each stage.

    Args:
        cam (DetectionCAM): As :func:`detection_cam` returns it.
        image (ndarray): The original image, RGB, (H, W, 3).
        frame (Frame): Of this image.
        classes (Sequence[str]): Names of the classes.
    """
    figure, axes = image_grid([image], 1 + len(cam.maps), panel=2.2)
    show_image(axes[0, 0], image, f'{classes[cam.label]} {cam.score:.2f}')
    for axis, (grid, values) in zip(axes[0, 1:], cam.maps):
        values = frame.resize(values, grid, panel_shape(image))
        title = grid.stage if values.any() else f'{grid.stage}: nowhere'
        drawn = show_map(axis, image, values, title, vmin=0, vmax=1)
    x1, y1, x2, y2 = cam.box
    for axis in axes[0]:
        box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec='white', lw=2.4)
        axis.add_patch(box)
        box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec='#D55E00', lw=1.2)
        axis.add_patch(box)
    colour_bar(figure, drawn, axes, "Grad-CAM over the panel's maximum")
    return figure


class _Attached(TorchFunctionMode):
    """While it is entered, ``detach`` does nothing: one-stage heads detach scores
    before they pick the best."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.detach:
            return args[0]
        return function(*args, **(kwargs or {}))
