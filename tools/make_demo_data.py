"""Write demo data of drawn shapes: a small COCO-format set, or with --classes a small
set of image classes in ImageNet's folders."""

import argparse

from prm_mmdet.datasets.demo import generate_demo
from prm_mmdet.datasets.demo_classes import generate_demo_classes


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--classes', type=int, metavar='N', help='write N classes of images'
    )
    parser.add_argument(
        '--out', help='folder to write to (data/demo; data/demo_classes)'
    )
    parser.add_argument(
        '--num-train', type=int, help='training images (400; 60 of each class)'
    )
    parser.add_argument(
        '--num-val', type=int, help='validation images (100; 20 of each class)'
    )
    parser.add_argument(
        '--image-size', type=int, help='side of the images in pixels (128; 64)'
    )
    parser.add_argument('--seed', type=int, help='seed of the drawing (0)')
    return parser.parse_args()


def main():
    given = {k: v for k, v in vars(parse_args()).items() if v is not None}
    classes = given.pop('classes', None)
    try:
        if classes is None:
            generate_demo(given.pop('out', 'data/demo'), **given)
        else:
            out = given.pop('out', 'data/demo_classes')
            generate_demo_classes(out, classes, **given)
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
