"""The blocks' mathematics: pure functions on tensors, torch only."""

from .lct import lct
from .prm import prm
from .sac import sac, sac_context

__all__ = ['lct', 'prm', 'sac', 'sac_context']
