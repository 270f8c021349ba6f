"""A training hook that measures the trained network for the record of a trial. AP is
measured elsewhere, by the evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from prm_mmdet.files.atomic import write_file
from prm_mmdet.files.checkpoints import read_state_dict, write_checkpoint

from .records import digits

EXAMPLE_SCORE = 0.3  # detections with lower scores are not recorded


@HOOKS.register_module()
@dataclass(eq=False)
class ProbeMeasurements(Hook):
    """Writes ``measured.json`` into the work dir when the training ends."""

    # File with the weights that the network started from. None for a base (a network
    # whose weights other networks start from).
    base: str | None = None
    weights: str | None = None  # file to write the network's weights to
    count_right: bool = False  # whether to count objects that get their right class

    def after_train(self, runner: Runner) -> None:
        runner.model.eval()
        measured: dict = dict(
            parameters=sum(p.numel() for p in runner.model.parameters()),
            example=first_detections(runner),
        )
        if self.count_right:
            measured['right'] = count_right(runner)
        if self.base:
            measured['base'] = digits(Path(self.base).read_bytes())
            base = read_state_dict(self.base)
            measured['largest'] = largest_magnitudes(runner.model, base)
        if self.weights:
            write_checkpoint({'state_dict': runner.model.state_dict()}, self.weights)
        write_file(Path(runner.work_dir, 'measured.json'), json.dumps(measured))


def largest_magnitudes(model: torch.nn.Module, base: dict) -> dict[str, float]:
    """The largest magnitude of each parameter of the blocks, over all layers.

    Parameters that are not in ``base``, the weights of the base network, belong to the
    blocks. A key is a parameter's name in its block, such as 'alpha' for
    ``backbone.layer2.0.prm.alpha``.
    """
    largest: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if name not in base:
            short = name.split('.', 4)[-1]
            value = float(f'{parameter.abs().max().item():.3g}')
            largest[short] = max(value, largest.get(short, 0))
    return largest


@torch.no_grad()
def first_detections(runner: Runner) -> dict:
    """What the network detects in the first validation image."""
    found = runner.model.test_step(next(iter(runner.val_dataloader)))[0].pred_instances
    found = found[found.scores >= EXAMPLE_SCORE]
    return dict(
        boxes=[[round(x, 1) for x in box] for box in found.bboxes.tolist()],
        labels=found.labels.tolist(),
        scores=[round(score, 3) for score in found.scores.tolist()],
    )


@torch.no_grad()
def count_right(runner: Runner) -> dict[str, list[int]]:
    """Count the objects to which the network gives the right class, and all objects.

    A detection matches an object if their IoU is above 0.5. Of the matching detections,
    the one with the highest score decides which class the network gives the object.

    Returns:
        Both numbers, for validation images with objects of ``one`` class, and for those
        with objects of ``two`` classes.
    """
    counts = dict(one=[0, 0], two=[0, 0])
    for batch in runner.val_dataloader:
        for sample in runner.model.test_step(batch):
            truth, found = sample.gt_instances, sample.pred_instances
            overlaps = bbox_overlaps(truth.bboxes, found.bboxes)
            scores = found.scores * (overlaps > 0.5)
            # Add a first column with score 0 and label -1. If no detection matches an
            # object, argmax finds this column, and the object is not right.
            scores = torch.nn.functional.pad(scores, (1, 0))
            labels = torch.nn.functional.pad(found.labels, (1, 0), value=-1)
            right = labels[scores.argmax(1)] == truth.labels
            count = counts['one' if len(set(truth.labels.tolist())) == 1 else 'two']
            count[0] += int(right.sum())
            count[1] += len(right)
    return counts
