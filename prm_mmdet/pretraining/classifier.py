"""The image classifier that pre-trains MMDetection's backbones."""

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
    """A backbone, global average pooling and a linear layer, with cross-entropy loss.

    A detector's config loads the backbone from a checkpoint of this model with
    ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix='backbone.')``. The linear
    layer is named ``fc``. Without the prefix ``backbone.``, the keys of a ResNet are
    torchvision's.

    Args:
        backbone: Config of a backbone, which may be a ``prm_mmdet.Plugged``. The
            classifier uses the last map that the backbone returns. Set the backbone's
            ``out_indices`` to choose this map, for example ``(7,)`` for MMDetection's
            MobileNetV2.
        num_classes: Number of classes. Default: 1000.
        in_channels: Channels of the backbone's last map. Default: None, found by
            running the backbone once.
        data_preprocessor: Config of a ``mmengine.ImgDataPreprocessor``. Default: None,
            inputs are not changed.
        init_cfg: ``init_cfg`` of MMEngine's BaseModule. Default: None.

    Raises:
        ValueError: The number of channels cannot be found.
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
        """The logits, the loss or the predictions, in the form that MMEngine expects.

        Args:
            inputs: Normalised images, (B, 3, H, W).
            data_samples: Labels, (B,), int64. In prediction, an unknown label is -1.
            mode: 'loss', 'predict' or 'tensor'.

        Returns:
            For 'tensor', logits (B, num_classes). For 'loss', a dict with ``loss``. For
            'predict', a list with a dict for each image: ``logits`` (num_classes,),
            ``pred_scores`` (their softmax), ``pred_label`` and, if labels are given,
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
            f'the channels of {type(backbone).__name__} cannot be found ({error}). Set '
            'in_channels'
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
