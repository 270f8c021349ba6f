"""Global Context, which the papers' tables compare with.

Source: Y. Cao, J. Xu, S. Lin, F. Wei and H. Hu, "GCNet: Non-local Networks Meet
Squeeze-Excitation Networks and Beyond", ICCV Workshops 2019, as MMCV has it.
"""

from __future__ import annotations

from mmcv.cnn.bricks import ContextBlock

from ...registry import MODELS


@MODELS.register_module()
class GC(ContextBlock):
    """MMCV's ``ContextBlock``, with its arguments and its keys, for backbones that are
    trained from nothing.

    There MMDetection gives all convolutions random values; this block's last one stays
    at the zeros with which GCNet starts, so that the block starts as the identity.
    """

    def init_weights(self) -> None:
        self.reset_parameters()
