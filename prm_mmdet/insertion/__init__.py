"""Insert plugins into a network, also after it was trained without plugins."""

from .attach import Plugged, attach_plugins
from .preservation import preserve
from .trained_weights import PreservedPretrainedInit

__all__ = ['Plugged', 'PreservedPretrainedInit', 'attach_plugins', 'preserve']
