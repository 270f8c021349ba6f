"""Draw predictions beside ground truth, from what tools/test.py --out wrote."""

import argparse

from mmengine.config import Config, DictAction

from prm_mmdet.inspection.prediction_figures import draw_predictions
from prm_mmdet.launch import check_data


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('config', help='config that the predictions were made with')
    parser.add_argument('predictions', help='file that tools/test.py --out wrote')
    parser.add_argument('--out', default='predictions.png', help='PNG file to write')
    parser.add_argument('--num-images', type=int, default=6, help='images to show')
    parser.add_argument(
        '--score-thr', type=float, default=0.5, help='leave out what scores less'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override config settings'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    try:
        check_data(cfg, 'test')
        draw_predictions(
            cfg, args.predictions, args.out, args.num_images, args.score_thr
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    print(f'ground truth beside predictions: {args.out}')


if __name__ == '__main__':
    main()
