"""Convert positions of a feature map to pixels of the original image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Grid:
    """The pixels of the network's input on which the positions of a map are centred.

    Position i is centred on pixel ``stride * i + offset``. Stride and offset each have
    a number for rows and one for columns. Pixel centres have integer coordinates.
    """

    stride: tuple[float, float]
    offset: tuple[float, float]

    @property
    def stage(self) -> str:
        """The usual name of a stage with this stride: 'c4' at stride 16."""
        return f'c{round(np.log2(self.stride[0]))}'


class Grids:
    """Finds the :class:`Grid` of each map in a model, inside a ``with`` statement::

        with Grids(model) as grids:
            model(images)
            grids.of((25, 42))  # the grid of maps with 25 rows and 42 columns

    The offset of a map is computed from the kernels, paddings and dilations of the
    strided layers before it. For example, a 3x3 convolution with padding 1 and stride 2
    is centred on pixels 0, 2, 4, ... A patch embedding without padding is centred on
    the centres of its patches. If a map's size comes from another operation (slicing,
    patch merging), the input is assumed to be divided into one equal box per position.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.image: tuple | None = None  # (H, W) of the network's input
        self.passes, self.batch = 0, 0
        self._known: dict[tuple, Grid] = {}

    def __enter__(self) -> Grids:
        with contextlib.ExitStack() as hooks:
            add = self.model.register_forward_pre_hook
            hooks.callback(add(self._start, with_kwargs=True).remove)
            for layer in self.model.modules():
                if _is_strided(layer):
                    follow = self._follow
                    handle = layer.register_forward_hook(follow, with_kwargs=True)
                    hooks.callback(handle.remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *_):
        self._hooks.close()

    def of(self, size: Iterable[int]) -> Grid:
        """The :class:`Grid` of maps of a size (H, W) in the model's last call.

        Raises:
            RuntimeError: The model has not been called.
        """
        size = tuple(size)
        if self.image is None:
            raise RuntimeError(
                'the size of the image is not known. Call the whole model, or its '
                'test_step or train_step, not a part of the model'
            )
        if size not in self._known:
            stride = tuple(i / s for i, s in zip(self.image, size))
            self._known[size] = Grid(stride, tuple((s - 1) / 2 for s in stride))
        return self._known[size]

    def _start(self, model, inputs, keywords):
        values = [*inputs, *keywords.values()]
        images = [v for v in values if isinstance(v, torch.Tensor) and v.dim() == 4]
        self.passes += 1
        if images:
            self.batch, self.image = len(images[0]), tuple(images[0].shape[2:])
            self._known = {self.image: Grid((1, 1), (0, 0))}

    def _follow(self, layer, inputs, keywords, output):
        if output.dim() != 4 or self.image is None:
            return
        grid, size = self.of(first(inputs, keywords).shape[2:]), tuple(output.shape[2:])
        if size in self._known:
            # Two layers may have outputs of the same size, for example a convolution
            # and the residual shortcut beside it. Their grids are the same.
            return
        axes = zip(*(_pair(getattr(layer, name)) for name in _ATTRIBUTES))
        dilations = _pair(getattr(layer, 'dilation', 1))
        stride, offset = [], []
        for (kernel, step, padding), dilation, s, o in zip(
            axes, dilations, grid.stride, grid.offset
        ):
            stride.append(s * step)
            offset.append(o + s * (dilation * (kernel - 1) / 2 - padding))
        self._known[size] = Grid(tuple(stride), tuple(offset))


def first(inputs: Sequence, keywords: Mapping[str, Any]) -> Any:
    """The first argument of a call, positional or by keyword."""
    return inputs[0] if inputs else next(iter(keywords.values()))


_ATTRIBUTES = ('kernel_size', 'stride', 'padding')


def _pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _is_strided(layer):
    """Whether a layer is a convolution or pooling with a stride above 1."""
    if not all(hasattr(layer, name) for name in _ATTRIBUTES):
        return False
    if getattr(layer, 'transposed', False) or isinstance(layer.padding, str):
        return False
    return max(_pair(layer.stride)) > 1


class Frame:
    """Converts positions in the network's input to pixels of the original image.

    The pipeline must not flip or crop the image. It is allowed to resize the image, and
    to pad it at the right and the bottom. Such padding does not move positions.

    Args:
        meta: ``metainfo`` of a data sample: ``ori_shape``, and ``scale_factor`` (width,
            height) if the image was resized.

    Raises:
        ValueError: The image was flipped, cropped or padded at its left or top, or the
            scale factor is missing.
    """

    def __init__(self, meta: Mapping[str, Any]) -> None:
        for key in ('flip', 'border', 'pad_param', 'homography_matrix', 'crop_offset'):
            value = meta.get(key)
            if value is not None and np.any(value):
                raise ValueError(
                    f'the pipeline set {key}={value}, so positions cannot be mapped to '
                    'the original image. Use a test pipeline that only resizes, and '
                    'pads at the right and the bottom'
                )
        self.shape = tuple(meta['ori_shape'][:2])
        if 'scale_factor' in meta:
            width, height = meta['scale_factor'][:2]
            self.scale = (float(height), float(width))
        elif tuple(meta['img_shape'][:2]) == self.shape:
            self.scale = (1.0, 1.0)
        else:
            raise ValueError(
                'the image was resized, but its scale factor is missing. Add '
                "scale_factor to the meta_keys of the test pipeline's PackDetInputs"
            )

    def to_image(self, grid: Grid, points: np.ndarray) -> np.ndarray:
        """Pixels (row, column) of the original image, (n, 2), for positions on a map.

        Positions in the padding get pixels outside the image.
        """
        points = np.asarray(points, float).reshape(-1, 2)
        inputs = points * grid.stride + grid.offset
        return (inputs + 0.5) / self.scale - 0.5

    def inside(self, pixels: np.ndarray) -> np.ndarray:
        """For each of n pixels (row, column): whether it is inside the original image.
        ``pixels`` has the shape (n, 2), the result (n,)."""
        inside = (pixels >= -0.5) & (pixels <= np.subtract(self.shape, 0.5))
        return np.all(inside, axis=1)

    def resize(
        self, values: np.ndarray, grid: Grid, shape: Sequence[int] | None = None
    ) -> np.ndarray:
        """A map interpolated bilinearly at pixels of the original image, in float64.

        Args:
            values: The map, (h, w).
            grid: The pixels of the network's input on which the map's positions are
                centred.
            shape: Numbers of rows and columns to return, evenly spaced over the image.
                Default: None, every pixel.
        """
        weights = []
        for axis, pixels in enumerate(shape or self.shape):
            side = self.shape[axis] / pixels
            image = (np.arange(pixels) + 0.5) * side
            position = image * self.scale[axis] - 0.5 - grid.offset[axis]
            last = values.shape[axis] - 1
            position = np.clip(position / grid.stride[axis], 0, last)
            distance = np.abs(position[:, None] - np.arange(last + 1))
            weights.append(np.maximum(0, 1 - distance))
        return weights[0] @ np.asarray(values, float) @ weights[1].T
