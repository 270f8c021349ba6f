"""Print the papers' tables beside your own results and complexity. Or check the papers'
numbers of parameters and FLOPs, or draw PRM's Figure 4 from your runs."""

import argparse
import os
from pathlib import Path

from prm_mmdet import compat
from prm_mmdet.config import config_path
from prm_mmdet.files.atomic import write_file
from prm_mmdet.papers import TABLES, find_table
from prm_mmdet.papers.complexity import check
from prm_mmdet.papers.groups_figure import write_groups_figure
from prm_mmdet.papers.index import index_files
from prm_mmdet.papers.interaction import HICO_DET
from prm_mmdet.papers.table_report import report


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'tables',
        nargs='*',
        help=f'of {", ".join(t.key for t in TABLES)}; all of these if none is named. '
        'sac-XI can be printed, but not run here',
    )
    parser.add_argument('--work-dirs', default='work_dirs', help='folder of the runs')
    parser.add_argument(
        '--style', default='terminal', choices=['terminal', 'markdown', 'csv']
    )
    task = parser.add_mutually_exclusive_group()
    task.add_argument(
        '--check',
        action='store_true',
        help='count parameters and FLOPs of every row again; fail if a cell is more '
        'than one off in the last digit that the paper prints',
    )
    task.add_argument(
        '--write',
        action='store_true',
        help='write the metafiles in configs/ and the tables in its READMEs (for '
        'developers)',
    )
    task.add_argument(
        '--figure',
        metavar='PNG',
        help='draw accuracy by groups (Figure 4 of the PRM paper) from the runs of '
        'prm-fig4',
    )
    args = parser.parse_args()
    if args.figure and args.tables:
        parser.error('--figure draws prm-fig4: name no table')
    if args.write and args.tables:
        parser.error('--write writes all tables: name none')
    if args.work_dirs != 'work_dirs' and not os.path.isdir(args.work_dirs):
        parser.error(f'--work-dirs: there is no folder {args.work_dirs}')
    return args


def main():
    args = parse_args()
    compat.hide_known_warnings()
    try:
        if args.figure:
            write_groups_figure(args.work_dirs, args.figure)
        tables = [_table(key) for key in args.tables] or TABLES
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    if args.check:
        check_tables(tables)
    elif args.write:
        write_index()
    elif not args.figure:
        for i, table in enumerate(tables):
            text = report(table, args.work_dirs, args.style)
            print('\n' + text if i else text, end='', flush=True)


def _table(key):
    return HICO_DET if key.lower() == HICO_DET.key.lower() else find_table(key)


def check_tables(tables):
    """Print a line for each number of parameters or FLOPs in the tables, and a summary.
    Exit with status 1 if a number does not agree with this package's count."""
    counted = [table for table in tables if table.counting]
    if not counted:
        raise SystemExit('error: these tables have no columns of complexity')
    cells = []
    for table in counted:
        for cell in check(table):
            cells.append(cell)
            word = 'ok' if cell.off <= 1 else 'slip' if cell.passed else 'WRONG'
            print(
                f'{word:5}  {table.key}  {Path(cell.row.config).stem}  {cell.column}: '
                f'paper {cell.row.cells[cell.column]}, counted {cell.counted:.4f}'
                + (f', {cell.off} off in the last digit' if cell.off else '')
                + (f': {cell.remark}' if cell.remark else ''),
                flush=True,
            )
    wrong = sum(not c.passed for c in cells)
    print(
        f'{len(cells)} cells: {sum(c.off == 0 for c in cells)} exact, '
        f'{sum(c.off == 1 for c in cells)} one off in the last digit, '
        f'{sum(c.off > 1 and c.passed for c in cells)} with a remark, {wrong} wrong'
    )
    raise SystemExit(bool(wrong))


def write_index():
    configs = Path(config_path('_base_/default_runtime.py')).parents[1]
    for name, text in index_files(configs).items():
        path = configs / name
        write_file(path, text)
        print(f'wrote {path}')


if __name__ == '__main__':
    main()
