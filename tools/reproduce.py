"""Run the rows of the papers' tables, and print the tables with what came out."""

import argparse
import logging
import os
import signal

from prm_mmdet import compat
from prm_mmdet.launch import MissingInput
from prm_mmdet.papers import TABLES, find_table
from prm_mmdet.papers.reproduce import (
    INTERRUPTED,
    Launch,
    choose,
    dry_run,
    list_rows,
    run_rows,
)
from prm_mmdet.papers.table_report import report


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog='Rows that are finished are skipped, rows that were cut short go on, '
        'and a row that fails stops no other: the same command may be given again. '
        'Slurm jobs also take GPUS_PER_NODE (8) and CPUS_PER_TASK (5) from the '
        "environment, and sbatch's own SBATCH_ACCOUNT, SBATCH_TIMELIMIT, ...",
    )
    parser.add_argument(
        'tables',
        nargs='*',
        help=f'of {", ".join(t.key for t in TABLES)}; all if none is named',
    )
    parser.add_argument(
        '--rows',
        nargs='+',
        metavar='PATTERN',
        default=[],
        help="only those whose config's name, without .py, matches a shell pattern",
    )
    show = parser.add_mutually_exclusive_group()
    show.add_argument(
        '--list', action='store_true', help='list the rows and how far each has come'
    )
    show.add_argument(
        '--dry-run', action='store_true', help='print the commands, run nothing'
    )
    parser.add_argument(
        '--smoke',
        action='store_true',
        help='a few iterations of each row on a few small images, from no weights, in '
        'smoke/ of the work dirs; to do it anew, remove that',
    )
    parser.add_argument(
        '--launcher', default='none', choices=['none', 'torchrun', 'slurm']
    )
    parser.add_argument(
        '--ranks',
        type=int,
        help='processes a row, one a GPU, with torchrun or slurm; the learning rate is '
        'scaled to the batch',
    )
    parser.add_argument('--partition', help="Slurm's")
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
        parser.error('--ranks wants a number above 0')
    if args.partition and args.launcher != 'slurm':
        parser.error('--partition wants --launcher slurm')
    return args


def main():
    args = parse_args()
    roots = {'MMDET_DATASETS': args.data_root, 'IMAGENET': args.imagenet_root}
    for name, root in roots.items():
        if root:
            os.environ[name] = os.path.join(os.path.abspath(root), '')
    launch = Launch(
        args.work_dirs, args.launcher, args.ranks or 1, args.partition, args.smoke
    )
    compat.hide_known_warnings()
    logging.disable(logging.INFO)  # MMEngine names MMDET_DATASETS with every config
    # What ends this process ends the row that it runs, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not under nohup
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        tables = [find_table(key) for key in args.tables] or TABLES
        configs = choose(tables, args.rows)
        if args.list:
            print(list_rows(tables, configs, launch), end='')
            return
        if args.dry_run:
            print(dry_run(configs, launch), end='')
            return
        status = run_rows(configs, launch)
    except MissingInput as error:
        raise SystemExit(
            f'error: {error}\nHere --data-root names the folder of COCO, '
            '--imagenet-root that of ImageNet'
        ) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    if status == INTERRUPTED:
        raise SystemExit(status)
    if args.smoke:
        print('AP and accuracy "here" are those of the smoke runs: they mean nothing')
    for table in tables:
        if set(configs) & {row.config for row in table.rows}:
            print('\n' + report(table, launch.folder), end='')
    if args.launcher == 'slurm':
        print('\nwhen jobs have ended, the same command goes on and prints the tables')
    raise SystemExit(status)


if __name__ == '__main__':
    main()
