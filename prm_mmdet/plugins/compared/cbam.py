"""Convolutional Block Attention Module, which the papers' tables compare with.

Source: S. Woo, J. Park, J.-Y. Lee and I. S. Kweon, "CBAM: Convolutional Block
Attention Module", ECCV 2018, Eqs. 1-3. The shared layers have biases, as the
parameter counts of the PRM and SAC papers' tables show.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...registry import MODELS
from ..checks import check_groups, check_input


@MODELS.register_module()
class CBAM(nn.Module):
    """Multiply each channel by a gate that depends on the channel's mean and maximum.
    Then multiply each position by a gate that depends on its mean and maximum over the
    channels. Both gates are between 0 and 1.

    Args:
        in_channels (int): Channels C of the input.
        reduction (int): r. The hidden layer has C / r channels. Must divide
            ``in_channels``. Default: 16.

    Parameters: ``squeeze`` and ``excite``, 1x1 convolutions shared by mean and maximum,
    and ``spatial``, a 7x7 convolution without bias. Together, they have
    2C^2 / r + C / r + C + 98 numbers.

    Shape: (B, C, H, W) to (B, C, H, W), H and W at least 1.

    Raises:
        ValueError: An argument or the input does not fit; the message says which.
    """

    _abbr_ = 'cbam'

    def __init__(self, in_channels: int, reduction: int = 16):
        super().__init__()
        check_groups('CBAM', in_channels, reduction, name='reduction')
        self.in_channels = in_channels
        self.squeeze = nn.Conv2d(in_channels, in_channels // reduction, 1)
        self.excite = nn.Conv2d(in_channels // reduction, in_channels, 1)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_input('CBAM', x, self.in_channels)
        x = x * self.channel_gate(x).to(x.dtype)
        return x * self.position_gate(x).to(x.dtype)

    def channel_gate(self, x: Tensor) -> Tensor:
        """The gate of each channel (Eq. 2), (B, C, 1, 1)."""
        pooled = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
        scores = [self.excite(torch.relu(self.squeeze(p))) for p in pooled]
        return torch.sigmoid(scores[0] + scores[1])

    def position_gate(self, x: Tensor) -> Tensor:
        """The gate of each position (Eq. 3), (B, 1, H, W). ``x`` is the input after its
        multiplication by the channel gate."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return torch.sigmoid(self.spatial(pooled))
