"""ResNet with Selective Kernel units: of the compared blocks the one that replaces a
layer, and so cannot be a plugin."""

from __future__ import annotations

from typing import Any

from mmdet.models.backbones.resnet import Bottleneck, ResNet
from torch import nn

from ..plugins import SK
from ..registry import MODELS


class _Bottleneck(Bottleneck):
    """MMDetection's, with SK in place of the 3x3 convolution and its norm."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.conv2 = SK(
            self.planes,
            stride=self.conv2_stride,
            dilation=self.dilation,
            norm_cfg=self.norm_cfg,
        )
        # SK's branches have norms; the ReLU that follows changes nothing, since their
        # mixture is not negative.
        setattr(self, self.norm2_name, nn.Identity())


@MODELS.register_module()
class SKResNet(ResNet):
    """ResNet whose residual blocks have a :class:`~prm_mmdet.plugins.SK` unit where
    ResNet has its 3x3 convolution: the SK-ResNet50 of the PRM paper's Table 1.

    Takes the arguments of ``mmdet.ResNet``, with ``depth`` 50, 101 or 152 and without
    ``dcn``, which would replace the same convolution.

    Raises:
        ValueError: ``dcn`` is given.
    """

    arch_settings = {  # noqa: RUF012  (ResNet reads it under this name)
        depth: (_Bottleneck, ResNet.arch_settings[depth][1]) for depth in (50, 101, 152)
    }

    def __init__(self, *args: Any, dcn: dict | None = None, **kwargs: Any):
        if dcn is not None:
            raise ValueError(
                f'SKResNet: dcn={dcn!r} would replace the 3x3 convolutions that SK '
                'replaces; leave it out'
            )
        super().__init__(*args, **kwargs)
