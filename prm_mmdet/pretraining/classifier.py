"""Image classification with MMDetection's backbones: what they are pre-trained as."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from ..insertion.channels import Probe
from ..registry import MODELS


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A backbone, global average pooling and a linear layer, under cross-entropy.

    The backbone is the same module as in a detector, so a detector's config starts
    from a checkpoint of this model by one line:
    ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix='backbone.')``. The linear
    layer is ``fc``: without ``backbone.``, a ResNet's keys are torchvision's.

    Args:
        backbone (dict): Config of a backbone, ``prm_mmdet.Plugged`` included. Of the
            maps that it returns the last is used, so ``out_indices`` choose where a
            network ends that goes on behind its last stage: ``(7,)`` for MMDetection's
            MobileNetV2.
        num_classes (int): Default: 1000.
        in_channels (int | None): Channels of the backbone's last map. Default: None,
            found by running it once.
        data_preprocessor (dict | None): As for ``mmengine.ImgDataPreprocessor``.
            Default: None, which leaves the inputs as they are.
        init_cfg (dict | None): As for MMEngine's BaseModule. Default: None.

    Raises:
        ValueError: The channels are not known, or not one map's.
    """

    def __init__(
        self,
        backbone: dict,
        num_classes: int = 1000,
        in_channels: int | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.num_classes = num_classes
        if in_channels is None:
            in_channels = _last_channels(self.backbone)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(
        self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor'
    ) -> Any:
        """As MMEngine calls it.

        Args:
            inputs (Tensor): Images, normalised, (B, 3, H, W).
            data_samples (Tensor | None): Their labels, indices of classes, (B,), int64;
                in prediction -1 where there is none.
            mode (str): 'loss', 'predict' or 'tensor'.

        Returns:
            Tensor | dict | list[dict]: Logits (B, num_classes) for 'tensor'; for
            'loss', ``loss``; for 'predict', of each image ``logits`` (num_classes,),
            ``pred_scores``, their softmax, ``pred_label`` and, if labels are given,
            ``gt_label``.
        """
        maps = self.backbone(inputs)
        last = maps if isinstance(maps, torch.Tensor) else maps[-1]
        logits = self.fc(self.pool(last).flatten(1))
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            return dict(loss=F.cross_entropy(logits, data_samples))
        if mode == 'predict':
            return _predictions(logits, data_samples)
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")


def _last_channels(backbone):
    try:
        levels = Probe(backbone).levels('', backbone)
    except ValueError as error:
        raise ValueError(
            f'the channels of {type(backbone).__name__} cannot be found, give '
            f'in_channels: {error}'
        ) from error
    return (levels[-1] if isinstance(levels, tuple) else levels).channels


def _predictions(logits, labels):
    logits = logits.float()
    results = [
        dict(logits=row, pred_scores=row.softmax(0), pred_label=label)
        for row, label in zip(logits, logits.argmax(1).tolist())
    ]
    if labels is not None:
        for result, label in zip(results, labels.tolist()):
            result['gt_label'] = label
    return results
