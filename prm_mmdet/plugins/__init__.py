"""The blocks as modules. ``build_plugin_layer`` finds them by their names.

In any OpenMMLab config, use ``prm_mmdet.PRM``, ``prm_mmdet.LCT`` and ``prm_mmdet.SAC``.
If this package is imported, MMDetection also knows ``PRM``, ``LCT`` and ``SACBlock``.
The name ``SAC`` without ``prm_mmdet.`` is MMCV's Switchable Atrous Convolution.

``prm_mmdet.SE``, ``prm_mmdet.GE``, ``prm_mmdet.SGE``, ``prm_mmdet.SK``,
``prm_mmdet.CBAM``, ``prm_mmdet.BAM``, ``prm_mmdet.GC`` and
``prm_mmdet.DoubleAttention`` are the blocks that the papers compare with.

The names of a block's parameters and submodules, and its abbreviation ``_abbr_``, are
part of the keys in checkpoints. If a name changes, older checkpoints do not load.
"""

from .compared.bam import BAM
from .compared.cbam import CBAM
from .compared.double_attention import DoubleAttention
from .compared.gc import GC
from .compared.ge import GE
from .compared.se import SE
from .compared.sge import SGE
from .compared.sk import SK
from .lct import LCT
from .prm import PRM
from .sac import SAC

__all__ = [
    'BAM',
    'CBAM',
    'GC',
    'GE',
    'LCT',
    'PRM',
    'SAC',
    'SE',
    'SGE',
    'SK',
    'DoubleAttention',
]
