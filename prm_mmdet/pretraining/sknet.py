"""ResNet with Selective Kernel units.

SK replaces a layer of a residual block. MMDetection's plugins can only add layers, so
SK needs a backbone of its own.
"""

from __future__ import annotations

from typing import Any

from mmdet.models.backbones.resnet import Bottleneck, ResNet
from torch import nn

from ..plugins import SK
from ..registry import MODELS


class _Bottleneck(Bottleneck):
    """MMDetection's Bottleneck with SK instead of the 3x3 convolution and its norm."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.conv2 = SK(
            self.planes,
            stride=self.conv2_stride,
            dilation=self.dilation,
            norm_cfg=self.norm_cfg,
        )
        # SK contains its own norms, so the norm after the 3x3 convolution is removed.
        # The residual block applies ReLU after SK. This changes nothing, because SK's
        # output is never negative.
        setattr(self, self.norm2_name, nn.Identity())


@MODELS.register_module()
class SKResNet(ResNet):
    """ResNet with :class:`~prm_mmdet.plugins.SK` units instead of 3x3 convolutions.

    With ``depth=50``, the network is SK-ResNet50 in Table 1 of the PRM paper. The
    arguments are those of ``mmdet.ResNet``. ``depth`` must be 50, 101 or 152.

    Raises:
        ValueError: ``dcn`` is given. It replaces the same convolutions as SK.
    """

    arch_settings = {  # noqa: RUF012  (ResNet reads it under this name)
        depth: (_Bottleneck, ResNet.arch_settings[depth][1]) for depth in (50, 101, 152)
    }

    def __init__(self, *args: Any, dcn: dict | None = None, **kwargs: Any):
        if dcn is not None:
            raise ValueError(
                f'SKResNet: dcn={dcn!r} and SK replace the same 3x3 convolutions: '
                'remove dcn'
            )
        super().__init__(*args, **kwargs)
