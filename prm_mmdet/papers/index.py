"""The files in ``configs/`` that say what its configs are, made from the tables."""

import textwrap
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml

from .table_report import report
from .tables import TABLES

_WRITTEN = 'Written by "python tools/paper_tables.py --write": change it there.'
# Columns of the tables to metrics of the metafiles, by task.
_TASKS = {
    'Object Detection': {'bbox_mAP': 'box AP'},
    'Instance Segmentation': {'segm_mAP': 'mask AP'},
    'Image Classification': {'top1': 'Top 1 Accuracy', 'top5': 'Top 5 Accuracy'},
}


@dataclass(frozen=True)
class Collection:
    """A folder of configs and what its README says.

    Args:
        folder (str): Below ``configs/``.
        name (str): In the index.
        title (str): The paper's, or what it is.
        venue (str): Authors and where it appeared.
        about (str): The protocol, and how complexity was counted.
        data (str): The data set. Default: 'COCO'.
        start (str): What the configs to start from are. Default: a detector paper's.
        starts (tuple[str]): Shell patterns of their names. Default: likewise.
        others (str): What those are that are neither these nor rows of a table.
            Default: likewise.
    """

    folder: str
    name: str
    title: str
    venue: str
    about: str
    data: str = 'COCO'
    start: str = "The block in c3-c5 on MMDetection 3's defaults:"
    starts: tuple = ('*_fpn_1x_coco.py',)
    others: str = (
        '## Blocks in every residual block\n\nc2 is frozen, so these need a backbone '
        'that was pre-trained with the block, at the path that the config names:'
    )


COLLECTIONS = (
    Collection(
        'prm',
        'PRM',
        'Position-Aware Recalibration Module: Learning From Feature Semantics and '
        'Feature Position',
        'X. Ma and S. Fu, IJCAI 2020',
        'The paper names 24 epochs and says no more of its protocol; that of '
        "MMDetection 1.x's `2x` is assumed. Complexity in the paper is that of blocks "
        'in every residual block (c2-c5), trainable parameters only, at 1280 x 800.',
    ),
    Collection(
        'lct',
        'LCT',
        'Linear Context Transform Block',
        'D. Ruan, J. Wen, N. Zheng and M. Zheng, AAAI 2020',
        'The protocol is 4 GPUs x 1 image, learning rate 0.005, 12 epochs (`4xb1-1x`), '
        'on MMDetection 1.x. Complexity in the paper is that of blocks in every '
        'residual block (c2-c5), pooling counted; its numbers fit a 1024 x 1024 input.',
    ),
    Collection(
        'sac',
        'SAC',
        'Spatially-Aware Context Neural Networks',
        'D. Ruan, Y. Shi, J. Wen, N. Zheng and M. Zheng, IEEE TIP 30, 2021',
        'The protocol is 4 GPUs x 2 images, learning rate 0.01, 12 epochs (`4xb2-1x`), '
        'on MMDetection 1.x. Complexity in the paper is that of all parameters, at '
        '1344 x 800.',
    ),
    Collection(
        'imagenet',
        'ImageNet',
        'Classification on ImageNet',
        'Tables of the PRM, LCT and SAC papers',
        'The protocol is 256 images a step for 100 epochs, learning rate 0.1, divided '
        'by ten after 30, 60 and 90: on 8 GPUs in PRM (`8xb32-100e`) and on 4 in LCT '
        '(`4xb64-100e`; ResNet-101 has 55 images a GPU) and in SAC, which adds five '
        'epochs of warm-up (`4xb64-100e-warmup`). PRM, LCT, SE, GE, SGE, CBAM and, in '
        "PRM's tables, GC stand in every residual block before the addition (c2-c5), "
        'SK in place of its 3x3 convolution. SAC stands behind the norm of the 3x3 '
        "(before its ReLU, where a detector's stands after it; the paper does not say "
        'which), so a detector takes such a backbone through `Plugged` with the same '
        '`at`: see README, "Pre-training on ImageNet". In sac-X, SAC stands '
        'in the last block of c2, c3 and c4, GC and DA behind that block, BAM between '
        'the stages; in sac-IX, GC and SAC stand in '
        'every block of one stage. Complexity is that of all layers, at 224 x 224.',
        data='ImageNet-1k',
        start='Each block in ResNet-50, and none:',
        starts=(
            'resnet50_8xb32*',
            'resnet50-prm-c2-c5_8xb32*',
            'resnet50-lct-c2-c5_8xb32*',
            'resnet50-sac-c2-c4_*',
        ),
        others='## The blocks in other networks\n\nIn no table of the papers:',
    ),
)


