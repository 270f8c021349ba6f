"""Draw a metric by epoch or iteration, for several runs in one picture, from MMEngine's
logs.

If a checkpoint was tested in a run's work dir before the training (tools/test.py CONFIG
CHECKPOINT --work-dir WORK_DIR), the result counts as step 0.
"""

import argparse

from prm_mmdet.inspection.curves import draw_curves, read_curve


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'runs', nargs='+', metavar='LABEL=WORK_DIR', help='label and work dir of a run'
    )
    parser.add_argument(
        '--metric', default='coco/bbox_mAP', help='name of the metric in the logs'
    )
    parser.add_argument('--out', default='curves.png', help='PNG file to write')
    return parser.parse_args()


def main():
    args = parse_args()
    try:
        curves, units = {}, {}
        for run in args.runs:
            label, equals, work_dir = run.partition('=')
            if not equals or not label or label in curves:
                raise ValueError(
                    f'each run needs a label of its own, as LABEL=WORK_DIR: got {run!r}'
                )
            curves[label], units[label] = read_curve(work_dir, args.metric)
        if len(set(units.values())) > 1:
            listed = ', '.join(f'{label}: {unit}' for label, unit in units.items())
            raise ValueError(
                f'runs evaluate by epoch or by iteration, not both: {listed}'
            )
        unit = units[label]
        draw_curves(curves, args.metric, args.out, unit)
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    for label, curve in curves.items():
        points = ', '.join(f'{step}: {value:.3f}' for step, value in curve.items())
        print(f'{label}: {args.metric} by {unit} {points}')
    print(f'curves: {args.out}')


if __name__ == '__main__':
    main()
