"""Write checkpoints to publish: the weights, and nothing that only a training needs.

MMDetection's publish_model.py and MMEngine's ``published_keys`` also write such files.
But weights-only loading may refuse those files. Their names may contain a wrong hash.
"""

import hashlib
import os

from .checkpoints import read_checkpoint, weights_of, write_checkpoint

_PLAIN = (str, int, float, bool, type(None))


def publish_checkpoint(
    source: str, prefix: str, hashed: bool = True
) -> tuple[str, list[str]]:
    """Write a checkpoint's ``state_dict`` and the plain entries of its ``meta``
    (numbers, strings, and lists and dicts of them).

    After a training with MMEngine's EMAHook, ``state_dict`` holds the averaged weights.
    ``torch.load(..., weights_only=True)`` reads the file without MMEngine or this
    package. The file's name suits ``torch.hub.load_state_dict_from_url`` with
    ``check_hash=True``.

    Args:
        source: A checkpoint as MMEngine writes it, or weights alone.
        prefix: The file's path without hash and ``.pth``.
        hashed: Whether the file's name contains its hash. Default: True.

    Returns:
        The path of the file, and the keys of the entries that were left out. The path
        is PREFIX-HASH.pth, where HASH is the first 8 digits of the file's SHA-256. If
        ``hashed`` is false, the path is PREFIX.pth.

    Raises:
        OSError: ``source`` cannot be read, or the file cannot be written.
        ValueError: ``source`` is no checkpoint, or weights in it are not finite.
    """
    checkpoint = read_checkpoint(source)
    state = weights_of(checkpoint, source)
    if 'state_dict' not in checkpoint:
        checkpoint = dict(state_dict=checkpoint)
    left_out = [key for key in checkpoint if key not in ('state_dict', 'meta')]
    meta = checkpoint.get('meta', {})
    left_out += [f'meta.{k}' for k, v in meta.items() if not _is_plain(v)]
    published = dict(
        meta={k: v for k, v in meta.items() if _is_plain(v)},
        # torch.save writes the whole memory behind a view, so tensors are copied.
        state_dict={k: v.clone() for k, v in state.items()},
    )
    written = f'{prefix}.new'
    write_checkpoint(published, written, source)
    with open(written, 'rb') as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    path = f'{prefix}-{digest[:8]}.pth' if hashed else f'{prefix}.pth'
    os.replace(written, path)
    return path, left_out


def _is_plain(value):
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    return type(value) in _PLAIN
