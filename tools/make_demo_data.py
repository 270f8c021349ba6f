"""Write demo data of drawn shapes: detection data in COCO's format, or with --classes
classification data in ImageNet's folders."""

import argparse

from prm_mmdet.datasets.demo import generate_demo
from prm_mmdet.datasets.demo_classes import generate_demo_classes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Defaults are those of the detection data, then those of --classes.',
    )
    parser.add_argument(
        '--classes', type=int, metavar='N', help='write images of N classes'
    )
    parser.add_argument(
        '--out', help='folder to write to (default: data/demo; data/demo_classes)'
    )
    parser.add_argument(
        '--num-train', type=int, help='training images (default: 400; 60 a class)'
    )
    parser.add_argument(
        '--num-val', type=int, help='validation images (default: 100; 20 a class)'
    )
    parser.add_argument(
        '--image-size', type=int, help='side of an image in pixels (default: 128; 64)'
    )
    parser.add_argument('--seed', type=int, help='of all random numbers (default: 0)')
    return parser.parse_args()


def main() -> None:
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
