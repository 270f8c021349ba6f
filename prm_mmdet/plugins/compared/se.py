"""Squeeze-and-Excitation, which the papers' tables compare with.

Source: J. Hu, L. Shen and G. Sun, "Squeeze-and-Excitation Networks", CVPR 2018,
Eqs. 2-4. The two layers have biases, as the parameter counts of the PRM and LCT
papers' tables show. If ``groups`` is set, the block is SE+ of the LCT paper's Table 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...registry import MODELS
from ..checks import check_groups, check_input


@MODELS.register_module()
class SE(nn.Module):
    """Multiply each channel by a gate between 0 and 1. A two-layer network computes the
    gates from the means of all channels.

    Args:
        in_channels (int): Channels C of the input.
        reduction (int): r. The hidden layer has C / r channels. Must divide
            ``in_channels``. Default: 16.
        groups (int, optional): Number of groups of channels. If it is set, the block is
            SE+, which first normalises the means within each group, as LCT does. Must
            divide ``in_channels`` into groups of at least two channels. The LCT paper
            uses 64 groups. Default: None, the block is SE.

    Parameters: ``squeeze`` and ``excite``, 1x1 convolutions. Together, they have
    2C^2 / r + C / r + C numbers.

    Shape: (B, C, H, W) to (B, C, H, W), H and W at least 1.

    Raises:
        ValueError: An argument or the input does not fit; the message says which.
    """

    _abbr_ = 'se'

    def __init__(
        self, in_channels: int, reduction: int = 16, groups: int | None = None
    ):
        super().__init__()
        check_groups('SE', in_channels, reduction, name='reduction')
        if groups is not None:
            check_groups('SE', in_channels, groups, min_channels=2)
        self.in_channels = in_channels
        self.groups = groups
        self.squeeze = nn.Conv2d(in_channels, in_channels // reduction, 1)
        self.excite = nn.Conv2d(in_channels // reduction, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_input('SE', x, self.in_channels)
        return x * self.gate(x).to(x.dtype)

    def gate(self, x: Tensor) -> Tensor:
        """The gate of each channel, between 0 and 1, of shape (B, C, 1, 1)."""
        context = x.mean((2, 3), keepdim=True)
        if self.groups is not None:
            context = F.group_norm(context, self.groups)
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(context))))

    def extra_repr(self) -> str:
        return f'{self.in_channels}, groups={self.groups}'
