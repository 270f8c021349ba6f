"""Loading and cropping of images, hostile ones included."""

import io

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from PIL import Image

from prm_mmdet.config import config_path
from prm_mmdet.pretraining.transforms import LoadImage, LoadRandomResizedCrop, PackImage


def photo(height, width):
    """A smooth picture without symmetry, (height, width, 3) uint8, BGR."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [128 + 100 * np.sin(a * x + b * y) for a, b in ((9, 2), (3, 7), (5, -4))]
    return np.stack(waves, axis=2).astype(np.uint8)


def encoded(picture, extension='.jpg', quality=95):
    jpeg = [cv2.IMWRITE_JPEG_QUALITY, quality] if extension == '.jpg' else []
    return cv2.imencode(extension, picture, jpeg)[1]


def pillow(picture, mode, form='JPEG', **options):
    out = io.BytesIO()
    rgb = Image.fromarray(picture[..., ::-1])
    rgb.convert(mode).save(out, form, **options)
    return out.getvalue()


def load(tmp_path, data, transform=None):
    path = tmp_path / 'image.JPEG'
    path.write_bytes(bytes(data))
    transform = LoadImage() if transform is None else transform
    return transform(dict(img_path=str(path), gt_label=3))


@pytest.fixture(autouse=True)
def numbers():
    np.random.seed(0)


@pytest.mark.parametrize('extension', ['.jpg', '.png', '.bmp', '.webp'])
def test_images_are_told_by_their_content_not_by_their_name(tmp_path, extension):
    found = load(tmp_path, encoded(photo(40, 60), extension))
    assert found['img'].shape == (40, 60, 3) and found['img'].dtype == np.uint8
    assert np.abs(found['img'].astype(int) - photo(40, 60)).mean() < 3
    assert found['ori_shape'] == found['img_shape'] == (40, 60)


@pytest.mark.parametrize('mode', ['L', 'CMYK'])
def test_grey_and_cmyk_jpegs_become_bgr(tmp_path, mode):
    found = load(tmp_path, pillow(photo(40, 60), mode, quality=95))['img']
    expected = photo(40, 60)
    if mode == 'L':
        expected = cv2.cvtColor(expected, cv2.COLOR_BGR2GRAY)[..., None]
    assert found.shape == (40, 60, 3)
    assert np.abs(found.astype(int) - expected).mean() < 3


@pytest.mark.parametrize('mode', ['RGBA', 'P', 'I;16'])
def test_other_pngs_become_bgr(tmp_path, mode):
    if mode == 'I;16':
        data = cv2.imencode('.png', photo(40, 60).astype(np.uint16) * 256)[1]
    else:
        data = pillow(photo(40, 60), mode, 'PNG')
    found = load(tmp_path, data)['img']
    assert found.shape == (40, 60, 3) and found.dtype == np.uint8


@pytest.mark.parametrize('tag', range(1, 9))
@pytest.mark.parametrize('short_edge', [None, 20])
def test_orientation_is_obeyed_as_mmcv_does(tmp_path, tag, short_edge):
    exif = Image.Exif()
    exif[0x0112] = tag
    data = pillow(photo(80, 120), 'RGB', exif=exif, quality=95)
    found = load(tmp_path, data, LoadImage(short_edge))
    expected = mmcv.imfrombytes(data, flag='color')
    assert found['ori_shape'] == expected.shape[:2]
    assert found['ori_shape'] == ((80, 120) if tag < 5 else (120, 80))
    small = cv2.resize(expected, found['img'].shape[1::-1], interpolation=3)
    assert np.abs(found['img'].astype(int) - small).mean() < 3


@pytest.mark.parametrize(
    'data',
    [
        b'',
        b'not an image',
        encoded(photo(200, 300)).tobytes()[:-2],
        encoded(photo(200, 300)).tobytes()[:3000],
        encoded(photo(200, 300)).tobytes()[:100],
        encoded(photo(200, 300), '.png').tobytes()[:3000],
    ],
    ids=['empty', 'text', 'no end', 'half', 'header', 'half a PNG'],
)
@pytest.mark.parametrize('transform', [LoadImage(), LoadRandomResizedCrop(32)])
def test_what_is_no_whole_image_is_none(tmp_path, data, transform):
    assert load(tmp_path, data, transform) is None


def test_a_thumbnail_does_not_pass_for_the_end_of_a_truncated_jpeg(tmp_path):
    thumbnail = encoded(photo(16, 16)).tobytes()
    exif = b'Exif\0\0' + thumbnail
    data = pillow(photo(200, 300), 'RGB', exif=exif, quality=95)
    assert data.count(b'\xff\xd9') == 2
    assert load(tmp_path, data) is not None
    assert load(tmp_path, data[: len(data) // 2]) is None


def test_what_follows_a_jpeg_does_no_harm(tmp_path):
    assert load(tmp_path, encoded(photo(40, 60)).tobytes() + b'\0' * 64) is not None


@pytest.mark.parametrize('transform', [LoadImage(20), LoadRandomResizedCrop(32)])
def test_damaged_bytes_raise_nothing(tmp_path, transform):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = pillow(photo(80, 120), 'RGB', exif=exif)
    rng = np.random.default_rng(0)
    whole = 0
    for _ in range(300):
        damaged = np.frombuffer(data, np.uint8).copy()
        # Header and tags first: damage there does the most.
        places = rng.integers(0, rng.choice([100, 700, len(data)]), 3)
        damaged[places] = rng.integers(0, 256, 3)
        found = load(tmp_path, damaged, transform)
        if found is not None:
            whole += 1
            assert found['img'].ndim == 3 and found['img'].dtype == np.uint8
            assert found['img'].shape[:2] == found['img_shape']
    assert 20 < whole < 300


def test_missing_file_is_none(tmp_path):
    assert LoadImage()(dict(img_path=str(tmp_path / 'none.jpg'))) is None


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
@pytest.mark.parametrize(
    ('shape', 'short_edge', 'decoded'),
    [
        ((300, 400), None, (300, 400)),
        ((300, 400), 151, (300, 400)),
        ((300, 400), 150, (150, 200)),
        ((301, 401), 150, (151, 201)),
        ((300, 400), 75, (75, 100)),
        ((300, 400), 30, (38, 50)),
        ((300, 400), 1, (38, 50)),
        ((20, 400), 50, (20, 400)),
    ],
)
def test_large_images_are_decoded_smaller(
    tmp_path, extension, shape, short_edge, decoded
):
    found = load(tmp_path, encoded(photo(*shape), extension), LoadImage(short_edge))
    assert found['img'].shape[:2] == found['img_shape']
    # Of a size that cannot be divided, a JPEG keeps one pixel more than others do.
    assert np.abs(np.subtract(found['img_shape'], decoded)).max() <= 1
    assert found['ori_shape'] == shape
    if short_edge:
        assert min(found['img_shape']) >= min(short_edge, min(shape))
    size = found['img_shape'][::-1]
    expected = cv2.resize(photo(*shape), size, interpolation=cv2.INTER_AREA)
    assert np.abs(found['img'].astype(int) - expected).mean() < 3


@pytest.mark.parametrize(
    ('image_size', 'drawn_from', 'shape', 'part'),
    [
        (None, (60, 80), (60, 80), (5, 7, 40, 50)),
        (64, (64, 64), (60, 80), (5, 7, 40, 50)),  # resized to a square first
        (None, (500, 700), (500, 700), (101, 203, 301, 403)),  # decoded smaller
    ],
)
def test_random_crop_is_a_resized_part_of_the_image(
    tmp_path, monkeypatch, image_size, drawn_from, shape, part
):
    transform = LoadRandomResizedCrop(32, image_size=image_size)
    drawn = []
    monkeypatch.setattr(transform, 'draw', lambda *size: drawn.append(size) or part)
    large = max(shape) > 100
    data = encoded(photo(*shape), '.jpg' if large else '.png')
    found = load(tmp_path, data, transform)
    top, left, height, width = part
    picture = cv2.resize(photo(*shape), drawn_from[::-1])
    picture = picture[top : top + height, left : left + width]
    way = cv2.INTER_AREA if large else cv2.INTER_LINEAR
    expected = cv2.resize(picture, (32, 32), interpolation=way).astype(int)
    assert np.abs(found['img'] - expected).mean() < (3 if large else 1e-9)
    assert drawn == [drawn_from]
    assert found['img_shape'] == (32, 32) and found['ori_shape'] == shape
    assert load(tmp_path, b'no image', transform) is None


def test_random_crops_have_the_areas_and_ratios_asked_for():
    transform = LoadRandomResizedCrop(32)
    crops = np.array([transform.draw(1000, 1000) for _ in range(4000)])
    top, left, height, width = crops.T
    assert (crops >= 0).all()
    assert (top + height <= 1000).all() and (left + width <= 1000).all()
    area, ratio = height * width / 1e6, width / height
    assert area.min() > 0.079 and area.max() <= 1
    assert ratio.min() > 0.745 and ratio.max() < 1.34
    # Of those whose shape cannot matter, areas and log-ratios are uniform.
    small = area < 0.75
    for values in (area[small], np.log(ratio[small])):
        low, high = values.min(), values.max()
        deciles = np.quantile((values - low) / (high - low), np.arange(0.1, 1, 0.1))
        assert np.abs(deciles - np.arange(0.1, 1, 0.1)).max() < 0.04
    for start, extent in ((top, height), (left, width)):
        assert abs((start / (1000 - extent).clip(1)).mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [
        ((10, 1000), (0, 493, 10, 13)),
        ((1000, 10), (493, 0, 13, 10)),
        ((1, 1), (0, 0, 1, 1)),
        ((1, 500), (0, 249, 1, 1)),
    ],
)
def test_images_too_narrow_give_their_middle(tmp_path, shape, expected):
    transform = LoadRandomResizedCrop(32, scale=(0.9, 1))
    assert transform.draw(*shape) == expected
    data = encoded(np.full((*shape, 3), 7, np.uint8), '.png')
    assert (load(tmp_path, data, transform)['img'] == 7).all()


def test_pack_image():
    picture = photo(20, 30)[:, ::-1]  # strides that torch refuses
    packed = PackImage()(dict(img=picture, gt_label=3, img_path='x'))
    assert set(packed) == {'inputs', 'data_samples'} and packed['data_samples'] == 3
    assert packed['inputs'].dtype == torch.uint8
    assert packed['inputs'].is_contiguous()
    assert (packed['inputs'].numpy() == picture.transpose(2, 0, 1)).all()


def test_validation_images_of_a_pixel_s_width_have_the_size_of_others(tmp_path):
    pipeline = Config.fromfile(config_path('_base_/datasets/imagenet.py')).test_pipeline
    data = encoded(np.full((6000, 1, 3), 120, np.uint8), '.png')
    found = load(tmp_path, data, Compose(pipeline))
    assert found['inputs'].shape == (3, 224, 224)
    assert (found['inputs'][:, :, :160] == 120).all()
