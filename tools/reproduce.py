"""Run the rows of the papers' tables, with the pre-trained backbones that they need,
and print the tables with the results."""

import argparse
import logging
import os

from prm_mmdet import compat
from prm_mmdet.experiments import Launch, plan
from prm_mmdet.experiments.runner import WELL
from prm_mmdet.launch import MissingInput
from prm_mmdet.papers import TABLES, find_table
from prm_mmdet.papers.reproduce import (
    DATA_ROOTS,
    Runs,
    choose,
    from_torchvision,
    list_rows,
    row_cells,
    run_rows,
)
from prm_mmdet.papers.table_report import report


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog='If you give the same command again, it skips finished rows and '
        'continues interrupted rows. A row that fails stops only the rows that need '
        'its backbone. Slurm jobs also take GPUS_PER_NODE (8) and CPUS_PER_TASK (5) '
        "from the environment, and sbatch's own SBATCH_ACCOUNT, SBATCH_TIMELIMIT, ...",
    )
    parser.add_argument(
        'tables',
        nargs='*',
        help=f'of {", ".join(t.key for t in TABLES)} (default: all)',
    )
    parser.add_argument(
        '--rows',
        nargs='+',
        metavar='PATTERN',
        default=[],
        help="only rows whose config's name, without .py, matches a shell pattern",
    )
    parser.add_argument(
        '--from-torchvision',
        action='store_true',
        help='instead of rows with pre-trained blocks in c2-c5, run the same detectors '
        "with untrained blocks in c3-c5 on torchvision's backbones; the papers have no "
        'results of these rows',
    )
    show = parser.add_mutually_exclusive_group()
    show.add_argument(
        '--list',
        action='store_true',
        help='list the rows, the backbones that they need, and how far each has come',
    )
    show.add_argument(
        '--dry-run', action='store_true', help='print the commands, run nothing'
    )
    parser.add_argument(
        '--smoke',
        action='store_true',
        help='a few iterations of each row on a few small images, from no weights, in '
        'the folder smoke/ of the work dirs; to repeat it, remove that folder',
    )
    parser.add_argument(
        '--launcher',
        default='none',
        choices=['none', 'torchrun', 'slurm'],
        help='how the processes of a row are started',
    )
    parser.add_argument(
        '--ranks',
        type=int,
        help='processes a row, one a GPU, with torchrun or slurm; the learning rate is '
        'scaled to the batch',
    )
    parser.add_argument('--partition', help='partition of Slurm')
    parser.add_argument(
        '--jobs', type=int, default=1, help='rows at a time; Slurm decides by itself'
    )
    parser.add_argument('--work-dirs', default='work_dirs', help='folder of the runs')
    parser.add_argument(
        '--data-root',
        help='folder of COCO, with annotations/, train2017/ and val2017/; without it, '
        'MMDET_DATASETS names it, or it is data/coco/',
    )
    parser.add_argument(
        '--imagenet-root',
        help='folder of ImageNet, with train/ and val/, for the classification tables; '
        'without it, IMAGENET names it, or it is data/imagenet/',
    )
    args = parser.parse_args()
    if (args.launcher == 'none') != (args.ranks is None):
        parser.error('--launcher torchrun or slurm and --ranks go together')
    if args.ranks is not None and args.ranks < 1:
        parser.error('--ranks must be above 0')
    if args.jobs < 1:
        parser.error('--jobs must be above 0')
    if args.partition and args.launcher != 'slurm':
        parser.error('--partition requires --launcher slurm')
    return args


def main():
    args = parse_args()
    for name, root in zip(DATA_ROOTS, (args.data_root, args.imagenet_root)):
        if root:
            os.environ[name] = os.path.join(os.path.abspath(root), '')
    runs = Runs(args.work_dirs, args.smoke, args.ranks or 1)
    launch = Launch(args.launcher, runs.ranks, args.partition, args.jobs)
    compat.hide_known_warnings()
    # Hide INFO messages. MMEngine would log MMDET_DATASETS (the folder of the data) for
    # every config.
    logging.disable(logging.INFO)
    try:
        tables = [find_table(key) for key in args.tables] or list(TABLES)
        if args.from_torchvision:
            tables = [from_torchvision(table) for table in tables]
        configs = choose(tables, args.rows)
        if args.list:
            print(list_rows(tables, configs, runs), end='')
            return
        cells = row_cells(configs, runs)
        if args.dry_run:
            print(plan(list(cells.values()), launch), end='')
            return
        outcomes = run_rows(cells, launch, runs)
    except MissingInput as error:
        raise SystemExit(
            f'error: {error}\nHere --data-root names the folder of COCO, '
            '--imagenet-root that of ImageNet'
        ) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if args.smoke:
        print('AP and accuracy "here" are those of the smoke runs: they mean nothing')
    for table in tables:
        if set(configs) & {row.config for row in table.rows}:
            print('\n' + report(table, runs.folder), end='')
    if args.launcher == 'slurm':
        print('\nwhen jobs have ended, give the same command again for the tables')
    raise SystemExit(any(outcome.word not in WELL for outcome in outcomes.values()))


if __name__ == '__main__':
    main()
