"""Plugins in places that MMDetection's own ``plugins`` argument does not reach."""

from .plugged import Plugged, attach_plugins

__all__ = ['Plugged', 'attach_plugins']
