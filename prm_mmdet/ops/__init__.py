"""The blocks as pure functions on tensors. They require torch only."""

from .lct_operator import lct
from .prm_operator import prm
from .sac_operator import sac, sac_context

__all__ = ['lct', 'prm', 'sac', 'sac_context']
