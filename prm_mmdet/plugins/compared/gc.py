"""Global Context, which the papers' tables compare with.

Source: Y. Cao, J. Xu, S. Lin, F. Wei and H. Hu, "GCNet: Non-local Networks Meet
Squeeze-Excitation Networks and Beyond", ICCV Workshops 2019. The code is MMCV's.
"""

from __future__ import annotations

from mmcv.cnn.bricks import ContextBlock

from ...registry import MODELS


@MODELS.register_module()
class GC(ContextBlock):
    """MMCV's ``ContextBlock`` for backbones that are trained from scratch.

    MMDetection gives all convolutions of such backbones random values. Here the last
    convolution keeps GCNet's zeros, so that the block starts as the identity.
    """

    def init_weights(self) -> None:
        self.reset_parameters()
