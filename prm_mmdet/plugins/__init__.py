"""The blocks as modules. ``build_plugin_layer`` finds them under these names:

``prm_mmdet.PRM``, ``prm_mmdet.LCT``, ``prm_mmdet.SAC`` in any OpenMMLab config, and,
once this package is imported, plain ``PRM``, ``LCT`` and ``SACBlock``. Plain ``SAC``
stays MMCV's Switchable Atrous Convolution.
"""

from .lct import LCT
from .prm import PRM
from .sac import SAC

__all__ = ['LCT', 'PRM', 'SAC']
