"""Gather-Excite without parameters, which the PRM paper's Table 1 compares with.

Source: J. Hu, L. Shen, S. Albanie, G. Sun and A. Vedaldi, "Gather-Excite: Exploiting
Feature Context in Convolutional Neural Networks", NeurIPS 2018. Of the paper's
variants, this is GE-theta-minus with global extent: no parameters, and a mean over all
positions. Only this variant fits Table 1, where GE adds no parameters, and adds the
FLOPs of one pooling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...registry import MODELS
from ..checks import check_input, check_positive_int


@MODELS.register_module()
class GE(nn.Module):
    """Multiply each channel by the sigmoid of the channel's mean over positions.

    Args:
        in_channels (int): Channels C of the input.

    Parameters: none.

    Shape: (B, C, H, W) to (B, C, H, W), H and W at least 1.

    Raises:
        ValueError: An argument or the input does not fit; the message says which.
    """

    _abbr_ = 'ge'

    def __init__(self, in_channels: int):
        super().__init__()
        check_positive_int('GE', in_channels=in_channels)
        self.in_channels = in_channels

    def forward(self, x: Tensor) -> Tensor:
        check_input('GE', x, self.in_channels)
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """The gate of each channel, between 0 and 1, of shape (B, C, 1, 1)."""
        return torch.sigmoid(x.mean((2, 3), keepdim=True))

    def extra_repr(self) -> str:
        return f'{self.in_channels}'
