"""Selective Kernel unit, which the PRM paper's Table 1 compares with.

Source: X. Li, W. Wang, X. Hu and J. Yang, "Selective Kernel Networks", CVPR 2019. The
paper's SKNet-50 has wider layers than this unit. The unit has the form that the paper's
authors published for ResNet, which fits the parameters and FLOPs of Table 1. The
branches are a 3x3 convolution, and a 3x3 convolution of 32 groups with the same
dilation. For C channels, the layer that weighs the branches has C / 16 hidden channels,
without the paper's minimum.
"""

from __future__ import annotations

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from ...registry import MODELS
from ..checks import check_groups, check_input, check_positive_int


@MODELS.register_module()
class SK(nn.Module):
    """Mix two 3x3 convolutions, with weights for each channel that depend on the image.

    ``prm_mmdet.SKResNet`` replaces the 3x3 convolutions of residual blocks with SK.

    Args:
        in_channels (int): Channels C of input and output.
        groups (int): Groups of the second convolution. Must divide ``in_channels``.
            Default: 32.
        reduction (int): r. The layer that weighs the branches has C / r hidden
            channels. Must divide ``in_channels``. Default: 16.
        stride (int): Stride of both convolutions. Default: 1.
        dilation (int): Dilation of both convolutions. Default: 1.
        norm_cfg (dict): Normalisation after each convolution. Default:
            ``dict(type='BN')``.

    Parameters: ``dense`` and ``grouped``, 3x3 convolutions with norm; ``squeeze``, a
    1x1 convolution to C / r with norm; ``excite``, a 1x1 convolution to 2C. No
    convolution has a bias.

    Shape: (B, C, H, W) to (B, C, H', W'), as for a 3x3 convolution with this stride, H
    and W at least 1. While batch normalisation trains, B must be at least 2.

    Raises:
        ValueError: An argument or the input does not fit; the message says which.
    """

    _abbr_ = 'sk'

    def __init__(
        self,
        in_channels: int,
        groups: int = 32,
        reduction: int = 16,
        stride: int = 1,
        dilation: int = 1,
        norm_cfg: dict = dict(type='BN'),  # noqa: B006  (read only; shown in help)
    ):
        super().__init__()
        check_groups('SK', in_channels, groups)
        check_groups('SK', in_channels, reduction, name='reduction')
        check_positive_int('SK', stride=stride, dilation=dilation)
        self.in_channels = in_channels
        kernel = dict(stride=stride, padding=dilation, dilation=dilation)
        self.dense = ConvModule(
            in_channels, in_channels, 3, **kernel, norm_cfg=norm_cfg
        )
        self.grouped = ConvModule(
            in_channels, in_channels, 3, **kernel, groups=groups, norm_cfg=norm_cfg
        )
        hidden = in_channels // reduction
        self.squeeze = ConvModule(in_channels, hidden, 1, norm_cfg=norm_cfg)
        self.excite = nn.Conv2d(hidden, 2 * in_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_input('SK', x, self.in_channels)
        dense, grouped = self.dense(x), self.grouped(x)
        first, second = self.shares(dense, grouped).to(dense.dtype).unbind(1)
        return first * dense + second * grouped

    def shares(self, dense: Tensor, grouped: Tensor) -> Tensor:
        """Weights of the two branches in each channel, of shape (B, 2, C, 1, 1)."""
        context = (dense + grouped).mean((2, 3), keepdim=True)
        # C scores of the first branch, then C scores of the second branch.
        scores = self.excite(self.squeeze(context))
        return scores.unflatten(1, (2, -1)).softmax(1)
