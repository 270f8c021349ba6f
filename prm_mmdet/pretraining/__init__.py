"""Pre-training of backbones on ImageNet: classifier, networks, data and accuracy."""

from .classifier import ImageClassifier
from .last_block_resnet import LastBlockResNet
from .mnasnet import MnasNet
from .sknet import SKResNet

__all__ = ['ImageClassifier', 'LastBlockResNet', 'MnasNet', 'SKResNet']
