"""The blocks' mathematics: pure functions on tensors, torch only."""

from .lct import lct
from .prm import prm
from .sac import sac_context

__all__ = ['lct', 'prm', 'sac_context']
