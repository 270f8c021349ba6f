"""Images a second of whole detectors, by the protocol of MMDetection's benchmark.py.

MMDetection's ``InferenceBenchmark`` runs on CUDA only, and one detector at a time. Here
the same protocol runs on any device, and the detectors take turns on each image. So the
ratio of two detectors is reliable even if the machine's speed drifts.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any, Callable

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner, load_state_dict

from ..files.checkpoints import read_state_dict
from .measure import synchronize


def measure_fps(
    configs: Sequence[Config],
    checkpoints: Sequence[str | None],
    device: torch.device,
    images: int,
    warmup: int,
    progress: Callable[[str], Any],
) -> list[float]:
    """Images a second of detectors on their test data.

    Images are loaded one at a time in this process, outside of the measured time. The
    time of ``test_step`` is measured. It includes the data preprocessor and the
    post-processing. The first images only warm the detectors up and are not counted.

    Args:
        configs: One config for each detector. All use the first config's test data.
        checkpoints: Weights of each detector, or None for random weights. With random
            weights, a detector detects less, and so computes less.
        device: Where the detectors run.
        images: The largest number of images, including the ``warmup`` images.
        warmup: Number of first images that are not counted.
        progress: Called with one line of text for each image.

    Returns:
        Images a second of each detector.

    Raises:
        OSError: The test data or a checkpoint cannot be read.
        ValueError: A checkpoint does not fit, or there are too few test images.
    """
    register_all_modules()
    models = [_build(cfg, path, device) for cfg, path in zip(configs, checkpoints)]
    loader = dict(
        configs[0].test_dataloader,
        batch_size=1,
        num_workers=0,
        persistent_workers=False,
    )
    seconds = [0.0] * len(models)
    count = 0
    for i, data in enumerate(Runner.build_dataloader(loader)):
        if i == images:
            break
        progress(f'image {i + 1}')
        count += i >= warmup
        for at, model in enumerate(models):
            # test_step changes its input, so each detector gets a copy.
            own = copy.deepcopy(data)
            synchronize(device)
            start = time.perf_counter()
            with torch.no_grad():
                model.test_step(own)
            synchronize(device)
            if i >= warmup:
                seconds[at] += time.perf_counter() - start
    if not count:
        raise ValueError(
            f'the test data has at most {warmup} images, which only warm up; '
            'name a larger data set or a smaller --warmup'
        )
    return [count / total for total in seconds]


def _build(cfg: Config, checkpoint: str | None, device: torch.device) -> Any:
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    if checkpoint:
        load_state_dict(model, read_state_dict(checkpoint), strict=True)
    return model.to(device).eval()
