"""Double Attention, which the SAC paper's tables compare with.

Source: Y. Chen, Y. Kalantidis, J. Li, S. Yan and J. Feng, "A^2-Nets: Double Attention
Networks", NeurIPS 2018, Eqs. 3-5. For C input channels, the inner layers have C / 4
channels, as the parameter count of the SAC paper's Table VII shows. The weights of the
last convolution start at zero, as in SAC.
"""

from __future__ import annotations

from mmengine.model import BaseModule, constant_init
from torch import Tensor, nn

from ... import ops
from ...registry import MODELS
from ..checks import check_groups, check_input


@MODELS.register_module()
class DoubleAttention(BaseModule):
    """Gather a set of features from all positions, and distribute it to each position.

    Args:
        in_channels (int): Channels C of the input.
        reduction (int): C / reduction features are gathered, each with C / reduction
            channels. Must divide ``in_channels``. Default: 4.

    Parameters: ``feature``, ``gather``, ``distribute`` and ``expand``, 1x1 convolutions
    between C and C / reduction channels, with bias.

    Shape: (B, C, H, W) to (B, C, H, W), H and W at least 1.

    Raises:
        ValueError: An argument or the input does not fit; the message says which.
    """

    _abbr_ = 'double_attention'

    def __init__(self, in_channels: int, reduction: int = 4):
        super().__init__()
        check_groups('DoubleAttention', in_channels, reduction, name='reduction')
        self.in_channels = in_channels
        width = in_channels // reduction
        self.feature = nn.Conv2d(in_channels, width, 1)
        self.gather = nn.Conv2d(in_channels, width, 1)
        self.distribute = nn.Conv2d(in_channels, width, 1)
        self.expand = nn.Conv2d(width, in_channels, 1)
        constant_init(self.expand, 0)

    def init_weights(self) -> None:
        """Set the last convolution to zero, so that the block starts as the identity.
        The backbone's ``init_cfg`` may have given the convolution other values."""
        super().init_weights()
        constant_init(self.expand, 0)

    def forward(self, x: Tensor) -> Tensor:
        check_input('DoubleAttention', x, self.in_channels)
        # A softmax over positions gathers the features, and a softmax over the set of
        # features distributes them. ``sac_context``, SAC's operator, applies both.
        maps = self.gather(x), self.distribute(x)
        mixed = ops.sac_context(self.feature(x), *maps, softmax=True)
        return x + self.expand(mixed).to(x.dtype)
