"""The files in ``configs/`` that say what its configs are, made from the tables."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import yaml

from .report import report
from .tables import TABLES

_WRITTEN = 'Written by "python tools/paper_tables.py --write": change it there.'


@dataclass(frozen=True)
class Paper:
    """A paper and the folder of its configs."""

    folder: str
    name: str
    title: str
    venue: str
    about: str


PAPERS = (
    Paper(
        'prm',
        'PRM',
        'Position-Aware Recalibration Module: Learning From Feature Semantics and '
        'Feature Position',
        'X. Ma and S. Fu, IJCAI 2020',
        'The paper names 24 epochs and says no more of its protocol; that of '
        "MMDetection 1.x's `2x` is assumed. Complexity in the paper is that of blocks "
        'in every residual block (c2-c5), trainable parameters only, at 1280 x 800.',
    ),
    Paper(
        'lct',
        'LCT',
        'Linear Context Transform Block',
        'D. Ruan, J. Wen, N. Zheng and M. Zheng, AAAI 2020',
        'The protocol is 4 GPUs x 1 image, learning rate 0.005, 12 epochs (`4xb1-1x`), '
        'on MMDetection 1.x. Complexity in the paper is that of blocks in every '
        'residual block (c2-c5), pooling counted; its numbers fit a 1024 x 1024 input.',
    ),
    Paper(
        'sac',
        'SAC',
        'Spatially-Aware Context Neural Networks',
        'D. Ruan, Y. Shi, J. Wen, N. Zheng and M. Zheng, IEEE TIP 30, 2021',
        'The protocol is 4 GPUs x 2 images, learning rate 0.01, 12 epochs (`4xb2-1x`), '
        'on MMDetection 1.x. Complexity in the paper is that of all parameters, at '
        '1344 x 800.',
    ),
)


def index_files(configs):
    """What the index files of a folder of configs have to hold.

    Args:
        configs (str): The folder ``configs``.

    Returns:
        dict: Paths below ``configs`` to texts.
    """
    texts = {
        'model-index.yml': _yaml(
            {'Import': [f'configs/{p.folder}/metafile.yml' for p in PAPERS]}
        )
    }
    for paper in PAPERS:
        names = sorted(p.name for p in (Path(configs) / paper.folder).glob('*.py'))
        texts[f'{paper.folder}/metafile.yml'] = _metafile(paper, names)
        texts[f'{paper.folder}/README.md'] = _readme(paper, names)
    return texts


def _metafile(paper, names):
    collection = {
        'Name': paper.name,
        'Metadata': {
            'Training Data': 'COCO',
            'Training Techniques': ['SGD with Momentum', 'Weight Decay'],
        },
        'Paper': {'Title': f'{paper.title} ({paper.venue})'},
        'README': f'configs/{paper.folder}/README.md',
    }
    models = []
    for name in names:
        config = f'{paper.folder}/{name}'
        models.append(
            {
                'Name': Path(name).stem,
                'In Collection': paper.name,
                'Config': f'configs/{config}',
            }
        )
        results = _results(config)
        if results:
            models[-1]['Results'] = results
    comment = '# Results are those that the paper prints; there are no weights.\n'
    return comment + _yaml({'Collections': [collection], 'Models': models})


def _results(config):
    kinds = (
        ('bbox_mAP', 'Object Detection', 'box AP'),
        ('segm_mAP', 'Instance Segmentation', 'mask AP'),
    )
    cells = {}
    for table in TABLES:
        for row in table.rows:
            if row.config == config:
                cells.update(row.cells)
    return [
        {'Task': task, 'Dataset': 'COCO', 'Metrics': {label: cells[column]}}
        for column, task, label in kinds
        if column in cells
    ]


def _readme(paper, names):
    rows = {Path(row.config).name for table in TABLES for row in table.rows}
    today = [n for n in names if n.endswith('_fpn_1x_coco.py')]
    every = [n for n in names if n not in rows and n not in today]
    parts = [
        f'<!-- {_WRITTEN} -->\n# {paper.title}',
        f'{paper.venue}.',
        "## Where to start today\n\nThe block in c3-c5 on MMDetection 3's defaults:",
        _list(today),
        "## The paper's tables\n\n" + paper.about + ' AP, parameters (millions), FLOPs '
        '(giga multiply-adds) and images a second (`fps`) are those that the paper '
        'prints; none has been measured again here. `python tools/paper_tables.py` '
        'sets what you measured beside them.',
    ]
    for table in TABLES:
        if table.key.startswith(paper.folder):
            text = report(table, style='markdown')
            for row in table.rows:
                stem = Path(row.config).stem
                text = text.replace(f'| {stem} |', f'| [{stem}]({stem}.py) |')
            parts.append(text.rstrip('\n'))
    if every:
        parts += [
            '## Blocks in every residual block\n\nc2 is frozen, so these need a '
            'backbone that was pre-trained with the block, at the path that the config '
            'names:',
            _list(every),
        ]
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
