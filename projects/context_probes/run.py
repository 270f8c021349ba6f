"""Train small detectors on the context probes, and report what each block sees."""

import argparse
import logging
import signal

from context_probes.cells import NETWORKS, all_cells, main_cells
from context_probes.images import PROBES
from context_probes.probe_report import write_report
from context_probes.probe_runs import run_cells

from prm_mmdet import compat


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog='Runs that have a record of their present config are skipped: the same '
        'command goes on where it was stopped.',
    )
    parser.add_argument(
        '--short',
        action='store_true',
        help='one seed of no block, PRM, LCT and SAC, instead of all runs',
    )
    parser.add_argument(
        '--probes', nargs='+', choices=list(PROBES), metavar='NAME', help='only these'
    )
    parser.add_argument(
        '--networks',
        nargs='+',
        choices=list(NETWORKS),
        metavar='NAME',
        help=f'only these, of {", ".join(NETWORKS)}',
    )
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    parser.add_argument('--data-root', default='data/probes', help='made if missing')
    parser.add_argument('--work-dirs', default='work_dirs/probes', help='of the logs')
    parser.add_argument('--out', default='docs/probes', help='of records and report')
    parser.add_argument(
        '--report', action='store_true', help='run nothing, write the report anew'
    )
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error('--jobs wants a number above 0')
    if args.report and (args.short or args.probes or args.networks):
        parser.error('--report is of all records; leave --short and names out')
    args.cells = [
        cell
        for cell in (main_cells() if args.short else all_cells())
        if cell.probe in (args.probes or PROBES)
        and cell.network in (args.networks or NETWORKS)
    ]
    if not args.cells:
        parser.error('there is no run of these networks on these probes')
    return args


def main():
    args = parse_args()
    compat.hide_known_warnings()
    logging.disable(logging.INFO)  # MMEngine names PROBE_DATA with every config
    # Ends the runs as an interrupt does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = 0
        if not args.report:
            run = args.data_root, args.work_dirs, args.jobs
            failed = run_cells(args.cells, f'{args.out}/records', *run)
        write_report(args.out)
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(int(bool(failed)))


if __name__ == '__main__':
    main()
