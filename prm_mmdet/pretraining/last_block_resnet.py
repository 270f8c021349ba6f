"""ResNet with plugins in the last residual block of a stage.

The SAC paper pre-trains such networks on ImageNet. MMDetection's ``plugins`` are always
placed in every residual block of a stage.

Source: D. Ruan et al., "Spatially-Aware Context Neural Networks", IEEE TIP 30, 2021,
Section IV-B: "we insert SAC in the last residual block in stage 2-4".
"""

from typing import Any

from mmdet.models.backbones.resnet import ResNet
from mmdet.models.layers import ResLayer

from ..registry import MODELS


@MODELS.register_module()
class LastBlockResNet(ResNet):
    """MMDetection's ResNet with plugins in the last residual block of each stage only.

    The arguments are those of ``mmdet.ResNet``. Plugins have the same positions and
    names as there: in ResNet-50, SAC at ``after_conv2`` of c2 (``layer1``) is
    ``layer1.2.sac_block``.
    """

    def make_res_layer(self, **kwargs: Any) -> ResLayer:
        layer = super().make_res_layer(**kwargs)
        for block in list(layer)[:-1]:
            if block.with_plugins:
                for name in (
                    *block.after_conv1_plugin_names,
                    *block.after_conv2_plugin_names,
                    *block.after_conv3_plugin_names,
                ):
                    delattr(block, name)
                block.with_plugins = False
        return layer
