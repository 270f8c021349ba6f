"""Write the weights of a checkpoint for others, without the state of the training.
If the training averaged the weights, the averages are written. By default, the name of
the file contains its hash."""

import argparse
import os

from prm_mmdet import compat
from prm_mmdet.files.publish import publish_checkpoint


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='A detector starts from the backbone of a classifier with '
        "init_cfg=dict(type='Pretrained', checkpoint='PREFIX-HASH.pth', "
        "prefix='backbone.').",
    )
    parser.add_argument('checkpoint', metavar='IN', help='checkpoint of a training')
    parser.add_argument(
        'prefix', metavar='PREFIX', help='what to write: PREFIX-HASH.pth'
    )
    parser.add_argument(
        '--no-hash',
        action='store_true',
        help='write PREFIX.pth, for a config that names the file',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    compat.load_weights_only()
    prefix = args.prefix[:-4] if args.prefix.endswith('.pth') else args.prefix
    try:
        path, left_out = publish_checkpoint(args.checkpoint, prefix, not args.no_hash)
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    if left_out:
        print(f'left out: {", ".join(left_out)}')
    print(f'{path}: {os.path.getsize(path) / 2**20:.1f} MiB')


if __name__ == '__main__':
    main()
