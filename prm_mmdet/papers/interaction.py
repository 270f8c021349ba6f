"""SAC's Table XI, human-object interactions on HICO-DET, as data. This package cannot
reproduce the table, because MMDetection does not have the table's model, VSGNet.

Columns are mean average precision in percent: ``full`` over all 600 interactions,
``rare`` over 138 with fewer than 10 training examples, ``non_rare`` over the rest. Each
row names the config that pre-trains its backbone.

Source: D. Ruan et al., IEEE TIP 30, 2021, Table XI and Section IV-C.
"""

from .table import read_table

_SLIP = "the paper's slip: (138 rare + 462 non-rare) / 600 gives {mean}"

HICO_DET = read_table(
    'sac-XI',
    'Human-object interactions on HICO-DET with VSGNet, by backbone',
    'full rare non_rare',
    ('imagenet/{name}_{recipe}_imagenet.py', '4xb64-100e-warmup'),
    """
resnet50           | 18.34 12.84 19.97
resnet50-gc-c2-c4  | 18.68 13.34 20.27
resnet50-sac-c2-c4 | 19.44 15.17 20.72

resnet101           | 19.75 16.02 20.87
resnet101-gc-c2-c4  | 20.07 15.82 21.32
resnet101-sac-c2-c4 | 20.56 18.01 21.34
""",
    remarks={
        ('resnet101-gc-c2-c4', 'full'): _SLIP.format(mean=20.06),
        ('resnet101-sac-c2-c4', 'full'): _SLIP.format(mean=20.57),
    },
)
