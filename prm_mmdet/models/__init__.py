"""Plugins in places that MMDetection's own ``plugins`` argument does not reach, and in
weights that were trained without them; and the classifier that backbones are
pre-trained as."""

from .checkpoints import PreservedPretrainedInit
from .classifier import ImageClassifier
from .plugged import Plugged, attach_plugins
from .preservation import preserve

__all__ = [
    'ImageClassifier',
    'Plugged',
    'PreservedPretrainedInit',
    'attach_plugins',
    'preserve',
]
