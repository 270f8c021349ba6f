"""The blocks as modules. ``build_plugin_layer`` finds them under these names:

``prm_mmdet.PRM``, ``prm_mmdet.LCT``, ``prm_mmdet.SAC`` in any OpenMMLab config, and,
once this package is imported, plain ``PRM``, ``LCT`` and ``SACBlock``. Plain ``SAC``
stays MMCV's Switchable Atrous Convolution.

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
