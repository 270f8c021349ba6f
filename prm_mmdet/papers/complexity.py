"""Parameters and multiply-adds of the tables' rows, counted again.

All three papers count the multiply-adds of convolutions and linear layers, and one
operation for each input element of a pooling layer; none counts products of attention
maps. In their classification tables they count every kind of layer, biases included.
Models are built on torch's meta device, so nothing is computed.
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
from ..plugins import BAM, CBAM, GE, LCT, PRM, SAC, SE, SGE, SK
from .table import Row, Table

COLUMNS = ('params', 'flops', 'd_params', 'd_flops')
# How often a block pools over all of its input. In the detectors' tables, in the form
# that its paper draws; PRM's means are missing in its paper's count, whose FLOPs are
# those of the baseline.
_POOLED = {SE: 1, LCT: 1, BAM: 1, CBAM: 4}
# In the classifiers' tables, where the published form has a layer for it: CBAM's means
# and maxima over channels and BAM's mean are functions there. SK's is called for both
# branches, but that form has a ReLU less.
_POOLED_IN_LAYERS = {SE: 1, LCT: 1, GE: 1, SGE: 1, SK: 1, CBAM: 2, PRM: 1}
# What ptflops counts for the other kinds of layers, by their input or output.
_ELEMENTWISE = {
    nn.BatchNorm2d: lambda x, y: 2 * x.numel(),
    nn.ReLU: lambda x, y: y.numel(),
    nn.ReLU6: lambda x, y: y.numel(),
    nn.MaxPool2d: lambda x, y: x.numel(),
    nn.AdaptiveAvgPool2d: lambda x, y: x.numel(),
}


@dataclass(frozen=True)
class Complexity:
    """Numbers of one model: ``params`` of all of it, ``trainable`` those not frozen,
    ``flops`` the multiply-adds by the papers' count, and ``flops_here`` those that this
    package takes: every convolution, linear layer and matrix product. Both are of the
    whole network where every layer was counted, else of the backbone.
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
                places = table.digits(column)
                off = round(abs(round(value, places) - row.cells[column]) * 10**places)
                remark = table.remarks.get((row.config, column))
                yield Checked(table, row, column, value, off, remark)


def counted(table, row, column):
    """What a complexity cell should say, by the paper's way of counting.

    Returns:
        float | None: In the column's unit; None where the row has no such cell, and
        for the FLOPs of a detector's baseline: papers differ in how they count the
        heads, so that only differences to it compare.
    """
    kind = 'trainable' if table.counting.trainable else 'params'
    return _value(table, row, column, kind, 'flops')


def here(table, row, column):
    """The same for the row's own config and the arithmetic that this package does:
    all parameters, and FLOPs, of a detector over those of the baseline's cell."""
    return _value(table, row, column, 'params', 'flops_here')


def _value(table, row, column, params, flops):
    way = table.counting
    alone = column == 'params' or (column == 'flops' and way.every_layer)
    if column not in row.cells or (
        column == 'flops' and not alone and row.config == row.baseline
    ):
        return None
    kind, unit = (params, 1e6) if 'params' in column else (flops, 1e9)
    value = getattr(complexity(row.config, way), kind) / unit
    if alone:
        return value
    value -= getattr(complexity(row.baseline, way), kind) / unit
    if column == 'flops':
        value += table.baseline(row).cells['flops']
    return value


@functools.cache
def complexity(config, way):
    """Count one config.

    Args:
        config (str): Path below ``configs/``, of a detector or a classifier.
        way (Counting): How.

    Returns:
        Complexity: The numbers.
    """
    register_all_modules()
    cfg = Config.fromfile(config_path(config))
    with torch.device('meta'), torch.no_grad():
        model = MODELS.build(cfg.model)
        counted = model if way.every_layer else model.backbone
        counted.eval()
        images = torch.empty(1, 3, *way.size)
        flops = _paper_flops(counted, images, way.every_layer)
        with FlopCounterMode(display=False) as counter:
            counted(images)
    parameters = list(model.parameters())
    return Complexity(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        flops,
        counter.get_total_flops() // 2,  # it counts a multiply-add as two
    )


def _paper_flops(network, images, every_layer):
    total = 0
    pooled = _POOLED_IN_LAYERS if every_layer else _POOLED

    def count_layer(layer, inputs, output):
        nonlocal total
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            total += _layer_flops(layer, output[0, 0].numel(), every_layer)
        elif every_layer and type(layer) in _ELEMENTWISE:
            total += _ELEMENTWISE[type(layer)](inputs[0], output)
        if type(layer) in pooled:
            total += pooled[type(layer)] * output.numel()
        if every_layer and isinstance(layer, PRM):
            # The published form finds the query by pooling one map a group.
            total += layer.groups * output[0, 0].numel()

    def count_sac(block, inputs, output):
        # From its weights: this package's own arithmetic takes another order.
        nonlocal total
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                total += _layer_flops(layer, output[0, 0].numel(), every_layer)

    blocks = [m for m in network.modules() if isinstance(m, SAC)]
    in_sac = {layer for block in blocks for layer in block.modules()}
    handles = [block.register_forward_hook(count_sac) for block in blocks]
    for module in network.modules():
        if module not in in_sac:
            handles.append(module.register_forward_hook(count_layer))
    network(images)
    for handle in handles:
        handle.remove()
    return total


def _layer_flops(layer, positions, with_bias):
    """Multiply-adds of a convolution or linear layer. ptflops counts no bias of the
    latter."""
    flops = layer.weight.numel()
    if with_bias and isinstance(layer, nn.Conv2d) and layer.bias is not None:
        flops += layer.out_channels
    return flops * positions
