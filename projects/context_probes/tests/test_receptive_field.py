"""Without a block, the networks see nothing of a probe's cue.

The tests compare the class scores, the box and the features of a region at each object,
in inference, between images that differ in the cue. Regions that the detector proposes
at the cue itself do change, and are not compared.
"""

import numpy as np
import pytest
import torch
from context_probes.images import DISTANCE, HEIGHT, PROBES, draw_probe
from context_probes.trials import CONFIGS
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import register_all_modules
from mmengine.config import Config

from prm_mmdet.datasets.generated_coco import box_of

FAR = [probe for probe in PROBES if probe != 'control']
WIDEST = 37  # width of the widest object, in pixels
# Width of an image, in pixels. The tested boxes are at the right of the image. To their
# left is room for all pixels on which their features depend.
NARROW = 240


def draw(index, probe):
    return draw_probe(np.random.default_rng(index), probe)


def network(name):
    register_all_modules()
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(CONFIGS / f'{name}.py').model)
    model.init_weights()
    for module in model.modules():
        # Set batch normalisation to values like those of a trained network.
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope='module')
def plain():
    return network('none')


def seen(model, images, boxes):
    """The head's features, class scores and box refinements for regions of an image."""
    maps = model.extract_feat(images)
    found = model.roi_head._bbox_forward(maps, bbox2roi([boxes]))
    return found['bbox_feats'], found['cls_score'], found['bbox_pred']


def as_input(picture):
    images = torch.as_tensor(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    return ((images - 110) / 58).float()


def reach(model, boxes):
    """How far to the left of a box, in pixels, its features and scores depend on the
    image. Returns the maximum over boxes. Gradients show the dependence."""
    images = torch.randn(1, 3, HEIGHT, NARROW, dtype=torch.double, requires_grad=True)
    features, scores, _ = seen(model, images, torch.tensor(boxes).double())
    farthest = 0
    for box, *own in zip(boxes, features, scores):
        total = sum(values.sum() for values in own)
        (gradient,) = torch.autograd.grad(total, images, retain_graph=True)
        columns = gradient.abs().sum((0, 1, 2)).nonzero()
        farthest = max(farthest, box[0] - int(columns.min()))
    return farthest


def object_boxes(scene):
    boxes = torch.tensor([box_of(i.visible) for i in scene.instances]).float()
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def without_cues(scene, fill):
    picture = scene.picture.copy()
    for x, y, w, h in scene.cues:
        picture[y : y + h, x : x + w] = fill(picture[y : y + h, x : x + w])
    return picture


@pytest.mark.parametrize('probe', FAR)
@torch.no_grad()
def test_outputs_at_objects_do_not_depend_on_the_cue(plain, probe):
    for index in range(2):
        scene = draw(index, probe)
        boxes = object_boxes(scene)
        before = seen(plain, as_input(scene.picture), boxes)
        for fill in (lambda pixels: 255 - pixels, lambda pixels: 1e6 * pixels):
            other = without_cues(scene, fill)
            after = seen(plain, as_input(other), boxes)
            assert all(torch.equal(a, b) for a, b in zip(before, after))


@pytest.mark.parametrize('name', ['none', 'none-wide'])
def test_cues_are_beyond_the_reach_of_regions_at_objects(name):
    # The largest stride is 16 pixels, so test boxes at 16 left edges in a row.
    lefts = range(NARROW - 64, NARROW - 48)
    boxes = [[x, 30, x + 28, 58] for x in lefts]
    farthest = reach(network(name).double(), boxes)
    assert farthest <= 158  # The page of results states 158 pixels.
    # A region that has an IoU of 0.5 with an object may extend beyond the object by the
    # object's width.
    assert DISTANCE - 20 < farthest + WIDEST <= DISTANCE


def test_objects_are_not_wider_than_that_takes_them_to_be():
    for index in range(60):
        for x1, _, x2, _ in object_boxes(draw(index, 'far-cue')).tolist():
            assert x2 - x1 <= WIDEST


@pytest.mark.parametrize('name', ['se', 'cbam', 'gc', 'non-local', 'prm', 'lct', 'sac'])
def test_blocks_bring_the_cue_to_the_objects(name):
    model = network(name)
    # Change the parameters of the blocks, because a fresh block may be the identity.
    for module in model.modules():
        if type(module).__module__.startswith(('prm_mmdet.', 'mmcv.cnn.bricks.')):
            for parameter in module.parameters():
                parameter.data += 0.3 * torch.randn_like(parameter)
    scene = draw(0, 'far-cue')
    boxes = object_boxes(scene)
    other = without_cues(scene, lambda pixels: 255 - pixels)
    with torch.no_grad():
        before = seen(model, as_input(scene.picture), boxes)
        after = seen(model, as_input(other), boxes)
    assert not torch.equal(before[1], after[1])
