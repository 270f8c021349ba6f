"""Measure what the blocks cost, alone, in a backbone or in a detector; or what loading
images for pre-training costs."""

import argparse
import logging
import os
import tempfile

import torch

from prm_mmdet.benchmark import benchmark_report as report
from prm_mmdet.benchmark import data
from prm_mmdet.benchmark.rounds import LEVELS
from prm_mmdet.benchmark.subjects import BLOCKS, Setting
from prm_mmdet.ops.backend import VARIABLE, backend


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    levels = parser.add_subparsers(dest='level', required=True)
    blocks = argparse.ArgumentParser(add_help=False)
    blocks.add_argument(
        '--blocks',
        nargs='+',
        default=list(BLOCKS),
        choices=list(BLOCKS),
        metavar='BLOCK',
    )
    blocks.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        choices=['cpu', 'cuda'],
    )
    blocks.add_argument(
        '--dtype', default='float32', choices=['float32', 'float16', 'bfloat16']
    )
    blocks.add_argument('--batch', type=int, default=1, help='images')
    blocks.add_argument(
        '--size', type=int, nargs=2, default=[800, 1344], metavar=('H', 'W')
    )
    blocks.add_argument('--rounds', type=int, default=9, help='timings of each')
    blocks.add_argument(
        '--out', default='work_dirs/benchmark', help='folder for the JSON and the chart'
    )
    look = dict(
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog='Calls take turns and ratios are taken within rounds, so they bear a '
        f'shared machine better than times do. {VARIABLE} forces an implementation.',
    )
    about = dict(
        op='each block alone, on the maps of c2 to c5',
        backbone='ResNet-50 with each block',
        detector='Mask R-CNN with each block',
    )
    for level in LEVELS:
        levels.add_parser(level, parents=[blocks], help=about[level], **look)
    loading = levels.add_parser(
        'data',
        help="ImageNet's pipelines, images a second on one core",
        formatter_class=look['formatter_class'],
    )
    loading.add_argument('--images', help='folder of images; else some are generated')
    loading.add_argument('--count', type=int, default=64, help='images')
    loading.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=data.SIZE,
        metavar=('H', 'W'),
        help='of generated images',
    )
    loading.add_argument('--rounds', type=int, default=9, help='timings of each')
    args = parser.parse_args()
    for name, low in (('batch', 1), ('count', 1), ('rounds', 2)):
        if getattr(args, name, low) < low:
            parser.error(f'--{name} must be at least {low}')
    if min(args.size) < 32:
        parser.error('--size must be at least 32 each, the stride of c5')
    return args


def measure_data(args):
    """Print what loading images costs."""
    with tempfile.TemporaryDirectory() as folder:
        if args.images:
            paths = data.find_images(args.images, args.count)
        else:
            paths = data.write_photos(folder, args.count, tuple(args.size))
        sizes = [os.path.getsize(path) / 1e3 for path in paths]
        spreads = data.measure(paths, args.rounds)
    print(f'{len(paths)} images of {sum(sizes) / len(sizes):.0f} kB on average')
    print(data.table(spreads), end='')


def main():
    args = parse_args()
    logging.disable(logging.INFO)
    if args.level == 'data':
        try:
            measure_data(args)
        except (OSError, ValueError) as error:
            raise SystemExit(f'error: {error}') from None
        return
    device = torch.device(args.device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise SystemExit('error: there is no CUDA device here; --device cpu')
    try:
        os.makedirs(args.out, exist_ok=True)
        chosen = backend(torch.empty(0, device=device))
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f'error: {error}') from None
    setting = Setting(device, getattr(torch, args.dtype), args.batch, tuple(args.size))
    result = dict(
        environment=report.environment(device), settings=vars(args), groups=[]
    )
    about = ', '.join(f'{k} {v}' for k, v in result['environment'].items())
    print(f'{about}, implementation: {chosen}')
    torch.manual_seed(0)
    try:
        for group in LEVELS[args.level](setting, args.blocks, args.rounds):
            result['groups'].append(group)
            print('\n' + report.table(group), end='', flush=True)
            report.write(result, args.out)
    except KeyboardInterrupt:
        done = len(result['groups'])
        raise SystemExit(f'\ninterrupted; {args.out} holds the {done} done') from None
    print(f'\nwrote {args.out}/benchmark.json and benchmark.png')


if __name__ == '__main__':
    main()
