"""Pre-training of backbones on ImageNet: classifier, networks, data and accuracy."""

from .classifier import ImageClassifier
from .mnasnet import MnasNet
from .sknet import SKResNet

__all__ = ['ImageClassifier', 'MnasNet', 'SKResNet']
