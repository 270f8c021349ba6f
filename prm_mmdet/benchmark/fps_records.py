"""The file ``fps.json``: a record of the measured images a second of each config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..files.atomic import write_file
from .measure import environment

_FILE = 'fps.json'
_CONDITIONS = ('device', 'torch', 'random_weights')


def record_fps(
    work_dirs: str | Path,
    configs: Sequence[str],
    checkpoints: Sequence[str | None],
    fps: Sequence[float],
    device: torch.device,
) -> Path:
    """Add what :func:`.detector_fps.measure_fps` returned to a folder's ``fps.json``.

    Args:
        work_dirs: The folder.
        configs: Config files. A new record replaces an older record of the same file.
        checkpoints: Weights of each detector, or None if the weights were random.
        fps: Images a second of each detector.
        device: Where the detectors ran.

    Returns:
        Path of ``fps.json``.
    """
    records = _read(work_dirs)
    for config, checkpoint, value in zip(configs, checkpoints, fps):
        records[Path(config).stem] = dict(
            environment(device),
            checkpoint=checkpoint,
            random_weights=checkpoint is None,
            fps=value,
        )
    path = Path(work_dirs, _FILE)
    write_file(path, json.dumps(records, indent=1) + '\n')
    return path


def fps_here(work_dirs: str | Path, config: str) -> dict[str, Any] | None:
    """The record of a config in a folder's ``fps.json``, or None if there is no such
    record."""
    return _read(work_dirs).get(Path(config).stem)


def comparable(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records have the same device, the same version of PyTorch, and the
    same kind of weights (trained or random)."""
    return all(record[key] == other[key] for key in _CONDITIONS)


def _read(work_dirs: str | Path) -> dict[str, dict[str, Any]]:
    path = Path(work_dirs, _FILE)
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding='utf-8'))
