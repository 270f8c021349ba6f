"""Transforms that MMCV lacks for image classification.

If an image cannot be decoded, the transforms return None, and the data set decides what
to do. MMCV's LoadImageFromFile ends the training instead. The transforms here also
decode large JPEGs at a reduced scale. This takes less time, and avoids aliasing.
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

# OpenCV's flags to decode a JPEG at 1/8, 1/4, 1/2 or all of its height and width.
_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}
# EXIF tag of the orientation. If its value is 5 to 8, height and width are exchanged.
_ORIENTATION = 0x0112


# A part of an image: top, left, height and width, in pixels.
Part = tuple[int, int, int, int]


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load an image as (H, W, 3) uint8 in BGR, rotated upright by its EXIF tag.

    Images in other colour spaces that OpenCV reads are converted to BGR. If a file is
    missing, truncated or not an image, the transform returns None.

    Required key: ``img_path``. Added keys: ``img``, ``img_shape``, ``ori_shape``.

    Args:
        short_edge: Length in pixels to which a later transform resizes the shorter
            edge. A larger image is decoded at 1/2, 1/4 or 1/8 of its size, as long as
            its shorter edge still has at least this length. Default: None, full size.
        backend_args: Arguments of MMEngine's ``fileio.get``. Default: None.
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
        except Exception:  # Damaged files raise many types of errors.
            return None
        if image is None:
            return None
        results.update(img=image, img_shape=image.shape[:2], ori_shape=shape)
        return results

    def load(self, data: bytes, shape: tuple[int, int]) -> np.ndarray | None:
        """Decode an image. None if OpenCV cannot decode it.

        Args:
            data: Content of the file.
            shape: Height and width of the image.
        """
        return decode(data, min(shape) / self.short_edge if self.short_edge else 1)


@TRANSFORMS.register_module()
class LoadRandomResizedCrop(LoadImage):
    """Load a random part of an image, resized to a square.

    The area of the part and the logarithm of its aspect ratio are drawn uniformly, up
    to ten times, until the part fits into the image. If no part fits, a part in the
    middle of the image is taken. It is the largest part whose aspect ratio is within
    its bounds. If the part still has at least ``size`` pixels a side at a reduced
    scale, the image is decoded at this scale.

    Source: "Going Deeper with Convolutions", Szegedy et al., CVPR 2015.

    Args:
        size: Side of the square in pixels.
        scale: Bounds of the part's area, as fractions of the image's area.
            Default: (0.08, 1).
        ratio: Bounds of the part's width over its height. Default: (3/4, 4/3).
        image_size: Side of the square to which the whole image is resized before a
            part is drawn, without keeping its aspect ratio. Default: None, the image
            is not resized.
        backend_args: Arguments of MMEngine's ``fileio.get``. Default: None.
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
        image = decode(data, min(part[2:]) / self.size)
        return None if image is None else self.cut(image, shape, part)

    def cut(self, image: np.ndarray, shape: tuple[int, int], part: Part) -> np.ndarray:
        """Cut a part out of an image, and resize it to ``size`` x ``size`` pixels.

        Args:
            image: The image, decoded at any scale.
            shape: Height and width of the image at full scale.
            part: The part, in pixels at full scale.
        """
        top, left, height, width = part
        by, bx = np.divide(image.shape[:2], shape)
        rows = slice(round(top * by), max(1, round((top + height) * by)))
        columns = slice(round(left * bx), max(1, round((left + width) * bx)))
        return cv2.resize(image[rows, columns], (self.size, self.size))

    def draw(self, height: int, width: int) -> Part:
        """Top, left, height and width of a random part of an image, in pixels."""
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
    """Pack an image for :class:`prm_mmdet.ImageClassifier`.

    The results are ``inputs``, a uint8 tensor (3, H, W), and ``data_samples``, the
    label. The image stays uint8, because a float image has four times as many bytes to
    copy to the GPU. There, the model's data preprocessor converts the image to float.

    Required keys: ``img``, ``gt_label``.
    """

    def transform(self, results: dict) -> dict:
        image = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        return dict(inputs=torch.from_numpy(image), data_samples=results['gt_label'])


def read_shape(data: bytes) -> tuple[int, int]:
    """Height and width of an encoded image after its rotation by the EXIF tag.

    Raises:
        OSError: The data is not an image, or is truncated.
    """
    if data.startswith(b'\xff\xd8') and data.rfind(b'\xff\xd9') < data.rfind(
        b'\xff\xda'
    ):
        # Some versions of OpenCV decode a truncated JPEG, and fill the rest with grey.
        # So raise an error here.
        raise OSError('the JPEG is truncated')
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        turned = 'exif' in image.info and _is_turned(image)
    return (width, height) if turned else (height, width)


def _is_turned(image):
    try:
        return image.getexif().get(_ORIENTATION, 1) >= 5
    except Exception:  # If the EXIF tag is damaged, OpenCV does not turn the image.
        return False


def decode(data: bytes, smaller: float) -> np.ndarray | None:
    """Decode an image. None if OpenCV cannot decode it.

    Args:
        data: Content of the file.
        smaller: Largest factor by which the decoded image may be smaller. Of the scales
            1/8, 1/4, 1/2 and 1, the smallest scale within this limit is used.
    """
    flag = next(flag for factor, flag in _REDUCED.items() if factor <= max(smaller, 1))
    return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
