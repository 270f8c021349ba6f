"""Metrics of image classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from ..registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Fraction of images, 0 to 1, whose class is among the k classes with top scores.

    The metrics are named ``accuracy/top1``, ``accuracy/top5``, and so on. Images with
    label -1 are ignored. An image with NaN among its scores counts as wrong.

    The metric reads ``logits`` (classes,) and ``gt_label`` of each image. It does not
    read probabilities, because small probabilities are rounded to 0.

    Args:
        topk: Values of k. Default: (1, 5).
        collect_device: Argument of MMEngine's BaseMetric. Default: 'cpu'.
        prefix: Argument of MMEngine's BaseMetric. Default: None, which is 'accuracy'.

    Raises:
        ValueError: A k is not less than the number of classes, the model and the data
            set have different numbers of classes, or no image has a label.
    """

    default_prefix = 'accuracy'

    def __init__(
        self,
        topk: Sequence[int] = (1, 5),
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ):
        super().__init__(collect_device, prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            logits = sample['logits']
            self._check(len(logits))
            ranked = logits.topk(max(self.topk)).indices.tolist()
            label = sample['gt_label']
            hits = [label in ranked[:k] for k in self.topk]
            if logits.isnan().any():
                hits = [False] * len(hits)
            # Ranks may repeat images, so MMEngine cuts the results to the number of
            # images. Before that, it removes every None, so the cut would keep repeated
            # images. So append [], not None, for an image without a label.
            self.results.append(hits if label >= 0 else [])

    def compute_metrics(self, results: list[list[bool]]) -> dict[str, float]:
        counted = [hits for hits in results if hits]
        if not counted:
            raise ValueError(f'none of the {len(results)} images has a label')
        return {
            f'top{k}': sum(hits) / len(counted)
            for k, hits in zip(self.topk, zip(*counted))
        }

    def _check(self, count):
        if max(self.topk) >= count:
            raise ValueError(
                f'top-{max(self.topk)} of {count} classes is always right: set the '
                f"evaluator's topk={self.topk} to smaller numbers"
            )
        classes = (self.dataset_meta or {}).get('classes')
        if classes is not None and len(classes) != count:
            raise ValueError(
                f'the model has {count} classes, but the data set {len(classes)} '
                f'({classes[0]}, ..., {classes[-1]}). Set model.num_classes, or check '
                'that no folder is missing'
            )
