"""MnasNet, one of the networks in Table 2 of the PRM paper.

This is MnasNet-B1, the variant without squeeze-and-excitation, at width 1.0. It has the
4.38 M parameters that the PRM paper prints.

Source: M. Tan, B. Chen, R. Pang, V. Vasudevan, M. Sandler, A. Howard and Q. V. Le,
"MnasNet: Platform-Aware Neural Architecture Search for Mobile", CVPR 2019.
"""

from __future__ import annotations

from typing import Any

from mmdet.models.backbones import MobileNetV2
from mmdet.models.layers import InvertedResidual
from mmengine.model import Sequential

from ..registry import MODELS


@MODELS.register_module()
class MnasNet(MobileNetV2):
    """MobileNetV2 with MnasNet's widths, kernels of 3x3 and 5x5, and ReLU.

    The eight stages are ``layer1`` (a separable convolution), ``layer2`` to ``layer7``
    (inverted residuals), and ``conv2`` (a 1x1 convolution to 1280 channels).

    Args:
        act_cfg: Activation. Default: ``dict(type='ReLU')``.
        **kwargs: Further arguments of ``mmdet.MobileNetV2``. ``out_indices`` are stages
            from 0 to 7. The default (1, 2, 4, 7) gives maps with strides 4, 8, 16, 32
            and 24, 40, 96, 1280 channels.
    """

    # Expansion, channels, blocks and stride of each stage, in MobileNetV2's format.
    arch_settings = [  # noqa: RUF012  (MobileNetV2 reads it under this name)
        [1, 16, 1, 1],
        [3, 24, 3, 2],
        [3, 40, 3, 2],
        [6, 80, 3, 2],
        [6, 96, 2, 1],
        [6, 192, 4, 2],
        [6, 320, 1, 1],
    ]
    in_channels: int  # input channels of the next layer, set by MobileNetV2
    kernel_sizes = (3, 3, 5, 5, 3, 5, 3)

    def __init__(self, act_cfg: dict = dict(type='ReLU'), **kwargs: Any):  # noqa: B006
        super().__init__(act_cfg=act_cfg, **kwargs)

    def make_layer(
        self, out_channels: int, num_blocks: int, stride: int, expand_ratio: int
    ) -> Sequential:
        # The index of the new layer is the number of layers so far.
        kernel_size = self.kernel_sizes[len(self.layers)]
        blocks = []
        for i in range(num_blocks):
            blocks.append(
                InvertedResidual(
                    self.in_channels,
                    out_channels,
                    mid_channels=self.in_channels * expand_ratio,
                    kernel_size=kernel_size,
                    stride=1 if i else stride,
                    with_expand_conv=expand_ratio != 1,
                    conv_cfg=self.conv_cfg,
                    norm_cfg=self.norm_cfg,
                    act_cfg=self.act_cfg,
                    with_cp=self.with_cp,
                )
            )
            self.in_channels = out_channels
        return Sequential(*blocks)
