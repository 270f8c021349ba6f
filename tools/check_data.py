"""Read the annotations of a config's data sets, and report their faults."""

from __future__ import annotations

import argparse

import cv2
from mmengine.config import Config, DictAction
from tqdm import tqdm

from prm_mmdet import compat
from prm_mmdet.launch import MissingInput, check_data
from prm_mmdet.launch.annotations import LARGE, find_faults, image_files

PHASES = ('train', 'val', 'test')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The exit status is 1 if a fault makes a training useless, or lets it '
        'crash later. Annotations of COCO and Pascal VOC are read.',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--images', action='store_true', help='open every image, too (minutes)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings that replace those of the config',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    compat.hide_known_warnings()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    try:
        check_data(cfg, *PHASES)
    except MissingInput as error:
        raise SystemExit(f'error: {error}') from None
    found = list(find_faults(cfg, *PHASES))
    for faults in found:
        print(faults)
    if not found:
        print('no annotations in the format of COCO or Pascal VOC')
    broken = check_images(cfg) if args.images else 0
    if broken or any(faults.refused for faults in found):
        raise SystemExit(1)


def check_images(cfg: Config) -> int:
    """Open the images of all data sets, print those that cannot be used, and return
    their number."""
    broken = large = 0
    paths = list(image_files(cfg, *PHASES))
    for path in tqdm(paths, unit='image', leave=False):
        image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if image is None:
            broken += 1
            tqdm.write(f'error: {path} cannot be read')
        elif image.shape[0] * image.shape[1] > LARGE:
            large += 1
            tqdm.write(
                f'warning: {path} has {image.shape[1]} x {image.shape[0]} pixels'
            )
    print(f'{len(paths)} images: {broken} cannot be read, {large} are very large')
    return broken


if __name__ == '__main__':
    main()
