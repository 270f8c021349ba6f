"""The levels of the benchmark, each measured into groups of records.

A group is a dict: ``title``, ``against``, the name of what ratios are over, and
``records``, a list of dicts, one for each subject:

- ``name``;
- ``forward`` and ``step``: median and quartiles of seconds a call, for inference, and
  for forward and backward (of a network: a whole training step);
- ``forward_ratio`` and ``step_ratio``: the same of ratios within rounds;
- ``floor_ratio`` (a block alone): of a step over five passes of the input's bytes at
  the measured speed of a copy: read x, write y; read x and the gradient, write one;
- ``memory``: bytes that a step allocates at most beyond its input;
- ``multiply_adds`` of a forward;
- ``seconds``: every round's, of both kinds.

For a block alone it also has ``floor_bytes``, those five passes, and
``copy_bandwidth``, bytes a second that a copy of the input reads and writes.
"""

import math
from dataclasses import asdict

from tqdm import tqdm

from . import subjects
from .measure import Spread, interleave, multiply_adds, peak_memory, ratio

# Copying reads once and writes once.
_FLOOR = 5 / 2
COPY = 'copy'


def blocks_alone(setting, names, rounds):
    """Each block on the maps of each stage, against its line-by-line form if it has
    one, else against ``x * gate``; yields groups.

    Args:
        setting (Setting): What they run on.
        names (Sequence[str]): Blocks.
        rounds (int): Timings of each function.
    """
    for name in names:
        against = f'{name}, reference' if name in subjects.OURS else subjects.LIMIT
        for stage in range(4):
            shape, found, copy = subjects.blocks_alone(setting, name, stage)
            title = f'{name} on {shape}'
            group = _group(title, found, against, setting.device, rounds, copy)
            size = math.prod(shape) * setting.dtype.itemsize
            group['floor_bytes'] = 5 * size
            group['copy_bandwidth'] = 2 * size / group.pop('copy_seconds')
            yield group


def backbones(setting, names, rounds):
    """ResNet-50 with each block, against none; yields a group."""
    found = subjects.backbones(setting, names)
    title = f'ResNet-50, {setting.batch} x {setting.size}'
    yield _group(title, found, 'none', setting.device, rounds)


def detectors(setting, names, rounds):
    """Mask R-CNN with each block, against none; yields a group."""
    found = subjects.detectors(setting, names)
    title = f'Mask R-CNN R50 FPN, {setting.batch} x {setting.size}'
    yield _group(title, found, 'none', setting.device, rounds)


LEVELS = dict(op=blocks_alone, backbone=backbones, detector=detectors)


def _group(title, found, against, device, rounds, copy=None):
    functions = {}
    for name, subject in found.items():
        functions[name, 'forward'], functions[name, 'step'] = subject
    if copy:
        functions[COPY, 'forward'] = copy
    with tqdm(total=rounds, desc=title, unit='round', leave=False) as bar:
        times = interleave(functions, device, rounds, bar.update)
    records = []
    for name, subject in found.items():
        record = dict(name=name, seconds={})
        for kind in ('forward', 'step'):
            seconds = times[name, kind]
            record[kind] = asdict(Spread.of(seconds))
            record[f'{kind}_ratio'] = asdict(ratio(seconds, times[against, kind]))
            record['seconds'][kind] = seconds
        if copy:
            floor = [_FLOOR * t for t in times[COPY, 'forward']]
            record['floor_ratio'] = asdict(ratio(times[name, 'step'], floor))
        record['memory'] = peak_memory(subject.step, device)
        record['multiply_adds'] = multiply_adds(subject.forward)
        records.append(record)
    group = dict(title=title, against=against, records=records)
    if copy:
        group['copy_seconds'] = Spread.of(times[COPY, 'forward']).median
    return group
