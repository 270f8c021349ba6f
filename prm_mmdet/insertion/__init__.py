"""Plugins anywhere in a network, and in weights that were trained without them."""

from .attach import Plugged, attach_plugins
from .preservation import preserve
from .trained_weights import PreservedPretrainedInit

__all__ = ['Plugged', 'PreservedPretrainedInit', 'attach_plugins', 'preserve']
