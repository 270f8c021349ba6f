"""Find out which block helps your detector.

The command trains the detector of any MMDetection config without a block and with each
block that you name, with several seeds. It reports each block's difference to the
detector without a block, with a 95% interval, and what the block costs.

    python tools/compare_blocks.py my_config.py --load-from my_detector.pth \\
        --blocks SAC PRM LCT --seeds 3 --epochs 3

You can interrupt the command at any time. To continue, give the same command again. If
all runs have finished, the same command prints the report again.
"""

import argparse
import json
import logging
from pathlib import Path

from mmengine.config import DictAction

from prm_mmdet import compat
from prm_mmdet.comparison.blocks import NAMES, read_blocks
from prm_mmdet.comparison.comparison_page import as_page, write_pictures
from prm_mmdet.comparison.comparison_report import as_markdown, collect
from prm_mmdet.comparison.cost import costs_of
from prm_mmdet.comparison.plan import check_settings, make_comparison, save_rehearsal
from prm_mmdet.comparison.plan_text import describe
from prm_mmdet.experiments import Launch, plan, run_cells, state
from prm_mmdet.files.atomic import write_file

#: Outcomes of runs that Slurm or another process has not finished yet.
UNFINISHED = ('submitted', 'in the queue', 'run by another process')


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='your config, as for train.py')
    parser.add_argument(
        '--blocks',
        nargs='+',
        required=True,
        metavar='BLOCK',
        help='blocks to compare, with options in quotes: SAC "SAC reduction=16". '
        f'Names: {", ".join(NAMES)}, and every registered plugin. Options position=, '
        'stages= and at= choose where this block is placed',
    )
    parser.add_argument(
        '--load-from',
        metavar='FILE',
        help="checkpoint that all runs start from (default: the config's load_from)",
    )
    parser.add_argument(
        '--seeds',
        type=int,
        default=3,
        metavar='N',
        help='seeds 0 to N - 1 (default: 3)',
    )
    parser.add_argument(
        '--epochs',
        type=int,
        metavar='N',
        help='epochs of each run, or iterations if the config counts these; schedules '
        "by epoch shrink in proportion (default: the config's)",
    )
    parser.add_argument(
        '--lr',
        type=float,
        nargs='+',
        default=[],
        metavar='RATE',
        help="learning rates, each compared and reported (default: the config's)",
    )
    parser.add_argument(
        '--metric',
        metavar='NAME',
        help='metric of the verdicts (default: the first whose name ends in mAP)',
    )
    place = parser.add_argument_group('where blocks are placed')
    place.add_argument(
        '--position',
        choices=('after_conv1', 'after_conv2', 'after_conv3'),
        help='place in a bottleneck (default: after_conv2 for SAC, else after_conv3)',
    )
    place.add_argument(
        '--stages',
        nargs='+',
        metavar='STAGE',
        help='stages, such as c4 c5; cN has stride 2^N (default: c3 and deeper)',
    )
    place.add_argument(
        '--at',
        metavar='REGEX',
        help='names of the backbone\'s submodules that a block follows; "" is the '
        'backbone itself',
    )
    run = parser.add_argument_group('how runs are made')
    run.add_argument(
        '--work-dir',
        metavar='FOLDER',
        help='folder of all runs (default: work_dirs/compare_<config>)',
    )
    run.add_argument(
        '--jobs', type=int, default=1, metavar='N', help='runs at a time (default: 1)'
    )
    run.add_argument(
        '--launcher',
        choices=('none', 'torchrun', 'slurm'),
        default='none',
        help='how each run is started (default: none, one process)',
    )
    run.add_argument(
        '--ranks',
        type=int,
        metavar='N',
        help='processes of each run, one a GPU (default: 1)',
    )
    run.add_argument('--partition', help="Slurm's partition (default: the cluster's)")
    run.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override config settings'
    )
    run.add_argument(
        '--allow-partial',
        action='store_true',
        help='let --load-from lack weights of the detector, or hold others',
    )
    run.add_argument(
        '--keep-checkpoints',
        action='store_true',
        help='keep all checkpoints that the config asks for (default: each last one)',
    )
    run.add_argument(
        '--rounds',
        type=int,
        default=10,
        metavar='N',
        help='interleaved timings of each network after the runs, 0 for none '
        '(default: 10)',
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        '--dry-run', action='store_true', help='print the plan and the commands only'
    )
    only.add_argument(
        '--list', action='store_true', help='print the plan and how far each run is'
    )
    only.add_argument(
        '--report', action='store_true', help='report what has finished; run nothing'
    )
    args = parser.parse_args()
    if args.launcher == 'none' and args.ranks:
        parser.error('--ranks needs --launcher torchrun or slurm')
    if args.launcher != 'none' and not args.ranks:
        parser.error(f'--launcher {args.launcher} needs --ranks')
    if args.rounds == 1 or args.rounds < 0:
        parser.error('--rounds must be 0, or at least 2')
    return args


def main():
    args = parse_args()
    compat.hide_known_warnings()
    compat.load_weights_only()
    logging.disable(logging.INFO)
    try:
        status = compare(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(status)


def compare(args):
    comparison = make_comparison(
        args.config,
        read_blocks(args.blocks, args.position, args.stages, args.at),
        seeds=args.seeds,
        work_dir=args.work_dir or f'work_dirs/compare_{Path(args.config).stem}',
        load_from=args.load_from,
        epochs=args.epochs,
        rates=args.lr,
        metric=args.metric,
        options=args.cfg_options,
        keep_checkpoints=args.keep_checkpoints,
        partial=args.allow_partial,
        ranks=args.ranks or 1,
        rehearse=not (args.list or args.report),
    )
    cells = comparison.cells()
    launch = Launch(
        launcher=args.launcher,
        ranks=args.ranks or 1,
        partition=args.partition,
        jobs=args.jobs,
    )
    if args.list:
        for cell in cells:
            print(f'{cell.name}: {state(cell)}')
        return 0
    if not args.report:
        print(describe(comparison), flush=True)
    if args.dry_run:
        print(plan(cells, launch), end='')
        return 0
    words = []
    if not args.report:
        check_settings(comparison, launch.ranks)
        save_rehearsal(comparison)
        words = [outcome.word for outcome in run_cells(cells, launch).values()]
    if any(word in UNFINISHED for word in words):
        print('when those runs have ended, give the same command again for the report')
    settled = words and all(word in ('ok', 'finished before') for word in words)
    written = report(comparison, args.rounds if settled else 0)
    if written and 'failed' in words:
        count = words.count('failed')
        print(f'{count} of {len(words)} runs failed (see above), so this is not final')
    return int('failed' in words or not (written or words))


def report(comparison, rounds):
    """Print and write the report. If no run has finished, write nothing and return
    False."""
    found = collect(comparison, costs_of(comparison, rounds))
    if not any(run['finished'] for e in found['entries'] for run in e['runs']):
        print(f'no run in {comparison.work_dir} has finished; there is no report yet')
        return False
    folder = comparison.work_dir
    write_pictures(found, folder)
    write_file(folder / 'report.json', json.dumps(found, indent=1) + '\n')
    write_file(folder / 'report.md', as_markdown(found))
    write_file(folder / 'report.html', as_page(found))
    print(f'\n{as_markdown(found, pictures=False)}')
    print(f'report: {folder}/report.html, .md and .json')
    return True


if __name__ == '__main__':
    main()
