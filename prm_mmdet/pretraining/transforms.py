"""Transforms that MMCV lacks, for image classification.

An image that cannot be decoded is None here, which makes the whole pipeline None, and
the data set decides: MMCV's LoadImageFromFile ends the training instead. Nor does that
decode large JPEGs at a reduced scale, which takes less time and smooths what would
alias.
"""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine import fileio
from PIL import Image

from ..registry import TRANSFORMS

# How many times smaller a JPEG can be decoded, the smallest first.
_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}
_ORIENTATION = 0x0112  # EXIF's number for it; from 5 on, the sides are exchanged


Part = tuple[int, int, int, int]  # top, left, height and width, in pixels


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load an image as (H, W, 3) uint8, BGR, upright as its EXIF tag says, as MMCV's
    LoadImageFromFile does; grey, CMYK and whatever else OpenCV reads become BGR.

    Required key: ``img_path``. Added keys: ``img``, ``img_shape``, ``ori_shape``.

    Args:
        short_edge (int | None): Length in pixels that the shorter edge need not exceed,
            since the image is resized to it later: a larger image is decoded at a
            half, quarter or eighth if that leaves as much. Default: None, whole.
        backend_args (dict | None): As for MMEngine's ``fileio.get``. Default: None.

    Returns None for a file that is missing, truncated or no image.
    """

    def __init__(self, short_edge: int | None = None, backend_args: dict | None = None):
        self.short_edge = short_edge
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict | None:
        path = results['img_path']
        try:
            data = fileio.get(path, backend_args=self.backend_args)
            shape = read_shape(data)
            image = self.load(data, shape)
        except Exception:  # what a damaged file makes Pillow and OpenCV raise: no end
            return None
        if image is None:
            return None
        results.update(img=image, img_shape=image.shape[:2], ori_shape=shape)
        return results

    def load(self, data: bytes, shape: tuple[int, int]) -> np.ndarray | None:
        """The image, or None.

        Args:
            data (bytes): The file.
            shape (tuple[int]): The image's height and width.
        """
        return decode(data, min(shape) / self.short_edge if self.short_edge else 1)


@TRANSFORMS.register_module()
class LoadRandomResizedCrop(LoadImage):
    """Load a random part of an image, resized to a square: the augmentation of "Going
    Deeper with Convolutions" (Szegedy et al., CVPR 2015).

    The part's area and the logarithm of its aspect ratio are drawn uniformly, ten times
    until it fits in. If it never fits, the part is the largest one in the middle within
    the bounds of the ratio. The whole image is decoded, at a reduced scale if the part
    still has ``size`` pixels a side.

    Args:
        size (int): Side of the square in pixels.
        scale (tuple[float]): Bounds of the part's area, as fractions of the image's.
            Default: (0.08, 1).
        ratio (tuple[float]): Bounds of its width over its height. Default: (3/4, 4/3).
        image_size (int | None): Side of the square to which the whole image is resized
            before a part is drawn, without keeping its ratio. Default: None, the image
            stays as it is.
        backend_args (dict | None): As for :class:`LoadImage`.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        image_size: int | None = None,
        backend_args: dict | None = None,
    ) -> None:
        super().__init__(image_size, backend_args)
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.image_size = image_size

    def load(self, data: bytes, shape: tuple[int, int]) -> np.ndarray | None:
        if self.image_size is not None:
            image = super().load(data, shape)
            if image is None:
                return None
            shape = (self.image_size, self.image_size)
            return self.cut(cv2.resize(image, shape), shape, self.draw(*shape))
        part = self.draw(*shape)
        image = decode(data, self.reduction(part))
        return None if image is None else self.cut(image, shape, part)

    def reduction(self, part: Part) -> float:
        """How many times smaller the image may be decoded for a part of it."""
        return min(part[2:]) / self.size

    def cut(self, image: np.ndarray, shape: tuple[int, int], part: Part) -> np.ndarray:
        """A part of an image that was decoded at some scale, resized to the square."""
        top, left, height, width = part
        by, bx = np.divide(image.shape[:2], shape)
        rows = slice(round(top * by), max(1, round((top + height) * by)))
        columns = slice(round(left * bx), max(1, round((left + width) * bx)))
        return cv2.resize(image[rows, columns], (self.size, self.size))

    def draw(self, height: int, width: int) -> Part:
        """A random part of an image: its top, left, height and width, in pixels."""
        low, high = map(math.log, self.ratio)
        for _ in range(10):
            area = height * width * np.random.uniform(*self.scale)
            ratio = math.exp(np.random.uniform(low, high))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                top = np.random.randint(height - h + 1)
                return top, np.random.randint(width - w + 1), h, w
        h = min(height, max(1, round(width / self.ratio[0])))
        w = min(width, max(1, round(height * self.ratio[1])))
        return (height - h) // 2, (width - w) // 2, h, w


@TRANSFORMS.register_module()
class PackImage(BaseTransform):
    """What :class:`prm_mmdet.ImageClassifier` takes of one image: ``inputs``, a uint8
    tensor (3, H, W), and ``data_samples``, the label. Images stay bytes until the
    model's data preprocessor, on the GPU: four times less to copy.

    Required keys: ``img``, ``gt_label``.
    """

    def transform(self, results: dict) -> dict:
        image = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        return dict(inputs=torch.from_numpy(image), data_samples=results['gt_label'])


def read_shape(data: bytes) -> tuple[int, int]:
    """Height and width of an encoded image, as it stands upright.

    Raises:
        OSError: It is no image, or truncated.
    """
    if data.startswith(b'\xff\xd8') and data.rfind(b'\xff\xd9') < data.rfind(
        b'\xff\xda'
    ):
        # Some versions of OpenCV fill in with grey what is missing.
        raise OSError('a JPEG that ends before its last scan does')
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        turned = 'exif' in image.info and _is_turned(image)
    return (width, height) if turned else (height, width)


def _is_turned(image):
    try:
        return image.getexif().get(_ORIENTATION, 1) >= 5
    except Exception:  # a damaged tag, which OpenCV passes over
        return False


def decode(data: bytes, smaller: float) -> np.ndarray | None:
    """Decode an image, at a half, quarter or eighth of its scale if it may be at least
    that many times smaller; None if OpenCV cannot."""
    flag = next(flag for factor, flag in _REDUCED.items() if factor <= max(smaller, 1))
    return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
