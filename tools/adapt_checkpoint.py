"""Write a checkpoint of a trained network for a config that puts blocks into it.

With the new checkpoint, the network with blocks computes the same as without blocks. A
fresh PRM or LCT multiplies its input by a constant. To cancel this constant, the
parameters of the layer before the block are divided by the constant.
"""

import argparse

from mmengine.config import Config, DictAction

from prm_mmdet import compat
from prm_mmdet.insertion.trained_weights import adapt_checkpoint


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'checkpoint',
        metavar='IN',
        help='checkpoint without the blocks, of the detector or of its backbone: a '
        'file, an address, or a name such as torchvision://resnet50',
    )
    parser.add_argument('out', metavar='OUT', help='file to write, for load_from')
    parser.add_argument(
        '--config', required=True, help='config of the model with the blocks'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override config settings'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    compat.hide_known_warnings()
    compat.load_weights_only()
    try:
        cfg = Config.fromfile(args.config)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
        adapted = adapt_checkpoint(cfg, args.checkpoint, args.out)
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    for outcome in adapted.outcomes:
        print(outcome)
    print(f'{args.out}: {adapted}')


if __name__ == '__main__':
    main()
