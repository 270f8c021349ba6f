"""Train small detectors on the context probes, and report what each block sees."""

import argparse
import logging

from context_probes.images import PROBES
from context_probes.probe_report import write_report
from context_probes.records import RECORDS
from context_probes.run_trials import run_trials
from context_probes.trials import NETWORKS, all_trials, main_trials

from prm_mmdet import compat


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog='Trials that have a record of their present config are skipped. If you '
        'give the same command again, it goes on where it was stopped.',
    )
    parser.add_argument(
        '--short',
        action='store_true',
        help='run one seed of no block, PRM, LCT and SAC, instead of all trials',
    )
    parser.add_argument(
        '--probes',
        nargs='+',
        choices=list(PROBES),
        metavar='NAME',
        help=f'run only these probes, of {", ".join(PROBES)}',
    )
    parser.add_argument(
        '--networks',
        nargs='+',
        choices=list(NETWORKS),
        metavar='NAME',
        help=f'run only these networks, of {", ".join(NETWORKS)}',
    )
    parser.add_argument('--jobs', type=int, default=1, help='trials at a time')
    parser.add_argument(
        '--data-root',
        default='data/probes',
        help='folder of the images, which are drawn if they are missing',
    )
    parser.add_argument(
        '--work-dirs', default='work_dirs/probes', help='folder of the runs'
    )
    parser.add_argument(
        '--records', default=str(RECORDS), help='file that the records are added to'
    )
    parser.add_argument(
        '--out', default=str(RECORDS.parent), help='folder of the page and its figures'
    )
    parser.add_argument(
        '--report', action='store_true', help='run nothing, only write the page'
    )
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error('--jobs must be above 0')
    if args.report and (args.short or args.probes or args.networks):
        parser.error('--report shows all records: leave --short and names out')
    args.trials = [
        trial
        for trial in (main_trials() if args.short else all_trials())
        if trial.probe in (args.probes or PROBES)
        and trial.network in (args.networks or NETWORKS)
    ]
    if not args.trials:
        parser.error('no trial has these networks and these probes')
    return args


def main():
    args = parse_args()
    compat.hide_known_warnings()
    # Hide INFO messages. MMEngine would log the variable PROBE_DATA for every config.
    logging.disable(logging.INFO)
    try:
        whole = args.report or run_trials(
            args.trials, args.records, args.data_root, args.work_dirs, args.jobs
        )
        write_report(args.out, args.records)
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(not whole)


if __name__ == '__main__':
    main()
