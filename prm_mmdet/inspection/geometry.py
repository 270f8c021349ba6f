"""From a feature map back to the pixels of the original image."""

import contextlib
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Grid:
    """Where the positions of a map lie: index i at pixel ``stride * i + offset`` of the
    network's input, for (rows, columns). Pixels have their centres at integers."""

    stride: tuple
    offset: tuple

    @property
    def stage(self):
        """The usual name of a stage of this resolution: 'c4' at stride 16."""
        return f'c{round(np.log2(self.stride[0]))}'


class Grids:
    """Follows the maps of a model through its strided layers, while it is entered::

        with Grids(model) as grids:
            model(images)
            grids.of((25, 42))

    A 3x3 convolution with padding 1 and stride 2 looks at pixels 0, 2, 4, ..., a patch
    embedding without padding at the middles of its patches: the offset is summed up
    from kernels, paddings and dilations. A map whose size comes from anything else
    (slices, patch merging) is taken to cover the input in equal cells.
    """

    def __init__(self, model):
        self.model = model
        self.image = None  # (H, W) of the network's input
        self.passes, self.batch = 0, 0
        self._known = {}

    def __enter__(self):
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

    def of(self, size):
        """The :class:`Grid` of maps of a size (H, W) in the last pass.

        Raises:
            RuntimeError: The model has not been called.
        """
        size = tuple(size)
        if self.image is None:
            raise RuntimeError(
                'the size of the image is not known: run the model by calling it, or '
                'by its test_step or train_step, and not a part of it'
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
            return  # the shortcut beside a path that came first
        axes = zip(*(_pair(getattr(layer, name)) for name in _ATTRIBUTES))
        dilations = _pair(getattr(layer, 'dilation', 1))
        stride, offset = [], []
        for (kernel, step, padding), dilation, s, o in zip(
            axes, dilations, grid.stride, grid.offset
        ):
            stride.append(s * step)
            offset.append(o + s * (dilation * (kernel - 1) / 2 - padding))
        self._known[size] = Grid(tuple(stride), tuple(offset))


def first(inputs, keywords):
    """The first argument of a call, given by its place or its name."""
    return inputs[0] if inputs else next(iter(keywords.values()))


_ATTRIBUTES = ('kernel_size', 'stride', 'padding')


def _pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _is_strided(layer):
    """Whether a layer is a convolution or pooling that makes maps smaller."""
    if not all(hasattr(layer, name) for name in _ATTRIBUTES):
        return False
    if getattr(layer, 'transposed', False) or isinstance(layer.padding, str):
        return False
    return max(_pair(layer.stride)) > 1


class Frame:
    """The way from the network's input to the original image: undoes the resizing of
    the pipeline. Padding is at the right and the bottom, so it moves nothing.

    Args:
        meta (dict): ``metainfo`` of a data sample: ``ori_shape``, and ``scale_factor``
            (width, height) unless the image was not resized.

    Raises:
        ValueError: The image was flipped, cropped or padded at its left or top, or how
            it was resized is not known.
    """

    def __init__(self, meta):
        for key in ('flip', 'border', 'pad_param', 'homography_matrix', 'crop_offset'):
            value = meta.get(key)
            if value is not None and np.any(value):
                raise ValueError(
                    f'the pipeline gave {key}={value}, so that positions cannot be '
                    'led back to the image; inspect with a test pipeline that only '
                    'resizes, and pads at the right and the bottom'
                )
        self.shape = tuple(meta['ori_shape'][:2])
        if 'scale_factor' in meta:
            width, height = meta['scale_factor'][:2]
            self.scale = (float(height), float(width))
        elif tuple(meta['img_shape'][:2]) == self.shape:
            self.scale = (1.0, 1.0)
        else:
            raise ValueError(
                'how the image was resized is not known; add scale_factor to the '
                "meta_keys of the test pipeline's PackDetInputs"
            )

    def to_image(self, grid, points):
        """Pixels of the original image, (n, 2), for positions (row, column) on a map.
        Those that lie in the padding are outside the image."""
        points = np.asarray(points, float).reshape(-1, 2)
        inputs = points * grid.stride + grid.offset
        return (inputs + 0.5) / self.scale - 0.5

    def inside(self, pixels):
        """Which pixels (n, 2) lie in the original image."""
        return ((pixels >= -0.5) & (pixels <= np.subtract(self.shape, 0.5))).all(1)

    def resize(self, values, grid, shape=None):
        """A map, bilinearly interpolated at the pixels of the image, in float64.

        Args:
            values (ndarray): (h, w).
            grid (Grid): Of the map.
            shape (tuple, optional): Return this many rows and columns, evenly spaced
                over the image. Default: None, every pixel.
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
