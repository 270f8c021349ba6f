"""Write the data sets of the context probes. Each data set has its own folder."""

import argparse
import os

from context_probes.images import PROBES, check_probe, generate_probe


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'probes', nargs='*', help=f'of {", ".join(PROBES)}; all if none is named'
    )
    parser.add_argument('--out', default='data/probes', help='folder of the folders')
    parser.add_argument('--num-train', type=int, default=320, help='training images')
    parser.add_argument('--num-val', type=int, default=100, help='validation images')
    parser.add_argument('--seed', type=int, default=0, help='seed of the drawing')
    return parser.parse_args()


def main():
    args = parse_args()
    counts = dict(num_train=args.num_train, num_val=args.num_val, seed=args.seed)
    try:
        for probe in args.probes:
            check_probe(probe)
        for probe in args.probes or PROBES:
            generate_probe(os.path.join(args.out, probe), probe, **counts)
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
