"""Parameters and multiply-adds of the tables' rows, counted again.

All three papers count the multiply-adds of convolutions and linear layers, and one
operation for each input element of a pooling layer; none counts products of attention
maps. Models are built on torch's meta device, so nothing is computed.
"""

import functools
from dataclasses import dataclass

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..config import config_path
from ..plugins import BAM, CBAM, LCT, SAC, SE
from .tables import Row, Table

COLUMNS = ('params', 'flops', 'd_params', 'd_flops')
# How often a block pools over all of its input, in the form that its paper draws. PRM's
# means are missing in its paper's count, whose FLOPs are those of the baseline.
_POOLED = {SE: 1, LCT: 1, BAM: 1, CBAM: 4}


@dataclass(frozen=True)
class Complexity:
    """Numbers of one model: ``params`` of all of it, ``trainable`` those not frozen,
    ``flops`` the multiply-adds of its backbone by the papers' count, and ``flops_here``
    those that this package takes: every convolution, linear layer and matrix product.
    """

    params: int
    trainable: int
    flops: int
    flops_here: int


@dataclass(frozen=True)
class Checked:
    """A cell beside its count. ``off`` is the difference in units of the last digit
    that the paper prints, and ``remark`` the table's on the cell, or None."""

    table: Table
    row: Row
    column: str
    counted: float
    off: int
    remark: str

    @property
    def passed(self):
        return self.off <= 1 or self.remark is not None


def check(table):
    """Count every complexity cell of a table; yields :class:`Checked`."""
    for row in table.rows:
        for column in COLUMNS:
            value = counted(table, row, column)
            if value is not None:
                places = digits(table, column)
                off = round(abs(round(value, places) - row.cells[column]) * 10**places)
                remark = table.remarks.get((row.config, column))
                yield Checked(table, row, column, value, off, remark)


def digits(table, column):
    """Decimal places that a paper prints in a column."""
    cells = (row.cells[column] for row in table.rows if column in row.cells)
    return max(len(f'{cell}'.partition('.')[2]) for cell in cells)


def counted(table, row, column):
    """What a complexity cell should say, by the paper's way of counting.

    Returns:
        float | None: In the column's unit; None where the row has no such cell, and
        for the FLOPs of a baseline: papers differ in how they count the heads, so that
        only differences to it compare.
    """
    way = table.counting
    config = row.config
    if way.every_block:
        config = config.replace('-c3-c5', '-c2-c5')
    kind = 'trainable' if way.trainable else 'params'
    return _value(table, row, column, config, kind, 'flops')


def here(table, row, column):
    """The same for the row's own config and the arithmetic that this package does:
    all parameters, and FLOPs over those of the baseline's cell."""
    return _value(table, row, column, row.config, 'params', 'flops_here')


def _value(table, row, column, config, params, flops):
    if column not in row.cells or (column == 'flops' and row.config == row.baseline):
        return None
    kind, unit = (params, 1e6) if 'params' in column else (flops, 1e9)
    value = getattr(complexity(config, table.counting.size), kind) / unit
    if column == 'params':
        return value
    value -= getattr(complexity(row.baseline, table.counting.size), kind) / unit
    if column == 'flops':
        value += table.baseline(row).cells['flops']
    return value


@functools.cache
def complexity(config, size):
    """Count one config.

    Args:
        config (str): Path below ``configs/``, of a detector with a backbone.
        size (tuple): Height and width of the input, in pixels.

    Returns:
        Complexity: The numbers.
    """
    register_all_modules()
    cfg = Config.fromfile(config_path(config))
    with torch.device('meta'), torch.no_grad():
        model = MODELS.build(cfg.model)
        model.backbone.eval()
        flops = _paper_flops(model.backbone, size)
        with FlopCounterMode(display=False) as counter:
            model.backbone(torch.empty(1, 3, *size))
    parameters = list(model.parameters())
    return Complexity(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        flops,
        counter.get_total_flops() // 2,  # it counts a multiply-add as two
    )


def _paper_flops(backbone, size):
    total = 0

    def count_layer(layer, inputs, output):
        nonlocal total
        total += layer.weight.numel() * output[0, 0].numel()

    def count_sac(block, inputs, output):
        # From its weights: this package's own arithmetic takes another order.
        nonlocal total
        layers = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        total += sum(m.weight.numel() for m in layers) * output[0, 0].numel()

    def count_pooling(block, inputs, output):
        nonlocal total
        total += _POOLED[type(block)] * output.numel()

    in_sac = {
        layer
        for block in backbone.modules()
        if isinstance(block, SAC)
        for layer in block.modules()
    }
    handles = []
    for module in backbone.modules():
        if isinstance(module, SAC):
            handles.append(module.register_forward_hook(count_sac))
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and module not in in_sac:
            handles.append(module.register_forward_hook(count_layer))
        elif type(module) in _POOLED:
            handles.append(module.register_forward_hook(count_pooling))
    backbone(torch.empty(1, 3, *size))
    for handle in handles:
        handle.remove()
    return total
