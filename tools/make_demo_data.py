"""Write the demo data set: a small COCO-format set of drawn shapes."""

import argparse

from prm_mmdet.datasets.demo import generate_demo


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--out', default='data/demo', help='folder to write to')
    parser.add_argument(
        '--num-train', type=int, default=400, help='number of training images'
    )
    parser.add_argument(
        '--num-val', type=int, default=100, help='number of validation images'
    )
    parser.add_argument(
        '--image-size', type=int, default=128, help='side of the images in pixels'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the drawing')
    return parser.parse_args()


def main():
    args = parse_args()
    try:
        generate_demo(
            args.out, args.num_train, args.num_val, args.image_size, args.seed
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
