"""Bottleneck Attention Module, which the SAC paper's tables compare with.

Source: J. Park, S. Woo, J.-Y. Lee and I. S. Kweon, "BAM: Bottleneck Attention Module",
BMVC 2018.

Choices where the paper and the published code differ: The two branches are added, as in
the paper. The code multiplies them. Batch normalisation follows each hidden layer, as
in the code. In the paper's equations, batch normalisation follows the last layer. The
parameter count in the SAC paper's Table X fits either place of batch normalisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...registry import MODELS
from ..checks import check_groups, check_input, check_positive_int


@MODELS.register_module()
class BAM(nn.Module):
    """Multiply each value by 1 + gate. The gate, between 0 and 1, depends on the
    channel's mean and on the position's surroundings.

    The paper places a BAM at the end of each stage but the last, outside the residual
    blocks. In a ResNet, use ``prm_mmdet.Plugged`` with ``at=r'layer[1-3]'``.

    Args:
        in_channels (int): Channels C of the input.
        reduction (int): r. Both branches have C / r hidden channels. Must divide
            ``in_channels``. Default: 16.
        dilation (int): Dilation of the two 3x3 convolutions. Default: 4.

    Parameters: ``channel`` has 1x1 convolutions to C / r and back. ``spatial`` has a
    1x1 convolution to C / r, two 3x3 convolutions, and a 1x1 convolution to one map.
    All convolutions have biases. In each branch, batch normalisation follows all
    convolutions except the last.

    Shape: (B, C, H, W) to (B, C, H, W), H and W at least 1. While its batch
    normalisation trains, B must be at least 2.

    Raises:
        ValueError: An argument or the input does not fit; the message says which.
    """

    _abbr_ = 'bam'

    def __init__(self, in_channels: int, reduction: int = 16, dilation: int = 4):
        super().__init__()
        check_groups('BAM', in_channels, reduction, name='reduction')
        check_positive_int('BAM', dilation=dilation)
        self.in_channels = in_channels
        hidden = in_channels // reduction
        self.channel = nn.Sequential(
            *_layer(in_channels, hidden, 1), nn.Conv2d(hidden, in_channels, 1)
        )
        self.spatial = nn.Sequential(
            *_layer(in_channels, hidden, 1),
            *_layer(hidden, hidden, 3, dilation),
            *_layer(hidden, hidden, 3, dilation),
            nn.Conv2d(hidden, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_input('BAM', x, self.in_channels)
        return x + x * self.gate(x).to(x.dtype)

    def gate(self, x: Tensor) -> Tensor:
        """The gate of each value, between 0 and 1, of shape (B, C, H, W)."""
        # The channel branch has shape (B, C, 1, 1), and the spatial one (B, 1, H, W).
        channel = self.channel(x.mean((2, 3), keepdim=True))
        return torch.sigmoid(channel + self.spatial(x))


def _layer(in_channels, out_channels, size, dilation=1):
    padding = dilation * (size // 2)
    yield nn.Conv2d(in_channels, out_channels, size, 1, padding, dilation)
    yield nn.BatchNorm2d(out_channels)
    yield nn.ReLU(inplace=True)
