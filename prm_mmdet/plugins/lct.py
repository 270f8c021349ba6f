"""Linear Context Transform.

Source: D. Ruan, J. Wen, N. Zheng and M. Zheng, "Linear Context Transform Block",
AAAI 2020.

Choice where the paper contradicts itself: the block has 2C parameters (a gain and a
bias per channel), as in Eq. 4 and in the tables. The text counts C.
"""

from __future__ import annotations

import torch
from mmdet.registry import MODELS as MMDET_MODELS
from torch import Tensor, nn

from .. import ops
from ..registry import MODELS
from .checks import check_groups, check_input


@MMDET_MODELS.register_module()
@MODELS.register_module()
class LCT(nn.Module):
    """Multiply each channel by a gate between 0 and 1. The gate depends on the
    channel's mean, normalised within a group of channels.

    Args:
        in_channels (int): Channels C of the input.
        groups (int): Groups G; must divide ``in_channels`` into groups of at least two
            channels (one channel normalised by itself is always zero). Default: 64.
        eps (float): Added to the variance (Eq. 3). Default: 1e-5.
        normalization (bool): Whether to normalise within groups (Eqs. 2 and 3; the
            paper's Table 3). Default: True.
        transform (bool): Whether to apply gain and bias (Eq. 4; the paper's Table 3).
            Default: True.
        init_weight (float): Initial gain (the paper's Table 5). Default: 0.
        init_bias (float): Initial bias (the paper's Table 5). Default: 1.

    Parameters: ``weight`` and ``bias``, (C,) each: 2C numbers. A fresh block multiplies
    its input by sigmoid(1) = 0.73. The names of the parameters are keys of every saved
    checkpoint. If a name changes, older checkpoints do not load.

    Shape: (B, C, H, W) to (B, C, H, W), H and W at least 1.

    Raises:
        ValueError: An argument or the input does not fit; the message says which.
    """

    # The block's default name in a network, which is part of the keys in checkpoints.
    _abbr_ = 'lct'

    def __init__(
        self,
        in_channels: int,
        groups: int = 64,
        eps: float = 1e-5,
        normalization: bool = True,
        transform: bool = True,
        init_weight: float = 0.0,
        init_bias: float = 1.0,
    ):
        super().__init__()
        check_groups('LCT', in_channels, groups, min_channels=2 if normalization else 1)
        if not (isinstance(eps, (int, float)) and eps > 0):
            raise ValueError(f'LCT: eps must be a positive number, got {eps!r}')
        self.in_channels = in_channels
        self.groups = groups
        self.eps = eps
        self.normalization = normalization
        self.weight = self.bias = None
        if transform:
            self.weight = nn.Parameter(torch.full((in_channels,), float(init_weight)))
            self.bias = nn.Parameter(torch.full((in_channels,), float(init_bias)))

    def forward(self, x: Tensor) -> Tensor:
        check_input('LCT', x, self.in_channels)
        return ops.lct(
            x, self.weight, self.bias, self.groups, self.eps, self.normalization
        )

    def constant_gate(self) -> Tensor | None:
        """The gate of each channel, of shape (C,), while ``weight`` is zero everywhere.
        Otherwise, the gate depends on the input, and the result is None."""
        if self.weight is None or self.bias is None or self.weight.any():
            return None
        return self.bias.detach().sigmoid()

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, groups={self.groups}, eps={self.eps}, '
            f'normalization={self.normalization}, transform={self.weight is not None}'
        )
