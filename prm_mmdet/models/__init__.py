"""Plugins in places that MMDetection's own ``plugins`` argument does not reach, and in
weights that were trained without them; backbones that it lacks; and the classifier that
backbones are pre-trained as."""

from .checkpoints import PreservedPretrainedInit
from .classifier import ImageClassifier
from .mnasnet import MnasNet
from .plugged import Plugged, attach_plugins
from .preservation import preserve
from .sknet import SKResNet

__all__ = [
    'ImageClassifier',
    'MnasNet',
    'Plugged',
    'PreservedPretrainedInit',
    'SKResNet',
    'attach_plugins',
    'preserve',
]
