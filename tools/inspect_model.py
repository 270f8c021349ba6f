"""Draw what the blocks in a model do: PNG files, and one HTML page with all of them."""

import argparse
import os
import time
from pathlib import Path

import mmdet
import torch
from mmengine.config import Config, DictAction

import prm_mmdet
from prm_mmdet import compat
from prm_mmdet.inspection.figure_files import check_folder
from prm_mmdet.inspection.figure_set import figures
from prm_mmdet.inspection.loading import Images, load_model, reported
from prm_mmdet.inspection.page import write_page
from prm_mmdet.launch import check_data


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Which figures there are follows from the blocks in the model.',
    )
    parser.add_argument('config', help='config of a detector or classifier with blocks')
    parser.add_argument(
        'checkpoint', nargs='?', help='its weights (default: untrained ones)'
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        '--images', nargs='+', metavar='PATH', help='image files, and folders of them'
    )
    source.add_argument(
        '--split', choices=['val', 'test'], help="look at the config's data set"
    )
    parser.add_argument(
        '--num',
        type=int,
        help='number of images to look at, evenly spaced (default: all)',
    )
    parser.add_argument(
        '--drawn', type=int, default=3, help='number of them to draw (default: 3)'
    )
    parser.add_argument(
        '--compare',
        nargs='+',
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a second model: draw predictions of the images on which the two differ '
        'most, and the similarity of weights of SAC with and without softmax',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='leave out detections that score less (default: 0.3)',
    )
    parser.add_argument(
        '--detection',
        type=int,
        default=1,
        help='Grad-CAM of this detection of each image, or of this class of a '
        'classifier, in the order of their scores (default: 1, the highest)',
    )
    parser.add_argument(
        '--out', default='work_dirs/inspection', help='folder (default: %(default)s)'
    )
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='where the models run (default: %(default)s)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of both configs',
    )
    args = parser.parse_args()
    for name in ('num', 'drawn', 'detection'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1')
    if args.compare and len(args.compare) > 2:
        parser.error('--compare takes a config and a checkpoint')
    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        parser.error(f'--device {args.device} cannot be used here: {reason}')
    return args


def prepare(args, config, checkpoint=None):
    """The model of a config, and its input images."""
    for what, path in (('config', config), ('checkpoint', checkpoint)):
        if path is not None and not os.path.isfile(path):
            raise ValueError(f'there is no {what} {path}')
    with reported(f'the config {config} cannot be read'):
        cfg = Config.fromfile(config)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
    if args.split:
        check_data(cfg, args.split)
    images = Images(cfg, args.images, args.split, args.num, args.drawn)
    return load_model(cfg, checkpoint, args.device), images


def titles(subjects):
    """Titles of models: the names of their configs. If two titles are equal, the names
    of the weights are added."""
    names = [f'{Path(c).stem}{"" if w else " (untrained)"}' for c, w in subjects]
    if len(set(names)) < len(names):
        weights = ['/'.join(Path(w or '').parts[-2:]) for _, w in subjects]
        names = [f'{name}\n{w}' for name, w in zip(names, weights)]
    return names


def main():
    args = parse_args()
    compat.hide_known_warnings()
    start = time.time()
    subjects = [(args.config, args.checkpoint)]
    if args.compare:
        subjects.append((*args.compare, None)[:2])
    try:
        check_folder(args.out)
        prepared = [prepare(args, *subject) for subject in subjects]
        entries = figures(
            *prepared[0],
            *prepared[1:],
            titles=titles(subjects),
            score_thr=args.score_thr,
            rank=args.detection - 1,
        )
        images = prepared[0][1]
        facts = {}
        for suffix, (config, checkpoint) in zip(('', ' (compared)'), subjects):
            facts[f'config{suffix}'] = config
            facts[f'weights{suffix}'] = checkpoint or 'untrained: no checkpoint given'
        facts['images'] = f'{len(images)} from ' + (
            f'the {args.split} set' if args.split else ', '.join(args.images)
        )
        drawn = [str(images.path(i)) for i in range(images.drawn)]
        facts['drawn'] = ', '.join(f'{i}: {p}' for i, p in enumerate(drawn, 1))
        facts['made with'] = (
            f'prm_mmdet {prm_mmdet.__version__}, mmdet {mmdet.__version__}, '
            f'torch {torch.__version__}'
        )
        title = 'What the blocks do'
        if args.checkpoint is None:
            title += ' (untrained weights)'
        size = write_page(args.out, title, facts, entries)
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit('\ninterrupted; no page was written') from None
    print(
        f'{len(entries)} figures, {size / 2**20:.1f} MiB, {time.time() - start:.0f} s: '
        f'{args.out}/index.html'
    )


if __name__ == '__main__':
    main()
