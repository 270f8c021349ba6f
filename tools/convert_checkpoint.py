"""Rename a checkpoint's weights from torchvision or the PRM authors' code for
MMDetection, or back."""

import argparse

from mmdet.utils import register_all_modules
from mmengine.config import Config

from prm_mmdet.checkpoint_io import read_state_dict, write_checkpoint
from prm_mmdet.compat import hide_known_warnings
from prm_mmdet.models.convert import FORMS, from_mmdet, to_mmdet
from prm_mmdet.registry import MODELS


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='ResNet, ResNeXt and MobileNetV2 can be converted. Their weights are '
        'backbone.* afterwards and their classifier is fc. Names and shapes are '
        'checked against the network; what does not fit is named, and nothing written.',
    )
    parser.add_argument('input', help='checkpoint to read, its weights only')
    parser.add_argument('output', help='checkpoint to write')
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument('--from', dest='source', choices=FORMS, help='whose it is')
    direction.add_argument(
        '--to', choices=FORMS, help='whose names to give back, with --config'
    )
    parser.add_argument(
        '--config',
        help='config whose model.backbone the weights are for (default: the ResNet-18 '
        'to -152 or MobileNetV2 that their names are of)',
    )
    parser.add_argument(
        '--drop',
        nargs='+',
        default=[],
        metavar='NAME',
        help='leave out weights whose names begin so, such as fc. or neck.',
    )
    args = parser.parse_args()
    if args.to and not args.config:
        parser.error('--to needs --config: names do not tell where plugins stand')
    return args


def main():
    args = parse_args()
    hide_known_warnings()
    try:
        state = read_state_dict(args.input)
        backbone = None
        if args.config:
            backbone = build_backbone(args.config)
        convert = to_mmdet if args.source else from_mmdet
        weights = convert(state, args.source or args.to, backbone, args.drop)
        # torchvision's files are bare.
        bare = args.to == 'torchvision'
        checkpoint = weights if bare else dict(state_dict=weights)
        write_checkpoint(checkpoint, args.output, args.input)
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    print(f'{args.output}: {len(weights)} of {len(state)} weights')
    for name in args.drop:
        print(f'left out: {sum(key.startswith(name) for key in state)} of {name}*')
    if args.source:
        print(
            f"init_cfg=dict(type='Pretrained', checkpoint={args.output!r}, "
            "prefix='backbone.')"
        )


def build_backbone(config):
    register_all_modules()
    model = Config.fromfile(config).get('model') or {}
    if 'backbone' not in model:
        raise ValueError(f'{config} has no model.backbone')
    return MODELS.build(model['backbone'])


if __name__ == '__main__':
    main()
