"""The files that a config names: whether they exist, and how to get them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import Registry

from .. import compat
from .run_errors import RunError


class MissingInput(RunError, FileNotFoundError):
    """A file that the config names is missing. The message says what to do."""


def check_data(cfg: Config, *phases: str) -> None:
    """Look for the files that a config's data sets need.

    Args:
        cfg: A complete config.
        phases: One or more of 'train', 'val' and 'test'.

    Raises:
        MissingInput: Files are missing. The message names each file, and the config
            keys that set its path.
    """
    missing = []  # (path of a missing file, config key that sets this path)
    classifies = False

    def look(path: str, setting: str, node: dict) -> None:
        if is_local(path, node) and not os.path.exists(path):
            missing.append((path, setting))

    for phase in phases:
        loader = cfg.get(f'{phase}_dataloader') or {}
        for key, dataset in datasets_of(f'{phase}_dataloader', loader):
            classifies = classifies or dataset.get('type') == 'prm_mmdet.ImageNet'
            root = dataset.get('data_root') or ''
            prefixes = (dataset.get('data_prefix') or {}).values()
            for name in (dataset.get('ann_file'), *prefixes):
                if isinstance(name, str) and name:
                    look(os.path.join(root, name), f'{key}.data_root', dataset)
        for evaluator in evaluators_of(cfg, phase):
            if isinstance(evaluator.get('ann_file'), str):
                setting = f'{phase}_evaluator.ann_file'
                look(evaluator['ann_file'], setting, evaluator)
    if not missing:
        return
    paths = list(dict.fromkeys(path for path, _ in missing))
    options = ' '.join(dict.fromkeys(f'{key}=...' for _, key in missing))
    if all('data/demo/' in path for path in paths):
        cure = 'Make the demo data with: python tools/make_demo_data.py'
    elif all('data/demo_classes/' in path for path in paths):
        cure = 'Make the demo data with: python tools/make_demo_data.py --classes 8'
    elif classifies:
        cure = (
            "This package's ImageNet configs take the folder that holds train/<wnid>/ "
            'and val/<wnid>/, or val/ and a file of labels named as ann_file, from '
            'IMAGENET=/path/to/imagenet/'
        )
    else:
        cure = (
            "This package's COCO configs take the folder that holds annotations/, "
            'train2017/ and val2017/ from MMDET_DATASETS=/path/to/coco/'
        )
    raise MissingInput(
        'the data set that the config names is not there. Missing, seen from '
        f'{os.getcwd()}:\n  ' + '\n  '.join(paths) + f'\n{cure}\n'
        f'Any config takes other places from --cfg-options {options}'
    )


def is_local(path: str, node: dict) -> bool:
    """Whether a data set or an evaluator reads a path from this machine's disk."""
    backend = (node.get('backend_args') or {}).get('backend', 'local')
    return backend == 'local' and '://' not in path


def datasets_of(key: str, node: dict) -> Iterator[tuple[str, dict]]:
    """(key, config) of every data set in a data loader's config. Data sets inside
    wrappers are included."""
    if 'ann_file' in node or 'data_prefix' in node:
        yield key, node
    inner = [('dataset', node.get('dataset'))]
    inner += [(f'datasets.{i}', d) for i, d in enumerate(node.get('datasets') or [])]
    for name, child in inner:
        if isinstance(child, dict):
            yield from datasets_of(f'{key}.{name}', child)


@contextlib.contextmanager
def naming_indices(node: dict) -> Iterator[None]:
    """Raise RunError if a data set in a config cannot be built inside the ``with``
    statement, and the reason can be its ``indices``."""
    try:
        yield
    except (IndexError, ValueError) as error:
        for _, data in datasets_of('', node):
            if data.get('indices') is not None:
                raise RunError(
                    f'{data.get("ann_file")}: no image can be learned or found with '
                    f'indices={data["indices"]!r:.60} ({error}); change the indices'
                ) from error
        raise


def evaluators_of(cfg: Config, phase: str) -> list[dict]:
    """The configs of a phase's evaluators."""
    found = cfg.get(f'{phase}_evaluator') or []
    found = found if isinstance(found, (list, tuple)) else [found]
    return [evaluator for evaluator in found if isinstance(evaluator, dict)]


def how_to_get_weights(cfg: Config, error: Exception) -> str:
    """Text that names each missing file of pre-trained weights, and where to put it."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    lines = []
    for key, node in dicts_in('model', cfg.get('model')):
        # Every dict with a ``checkpoint`` counts. Its ``type`` is not checked, because
        # it can be a name or a class.
        name = node.get('checkpoint')
        if not isinstance(name, str):
            continue
        setting, url = f'  {key}.checkpoint={name}', compat.weights_url(name)
        if url:
            path = os.path.join(folder, url.rpartition('/')[2])
            lines.append(f'{setting}: {url}\n    to be put at {path}')
        elif '://' not in name and not os.path.exists(name):
            lines.append(f'{setting}\n    to be put at {os.path.abspath(name)}')
    return (
        f'pre-trained weights cannot be had ({getattr(error, "reason", error)}):\n'
        + '\n'.join(lines)
        + '\nOr say where a file is with --cfg-options ...init_cfg.checkpoint=FILE, or '
        'start from nothing with --cfg-options ...init_cfg=None (not with a block in '
        'c2, which is frozen: it requires a backbone that was pre-trained with it)'
    )


def class_of(node: dict, registry: Registry) -> Any:
    """Return the class that a config's ``type`` names, or the name if it is unknown."""
    kind = node.get('type')
    if isinstance(kind, str):
        with contextlib.suppress(KeyError, RuntimeError, ImportError):
            return registry.get(kind)
    return kind


def dicts_in(key: str, node: Any) -> Iterator[tuple[str, dict]]:
    """Yield each dict in a part of a config as a pair (dotted key, dict)."""
    if isinstance(node, dict):
        yield key, node
        for name, child in node.items():
            yield from dicts_in(f'{key}.{name}', child)
    elif isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from dicts_in(f'{key}.{i}', child)