def index_files(configs):
    """What the index files of a folder of configs have to hold.

    Args:
        configs (str): The folder ``configs``.

    Returns:
        dict: Paths below ``configs`` to texts.
    """
    files = [f'configs/{c.folder}/metafile.yml' for c in COLLECTIONS]
    texts = {'model-index.yml': _yaml({'Import': files})}
    for collection in COLLECTIONS:
        folder = collection.folder
        names = sorted(p.name for p in (Path(configs) / folder).glob('*.py'))
        texts[f'{folder}/metafile.yml'] = _metafile(collection, names)
        texts[f'{folder}/README.md'] = _readme(collection, names)
    return texts


def _metafile(collection, names):
    folder = collection.folder
    head = {
        'Name': collection.name,
        'Metadata': {
            'Training Data': collection.data,
            'Training Techniques': ['SGD with Momentum', 'Weight Decay'],
        },
        'Paper': {'Title': f'{collection.title} ({collection.venue})'},
        'README': f'configs/{folder}/README.md',
    }
    models = []
    for name in names:
        config = f'{folder}/{name}'
        models.append(
            {
                'Name': Path(name).stem,
                'In Collection': collection.name,
                'Config': f'configs/{config}',
            }
        )
        results = _results(config, collection.data)
        if results:
            models[-1]['Results'] = results
    comment = '# Results are those that the papers print; there are no weights.\n'
    return comment + _yaml({'Collections': [head], 'Models': models})


def _results(config, data):
    cells = {}
    for table in TABLES:
        for row in table.rows:
            if row.config == config:
                # What several tables print is the same, to more digits or fewer.
                cells = {**row.cells, **cells}
    results = []
    for task, labels in _TASKS.items():
        metrics = {label: cells[c] for c, label in labels.items() if c in cells}
        if metrics:
            results.append({'Task': task, 'Dataset': data, 'Metrics': metrics})
    return results


def _readme(collection, names):
    rows = {Path(row.config).name for table in TABLES for row in table.rows}
    start = [n for n in names if any(fnmatch(n, p) for p in collection.starts)]
    others = [n for n in names if n not in rows and n not in start]
    parts = [
        f'<!-- {_WRITTEN} -->\n# {collection.title}',
        f'{collection.venue}.',
        f'## Where to start today\n\n{collection.start}',
        _list(start),
        f'## Tables\n\n{collection.about} The numbers are those that are printed '
        'there: parameters in millions, FLOPs in giga multiply-adds, `fps` in images '
        'a second. None has been measured again here. `python tools/paper_tables.py` '
        'sets what you measured beside them.',
    ]
    for table in TABLES:
        if table.folder == collection.folder:
            text = report(table, style='markdown')
            for row in table.rows:
                stem = Path(row.config).stem
                text = text.replace(f'| {stem} |', f'| [{stem}]({stem}.py) |')
            parts.append(text.rstrip('\n'))
    if others:
        parts += [collection.others, _list(others)]
    return '\n\n'.join(_wrap(part) for part in parts) + '\n'


def _list(names):
    return '\n'.join(f'- [{Path(n).stem}]({n})' for n in names)


def _wrap(part):
    """Lines of running text no longer than 100; lists and tables as they are."""
    lines = []
    for line in part.split('\n'):
        table = line.startswith(('|', '- ', '#', '<', '**', '\\'))
        lines += [line] if table or not line else textwrap.wrap(line, 100)
    return '\n'.join(lines)


def _yaml(content):
    return f'# {_WRITTEN}\n' + yaml.safe_dump(content, sort_keys=False, width=100)
