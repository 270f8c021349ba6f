"""Positions on maps and pixels of images."""

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.models import CSPDarknet, DetDataPreprocessor, ResNet, SwinTransformer
from mmdet.utils import register_all_modules
from torch import nn

from prm_mmdet import PRM
from prm_mmdet.inspection.capture import capture
from prm_mmdet.inspection.geometry import Frame, Grid, Grids


def grids_of(model, height, width):
    """The grids of all maps that a backbone returns."""
    with torch.no_grad(), Grids(model) as grids:
        model.eval()  # MMDetection's returns nothing
        maps = model(torch.zeros(1, 3, height, width))
    return [grids.of(m.shape[2:]) for m in maps]


def square(stride, offset):
    return Grid((stride, stride), (offset, offset))


@pytest.mark.parametrize('size', [(64, 96), (67, 101)])
def test_resnet_looks_at_multiples_of_the_stride(size):
    model = ResNet(18, base_channels=4)
    assert grids_of(model, *size) == [square(s, 0) for s in (4, 8, 16, 32)]
    assert [g.stage for g in grids_of(model, *size)] == ['c2', 'c3', 'c4', 'c5']


def test_patches_are_looked_at_in_the_middle():
    model = SwinTransformer(
        embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=2
    )
    expected = [square(s, (s - 1) / 2) for s in (4, 8, 16, 32)]
    assert grids_of(model, 64, 96) == expected
    model = CSPDarknet(widen_factor=0.125, deepen_factor=0.33)
    # The slices of its Focus are patches of 2, its convolutions have padding.
    assert grids_of(model, 64, 96) == [square(s, 0.5) for s in (8, 16, 32)]


@pytest.mark.parametrize(
    'layers',
    [
        [nn.Conv2d(3, 2, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(2, 2, 3, 2, 1)],
        [nn.Conv2d(3, 2, 4, 4), nn.AvgPool2d(2)],
        [nn.Conv2d(3, 2, 3, 2, 2, dilation=2), nn.Conv2d(2, 2, (3, 5), (1, 2), (1, 0))],
    ],
)
def test_grid_is_the_middle_of_the_receptive_field(layers):
    model = nn.Sequential(*layers).double()
    for parameter in model.parameters():
        parameter.data.uniform_(0.5, 1)
    image = torch.rand(1, 3, 65, 79, dtype=torch.float64, requires_grad=True)
    with Grids(model) as grids:
        y = model(image)
    grid = grids.of(y.shape[2:])
    spread = 0  # of all maxima: one alone has the field of the largest input
    for _ in range(50):
        field = torch.rand_like(image, requires_grad=True)
        spread = spread + torch.autograd.grad(model(field)[..., 4, 3].sum(), field)[0]
    field = spread[0, 0] != 0
    for axis, index in ((0, 4), (1, 3)):
        seen = field.any(1 - axis).nonzero()
        middle = (seen.min() + seen.max()).item() / 2
        assert grid.stride[axis] * index + grid.offset[axis] == middle


class Blur(nn.Module):
    """A network that responds where the image is bright, with a PRM at its end."""

    def __init__(self, *stem):
        super().__init__()
        self.stem = nn.Sequential(*stem)
        self.prm = PRM(3, groups=3)
        for layer in self.stem:
            tap = torch.tensor([1.0, 2, 1] if layer.kernel_size[0] == 3 else [1.0] * 4)
            layer.weight.data = (tap * tap[:, None]).expand_as(layer.weight).clone()
        self.prm.theta.data.fill_(1)

    def forward(self, images):
        return self.prm(self.stem(images))


def convolution(kernel, stride, padding):
    return nn.Conv2d(3, 3, kernel, stride, padding, groups=3, bias=False)


STEMS = {
    'convolutions': lambda: [convolution(3, 2, 1) for _ in range(4)],
    'patches': lambda: [convolution(4, 4, 0), convolution(4, 4, 0)],
}


@pytest.mark.parametrize('stem', STEMS)
@pytest.mark.parametrize('shape', [(97, 131), (211, 83)])
@pytest.mark.parametrize('dot', [(0.1, 0.15), (0.52, 0.47), (0.94, 0.9)])
def test_a_bright_dot_is_found_where_it_is(stem, shape, dot, tmp_path):
    register_all_modules()
    row, column = (int(part * side) for part, side in zip(dot, shape))
    image = np.zeros((*shape, 3), np.uint8)
    image[row - 1 : row + 2, column - 1 : column + 2] = 255
    cv2.imwrite(str(tmp_path / 'dot.png'), image)
    pipeline = Compose(
        [
            dict(type='LoadImageFromFile'),
            dict(type='mmdet.Resize', scale=(333, 200), keep_ratio=True),
            dict(type='mmdet.PackDetInputs'),
        ]
    )
    packed = pipeline(dict(img_path=str(tmp_path / 'dot.png'), img_id=0))
    data = {k: [v] for k, v in packed.items()}
    inputs = DetDataPreprocessor(pad_size_divisor=32)(data)['inputs']
    model = Blur(*STEMS[stem]())
    with torch.no_grad(), capture(model, images=1) as (records):
        model(inputs)
    frame, maps = Frame(packed['data_samples'].metainfo), records[0].maps[0]
    # Half a cell, and the pixel at which the dot's middle comes to lie.
    half = 8 / np.array(frame.scale) + 1
    points = frame.to_image(maps.grid, maps.query)
    assert (np.abs(points - (row, column)) <= half).all()
    mask = frame.resize(maps.encoding, maps.grid)
    assert mask.shape == shape
    peak = np.unravel_index(mask.argmax(), shape)
    assert (np.abs(np.subtract(peak, (row, column))) <= half + 1).all()
    assert mask.max() == pytest.approx(maps.encoding.max(), rel=0.2)


def test_resizing_is_linear_between_centres_and_even_beyond():
    frame = Frame(dict(ori_shape=(4, 12), scale_factor=(2.0, 2.0)))
    grid = Grid((8, 8), (0, 0))  # centres at -0.25 and 3.75 of the image
    values = frame.resize(np.array([[0.0, 4.0, 12.0]]), grid)
    assert values.shape == (4, 12)
    expected = [0.25, 1.25, 2.25, 3.25, 4.5, 6.5, 8.5, 10.5, 12, 12, 12, 12]
    assert values[2] == pytest.approx(np.array(expected))
    small = frame.resize(np.array([[0.0, 4.0, 12.0]]), grid, (1, 3))
    assert small == pytest.approx(np.array([[1.75, 7.5, 12.0]]))


def test_padding_is_outside():
    frame = Frame(dict(ori_shape=(50, 60), scale_factor=(1.0, 1.0)))
    pixels = frame.to_image(Grid((16, 16), (0, 0)), [(0, 0), (3, 3), (3, 4), (4, 0)])
    assert frame.inside(pixels).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    'meta, problem',
    [
        (dict(flip=True, scale_factor=(1, 1)), 'set flip=True'),
        (dict(border=np.array([0, 5, 0, 5])), r'set border=\[0 5 0 5\]'),
        (dict(img_shape=(20, 20)), 'Add scale_factor to the meta_keys'),
    ],
)
def test_other_pipelines_are_refused(meta, problem):
    with pytest.raises(ValueError, match=problem):
        Frame(dict(ori_shape=(10, 10), **meta))


def test_an_image_that_was_not_resized_needs_no_factor():
    frame = Frame(dict(ori_shape=(10, 10, 3), img_shape=(10, 10), flip=False))
    assert frame.scale == (1, 1) and frame.shape == (10, 10)
