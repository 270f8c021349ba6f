"""Spatial Group-wise Enhance, which the PRM paper's Table 1 compares with.

Source: X. Li, X. Hu and J. Yang, "Spatial Group-wise Enhance: Improving Semantic
Feature Learning in Convolutional Networks", arXiv:1905.09646, 2019. PRM took its groups
and its normalisation from SGE. This block has the equations, the 64 groups and the
initial values of the authors' code. Only the standard deviation differs. For N
positions, it divides by N here, as in PRM. In the authors' code, it divides by N - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import ops
from ...registry import MODELS
from ..checks import check_groups, check_input


@MODELS.register_module()
class SGE(nn.Module):
    """Multiply each position by a gate between 0 and 1, for each group of channels.

    The gate depends on the dot product of the group's channels at the position with the
    means of these channels. The dot products are first normalised over positions.

    This is PRM without the similarity to the query point.

    Args:
        in_channels (int): Channels C of the input.
        groups (int): g; must divide ``in_channels``. Default: 64.

    Parameters: ``weight`` and ``bias``, (g,) each. A fresh block multiplies its input
    by sigmoid(1) = 0.73.

    Shape: (B, C, H, W) to (B, C, H, W), H and W at least 1.

    Raises:
        ValueError: An argument or the input does not fit; the message says which.
    """

    _abbr_ = 'sge'
    alpha: Tensor
    beta: Tensor

    def __init__(self, in_channels: int, groups: int = 64):
        super().__init__()
        check_groups('SGE', in_channels, groups)
        self.in_channels = in_channels
        self.weight = nn.Parameter(torch.zeros(groups))
        self.bias = nn.Parameter(torch.ones(groups))
        # SGE is PRM with fixed weights: 0 for the similarity to the query point, and 1
        # for the similarity to the mean. Checkpoints do not contain these weights.
        self.register_buffer('alpha', torch.zeros(groups), persistent=False)
        self.register_buffer('beta', torch.ones(groups), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        check_input('SGE', x, self.in_channels)
        return ops.prm(x, self.alpha, self.beta, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f'{self.in_channels}, groups={self.weight.numel()}'
