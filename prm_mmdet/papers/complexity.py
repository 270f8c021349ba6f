"""Count the parameters and multiply-adds of the networks in the papers' tables.

All three papers count the multiply-adds of convolutions and linear layers, and one
operation for each input element of a pooling layer. No paper counts products with
attention maps. Classification tables also count all other kinds of layer, and biases.
Models are built on torch's meta device, so no arithmetic is done.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..config import config_path
from ..plugins import BAM, CBAM, GE, LCT, PRM, SAC, SE, SGE, SK
from .table import Counting, Row, Table

COLUMNS = ('params', 'flops', 'd_params', 'd_flops')
# For tables of detectors: number of global poolings that are counted in a block. The
# figure in the block's paper shows as many. PRM is left out, because its paper prints
# the same FLOPs with PRM as for the baseline.
_POOLED = {SE: 1, LCT: 1, BAM: 1, CBAM: 4}
# For tables of classifiers: number of global poolings that are counted in a block. The
# counting tool ptflops counts a pooling if it is a layer (nn.Module) in the block's
# published code, but not a function such as BAM's mean. SK's published code has two
# pooling layers, but one ReLU less than this package. A ReLU counts as much as a
# pooling, so SK has 1 here.
_POOLED_IN_LAYERS = {SE: 1, LCT: 1, GE: 1, SGE: 1, SK: 1, CBAM: 2, PRM: 1}
# For each kind of layer: a function of the layer's input x and output y. It returns the
# number of operations that the counting tool ptflops counts for the layer.
_ELEMENTWISE: dict[type[nn.Module], Callable] = {
    nn.BatchNorm2d: lambda x, y: 2 * x.numel(),
    nn.ReLU: lambda x, y: y.numel(),
    nn.ReLU6: lambda x, y: y.numel(),
    nn.MaxPool2d: lambda x, y: x.numel(),
    nn.AdaptiveAvgPool2d: lambda x, y: x.numel(),
}


@dataclass(frozen=True)
class Complexity:
    """Parameters and multiply-adds of a model.

    Multiply-adds are those of the whole network if ``Counting.every_layer`` is set,
    else those of the backbone.
    """

    params: int  # parameters of the whole model
    trainable: int  # parameters of the model that are not frozen
    flops: int  # multiply-adds as the papers count them
    flops_here: int  # multiply-adds of convolutions and matrix products in this package


@dataclass(frozen=True)
class Checked:
    """A number in a paper's table, beside the number counted here."""

    row: Row
    column: str
    counted: float
    off: int  # difference in units of the last digit that the paper prints
    remark: str | None  # reason why the printed number cannot be compared

    @property
    def passed(self) -> bool:
        """Whether the numbers agree (``off`` is at most 1), or a remark says why they
        cannot be compared."""
        return self.off <= 1 or self.remark is not None


def check(table: Table) -> Iterator[Checked]:
    """Compare all parameters and FLOPs that a table prints with those counted here."""
    for row in table.rows:
        for column in COLUMNS:
            value = counted(table, row, column)
            if value is not None:
                places = table.digits(column)
                off = round(abs(round(value, places) - row.cells[column]) * 10**places)
                remark = table.remarks.get((row.config, column))
                yield Checked(row, column, value, off, remark)


def counted(table: Table, row: Row, column: str) -> float | None:
    """Count the parameters or FLOPs of a row's network by the rules of the row's paper.

    Returns:
        The number in the column's unit, or None if the paper prints no number. For the
        FLOPs of a detector's baseline, it is None, too: the papers count heads in
        different ways, so only differences to the baseline can be compared.
    """
    assert table.counting is not None
    kind = 'trainable' if table.counting.trainable else 'params'
    return _value(table, row, column, kind, 'flops')


def here(table: Table, row: Row, column: str) -> float | None:
    """Count the parameters or FLOPs of a row's network as it runs in this package.

    Frozen parameters are counted, too. The FLOPs of a detector are the baseline's FLOPs
    as the paper prints them, plus the difference that this function counts.

    Returns:
        The number in the column's unit, or None, as for :func:`counted`.
    """
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
def complexity(config: str, way: Counting) -> Complexity:
    """Count the parameters and multiply-adds of a config's model.

    Args:
        config: Path below ``configs/``, of a detector or a classifier.
        way: How the paper counts multiply-adds.
    """
    register_all_modules()
    cfg = Config.fromfile(config_path(config))
    with torch.device('meta'), torch.no_grad():
        model = MODELS.build(cfg.model)
        counted = model if way.every_layer else model.backbone
        counted.eval()
        with FlopCounterMode(display=False) as counter:
            flops = _paper_flops(counted, way)
    parameters = list(model.parameters())
    return Complexity(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        flops,
        # PyTorch's counter counts a multiply-add as two operations.
        counter.get_total_flops() // 2,
    )


def _paper_flops(network, way):
    """Run a network on torch's meta device (without arithmetic), and count its
    multiply-adds as the papers do."""
    total = 0
    pooled = _POOLED_IN_LAYERS if way.every_layer else _POOLED

    def count_layer(layer, inputs, output):
        nonlocal total
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            total += _layer_flops(layer, output, way.every_layer)
        elif way.every_layer and type(layer) in _ELEMENTWISE:
            total += _ELEMENTWISE[type(layer)](inputs[0], output)
        if type(layer) in pooled:
            total += pooled[type(layer)] * output.numel()
        if way.every_layer and isinstance(layer, PRM):
            # PRM's published code pools one map for each group to find the query. Each
            # element of these maps counts as one operation.
            total += layer.groups * math.prod(output.shape[2:])

    def count_sac(block, inputs, output):
        # The paper's count is computed from the weights of SAC's layers. Calls of the
        # layers cannot be counted: this package uses their weights without calling
        # them.
        nonlocal total
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                total += _layer_flops(layer, output, way.every_layer)

    blocks = [m for m in network.modules() if isinstance(m, SAC)]
    in_sac = {layer for block in blocks for layer in block.modules()}
    for block in blocks:
        block.register_forward_hook(count_sac)
    for module in network.modules():
        if module not in in_sac:
            module.register_forward_hook(count_layer)
    network(torch.empty(1, 3, *way.size))
    return total


def _layer_flops(layer, output, with_bias):
    """Multiply-adds of a convolution or linear layer, as ptflops counts them.

    ptflops counts biases of convolutions, but not of linear layers.
    """
    flops = layer.weight.numel()
    if with_bias and isinstance(layer, nn.Conv2d) and layer.bias is not None:
        flops += layer.out_channels
    return flops * math.prod(output.shape[2:])
