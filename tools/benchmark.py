"""Measure what the blocks cost: alone, in a backbone or in a detector."""

import argparse
import logging
import os

import torch

from prm_mmdet.benchmark import report
from prm_mmdet.benchmark.run import LEVELS
from prm_mmdet.benchmark.subjects import BLOCKS, Setting
from prm_mmdet.ops.select import VARIABLE, backend


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog='Calls take turns and ratios are taken within rounds, so they bear a '
        f'shared machine better than times do. {VARIABLE} forces an implementation.',
    )
    parser.add_argument('level', choices=list(LEVELS))
    parser.add_argument(
        '--blocks',
        nargs='+',
        default=list(BLOCKS),
        choices=list(BLOCKS),
        metavar='BLOCK',
    )
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        choices=['cpu', 'cuda'],
    )
    parser.add_argument(
        '--dtype', default='float32', choices=['float32', 'float16', 'bfloat16']
    )
    parser.add_argument('--batch', type=int, default=1, help='images')
    parser.add_argument(
        '--size', type=int, nargs=2, default=[800, 1344], metavar=('H', 'W')
    )
    parser.add_argument('--rounds', type=int, default=9, help='timings of each')
    parser.add_argument(
        '--out', default='work_dirs/benchmark', help='folder for the JSON and the chart'
    )
    args = parser.parse_args()
    for name in ('batch', 'rounds'):
        if getattr(args, name) < (low := 2 if name == 'rounds' else 1):
            parser.error(f'--{name} must be at least {low}')
    if min(args.size) < 32:
        parser.error('--size must be at least 32 each, the stride of c5')
    return args


def main():
    args = parse_args()
    logging.disable(logging.INFO)
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
