"""Read the annotations of a config's data sets, and report their faults."""

from __future__ import annotations

import argparse

import cv2
from mmengine.config import Config, DictAction
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from prm_mmdet import compat
from prm_mmdet.launch import RunError, check_data
from prm_mmdet.launch.annotations import LARGE, Faults, find_faults, image_files

PHASES = ('train', 'val', 'test')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The exit status is 1 if a fault makes a training useless, or lets it '
        'crash later. Annotations of COCO and Pascal VOC are read.',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--images',
        action='store_true',
        help='if the annotations have no errors, open every image, too (minutes)',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override config settings'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    compat.hide_known_warnings()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    try:
        check_data(cfg, *PHASES)
        found = list(find_faults(cfg, *PHASES))
        for faults in found:
            print(faults)
        if not found:
            print('no annotations in the format of COCO or Pascal VOC')
        if args.images and not any(faults.refused for faults in found):
            found.append(check_images(cfg))
            print(found[-1])
    except (ValueError, OSError, RunError) as error:
        raise SystemExit(f'error: {error}') from None
    if any(faults.refused for faults in found):
        raise SystemExit(1)


def check_images(cfg: Config) -> Faults:
    """Open the images of all data sets, and print the names of damaged ones."""
    images = image_files(cfg, *PHASES)
    faults = Faults('all data sets', images=len(images))
    Image.MAX_IMAGE_PIXELS = None  # Otherwise, Pillow rejects large images.
    for path, size in tqdm(images.items(), unit='image', leave=False):
        name, detail = image_fault(path, size)
        if name:
            faults.add(name, path if name == 'images damaged' else f'{path}{detail}')
        if name == 'images damaged':
            tqdm.write(f'error: {path}{detail}')
    return faults


def image_fault(path: str, size: tuple[int | None, int | None]) -> tuple[str, str]:
    """The kind of an image's fault, and details. Without a fault, both are empty.

    Args:
        path: The image.
        size: (width, height) as the annotations have it, or (None, None).
    """
    try:
        # OpenCV turns the image by its EXIF tag, as MMDetection does.
        pixels = cv2.imread(path)
    except cv2.error as error:
        return 'images damaged', f' cannot be read: {error.err}'
    if pixels is None:
        return 'images damaged', ' is missing, or is no image'
    try:
        # If a file is truncated, OpenCV fills the missing part with grey. Pillow raises
        # an error, so open the image with Pillow, too.
        with Image.open(path) as image:
            image.load()
    except UnidentifiedImageError:
        pass  # a format that only OpenCV reads
    except (OSError, SyntaxError, ValueError) as error:
        return 'images damaged', f' is cut off or damaged: {error}'
    height, width = pixels.shape[:2]
    if width * height > LARGE:
        return 'large images', ''
    if size not in ((width, height), (None, None)):
        return 'other size', f': {width} x {height}, not {size[0]} x {size[1]}'
    return '', ''


if __name__ == '__main__':
    main()
