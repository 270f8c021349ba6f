"""Measure what the blocks cost: alone, in ResNet-50, or in a detector."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from prm_mmdet.benchmark import block_costs, cost_tables
from prm_mmdet.benchmark.measure import Setting, environment
from prm_mmdet.files.atomic import write_file
from prm_mmdet.ops.backend import VARIABLE, backend

NETWORK_BLOCKS = ('PRM', 'LCT', 'SAC', 'SE', 'GC', 'CBAM', 'DA')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    levels = parser.add_subparsers(dest='level', required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        choices=['cpu', 'cuda'],
    )
    costs = argparse.ArgumentParser(add_help=False)
    costs.add_argument(
        '--dtype',
        default='float32',
        choices=['float32', 'float16', 'bfloat16'],
        help='of the features; parameters are float32, as under autocast',
    )
    costs.add_argument('--batch', type=int, default=1, help='images')
    costs.add_argument('--rounds', type=int, default=9, help='timings of each form')
    costs.add_argument('--json', metavar='FILE', help='write the records here')
    size: dict[str, Any] = dict(
        type=int, nargs=2, metavar=('H', 'W'), help='of the images, in pixels'
    )
    look: dict[str, Any] = dict(
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog='The measured forms take turns, and ratios are taken within rounds: '
        'ratios can be trusted on a shared machine, milliseconds cannot. '
        f'{VARIABLE} forces an implementation of the operators.',
    )

    about = 'each block alone, on the maps of c2 to c5; requires torch only'
    op = levels.add_parser('op', parents=[shared, costs], help=about, **look)
    op.add_argument('--size', default=[800, 1216], **size)
    blocks, stages = list(block_costs.BLOCKS), list(block_costs.STAGES)
    op.add_argument('--blocks', nargs='+', default=blocks, choices=blocks)
    op.add_argument('--stages', nargs='+', default=stages, choices=stages)
    op.add_argument(
        '--no-compile',
        action='store_true',
        help='leave out the forms under torch.compile, whose compilation takes minutes',
    )

    for level, network in (('backbone', 'ResNet-50'), ('detector', 'Mask R-CNN R50')):
        about = f'{network} with each block: a training step, or inference'
        parser_ = levels.add_parser(level, parents=[shared, costs], help=about, **look)
        parser_.add_argument('--size', default=[800, 1344], **size)
        default = list(NETWORK_BLOCKS[:5])
        parser_.add_argument(
            '--blocks', nargs='+', default=default, choices=NETWORK_BLOCKS
        )
        parser_.add_argument(
            '--inference',
            action='store_true',
            help='measure inference instead of a training step',
        )
        if level == 'backbone':
            parser_.add_argument(
                '--compile',
                action='store_true',
                help='measure the network under torch.compile, too, and count how '
                'often other image sizes compile it again',
            )

    fps = levels.add_parser(
        'fps',
        parents=[shared],
        help="images a second of whole detectors, by MMDetection's protocol",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog='The detectors take turns on each image. The newest checkpoint in '
        'WORK_DIRS/<name of the config> is loaded; without one, weights are random.',
    )
    fps.add_argument('configs', nargs='+', metavar='CONFIG', help='files')
    fps.add_argument('--images', type=int, default=2000, help='the largest number')
    fps.add_argument('--warmup', type=int, default=5, help='images that do not count')
    fps.add_argument(
        '--work-dirs',
        type=Path,
        default=Path('work_dirs'),
        help='folder of the runs, and of fps.json, which tools/paper_tables.py reads',
    )
    fps.add_argument(
        '--data-root', help="folder of the test data, instead of the configs' own"
    )

    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: there is no CUDA device; use --device cpu')
    for name, low in (('batch', 1), ('rounds', 2), ('images', 1), ('warmup', 0)):
        if getattr(args, name, low) < low:
            parser.error(f'--{name} must be at least {low}')
    if min(getattr(args, 'size', [32])) < 32:
        parser.error('--size must be at least 32 32, since c5 has stride 32')
    return args


def say(text: str) -> None:
    """Print one line of progress. On a terminal, it replaces the line before."""
    start, end = ('\r\x1b[K', '') if sys.stderr.isatty() else ('', '\n')
    print(f'{start}{text}', end=end, file=sys.stderr, flush=True)


def measure_costs(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype)
    setting = Setting(device, dtype, args.batch, tuple(args.size))
    try:
        chosen = backend(torch.empty(0, dtype=dtype, device=device))
    except RuntimeError as error:
        raise SystemExit(f'error: {error}') from None
    conditions = dict(environment(device), backend=chosen)
    torch.manual_seed(0)
    records: list[dict[str, Any]] = []
    if args.level == 'op':
        try:
            for record in block_costs.measure_blocks(
                args.blocks, args.stages, setting, args.rounds, not args.no_compile, say
            ):
                records.append(record)
        except KeyboardInterrupt:
            say(f'interrupted after {len(records)} records\n')
            if not records:
                raise SystemExit(1) from None
        text = cost_tables.block_table(records) + '\n' + cost_tables.BLOCK_LEGEND
    else:
        from prm_mmdet import compat
        from prm_mmdet.benchmark import network_costs

        compat.hide_known_warnings()
        if args.level == 'backbone':
            records = network_costs.measure_backbones(
                args.blocks, setting, args.rounds, args.inference, args.compile, say
            )
        else:
            records = network_costs.measure_detectors(
                args.blocks, setting, args.rounds, args.inference, say
            )
        text = cost_tables.network_table(records)
    say('')
    settings = {k: v for k, v in vars(args).items() if k != 'json'}
    print(', '.join(f'{key}: {value}' for key, value in conditions.items()))
    print(
        f'{args.level}: batch {args.batch}, {args.size[0]} x {args.size[1]}, '
        f'{args.dtype}, {args.rounds} rounds\n\n{text}',
        end='',
    )
    if args.json:
        result = dict(environment=conditions, settings=settings, records=records)
        write_file(args.json, json.dumps(result, indent=1) + '\n')


def measure_fps(args: argparse.Namespace) -> None:
    from mmengine.config import Config
    from mmengine.runner import find_latest_checkpoint

    from prm_mmdet import compat
    from prm_mmdet.benchmark import detector_fps, fps_records

    compat.hide_known_warnings()
    device = torch.device(args.device)
    configs, checkpoints = [], []
    for path in args.configs:
        cfg = Config.fromfile(path)
        if args.data_root:
            cfg.test_dataloader.dataset.data_root = args.data_root
        configs.append(cfg)
        folder = args.work_dirs / Path(path).stem
        checkpoints.append(find_latest_checkpoint(folder) if folder.is_dir() else None)
    # pycocotools prints to stdout. Send its text to stderr, so that stdout has only the
    # table.
    with contextlib.redirect_stdout(sys.stderr):
        fps = detector_fps.measure_fps(
            configs, checkpoints, device, args.images, args.warmup, say
        )
    say('')
    rows = [['config', 'fps', 'of the first', 'weights']]
    for path, value, checkpoint in zip(args.configs, fps, checkpoints):
        ratio = f'{value / fps[0]:.3f}'
        rows.append([Path(path).stem, f'{value:.3g}', ratio, checkpoint or 'random'])
    print(', '.join(f'{k}: {v}' for k, v in environment(device).items()))
    print(cost_tables.columns(rows), end='')
    file = fps_records.record_fps(
        args.work_dirs, args.configs, checkpoints, fps, device
    )
    print(f'wrote {file}')


def main() -> None:
    args = parse_args()
    logging.disable(logging.INFO)
    try:
        (measure_fps if args.level == 'fps' else measure_costs)(args)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
