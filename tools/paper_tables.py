"""Print the papers' COCO tables, with the AP measured in work_dirs beside them."""

import argparse

from prm_mmdet.papers import TABLES, find_table
from prm_mmdet.papers.report import report


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'tables',
        nargs='*',
        help=f'of {", ".join(t.key for t in TABLES)}; all if none is named',
    )
    parser.add_argument('--work-dirs', default='work_dirs', help='folder of the runs')
    parser.add_argument(
        '--style', default='terminal', choices=['terminal', 'markdown', 'csv']
    )
    return parser.parse_args()


def main():
    args = parse_args()
    try:
        tables = [find_table(key) for key in args.tables] or TABLES
    except ValueError as error:
        raise SystemExit(f'error: {error}') from None
    print('\n'.join(report(t, args.work_dirs, args.style) for t in tables), end='')


if __name__ == '__main__':
    main()
