"""Checkpoints for others: the weights, and nothing that only the training needs.

MMDetection's publish_model.py and MMEngine's ``published_keys`` do this too. But their
files may hold objects that weights-only loading refuses, and the hash in their names
is not always that of the file.
"""

import hashlib
import os
from collections import OrderedDict

import torch
from mmengine.runner import CheckpointLoader

_PLAIN = (str, int, float, bool, type(None))


def publish_checkpoint(source, prefix):
    """Write what a trained checkpoint has to give: ``state_dict``, and of ``meta`` what
    is plain (numbers, strings, and lists and dicts of them).

    Of a training with MMEngine's EMAHook these are the averaged weights: it saves them
    as ``state_dict``, and the others as ``ema_state_dict``. The file can be loaded
    with ``torch.load(..., weights_only=True)`` where neither MMEngine nor this package
    is, and ``torch.hub.load_state_dict_from_url(..., check_hash=True)`` takes its name.

    Args:
        source (str): A checkpoint as MMEngine writes it.
        prefix (str): The file's path without hash and ``.pth``.

    Returns:
        tuple[str, list[str]]: The file, PREFIX-HASH.pth, with the first 8 digits of its
        SHA-256; and what was left out.

    Raises:
        ValueError: ``source`` has no ``state_dict`` of tensors, or weights in it are
            not finite.
    """
    checkpoint = CheckpointLoader.load_checkpoint(source, 'cpu', logger='silent')
    state = checkpoint.get('state_dict') if isinstance(checkpoint, dict) else None
    if not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(
            f"{source} has no 'state_dict' of tensors: it is no checkpoint of MMEngine"
        )
    broken = [k for k, v in state.items() if not v.isfinite().all()]
    if broken:
        raise ValueError(
            f'{source} has weights that are not finite, such as {broken[0]}: the '
            'training diverged; publish an earlier checkpoint'
        )
    left_out = [key for key in checkpoint if key not in ('state_dict', 'meta')]
    meta = checkpoint.get('meta', {})
    left_out += [f'meta.{k}' for k, v in meta.items() if not _is_plain(v)]
    published = dict(
        meta={k: v for k, v in meta.items() if _is_plain(v)},
        # A copy each: a tensor may be a view of more than itself, all of it written.
        state_dict=OrderedDict((k, v.clone()) for k, v in state.items()),
    )
    os.makedirs(os.path.dirname(prefix) or '.', exist_ok=True)
    partial = f'{prefix}.tmp'
    try:
        # To a file object: a path's name would go into the file, and into the hash.
        with open(partial, 'wb') as file:
            torch.save(published, file)
        with open(partial, 'rb') as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        path = f'{prefix}-{digest[:8]}.pth'
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    return path, left_out


def _is_plain(value):
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    return type(value) in _PLAIN
