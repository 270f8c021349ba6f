"""Plugins in places that MMDetection's own ``plugins`` argument does not reach, and in
weights that were trained without them."""

from .checkpoints import PreservedPretrainedInit
from .plugged import Plugged, attach_plugins
from .preservation import preserve

__all__ = ['Plugged', 'PreservedPretrainedInit', 'attach_plugins', 'preserve']
