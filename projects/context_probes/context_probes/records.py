"""Records of cells: what they are of, and which of them still hold.

A record is a JSON file: the cell, ``ap`` and ``ap50``, the number of ``parameters``,
``seconds``, ``date``, ``versions``, ``config``, a hash of the config and the data, of
cells also ``base``, a hash of the weights that it started from, and ``largest``, by
name the largest magnitude among a block's parameters after training, and ``example``,
what the network finds in the first validation image: boxes (x1, y1, x2, y2 in pixels),
labels and scores. Longer runs also have their ``epochs``, and ``right``: for images
whose objects are of ``one`` class and for those of ``two``, how many of these objects
the best detection calls by their class, and how many objects there are.
"""

import copy
import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path

from mmengine.config import Config

from prm_mmdet.config import config_path

from . import images as data
from .cells import CONFIGS, Cell

NUM_TRAIN, NUM_VAL = 320, 100


def cell_config(cell, data_root, work_dirs):
    """The config of a cell.

    Args:
        cell (Cell): The cell.
        data_root (str): Folder of the probes' folders.
        work_dirs (str): Folder of the bases' weights.
    """
    os.environ['PROBE_DATA'] = os.path.join(os.path.abspath(data_root), cell.probe)
    cfg = Config.fromfile(config_path(f'probes/{cell.network}.py'))
    if cell.base:
        cfg.load_from = str(weights_path(cell.base, work_dirs))
    return _tuned(cfg, cell)


def weights_path(base, work_dirs):
    """Where the weights of a base are kept, by what they depend on."""
    return Path(work_dirs, f'{base.name}_{fingerprint(base)}.pth')


def _tuned(cfg, cell):
    cfg.optim_wrapper.optimizer.lr = cell.rate
    cfg.randomness = dict(seed=cell.seed)
    cfg.train_cfg.update(max_epochs=cell.epochs, val_interval=cell.epochs)
    cfg.param_scheduler[1].T_max = cell.epochs
    return cfg


@functools.cache
def _network_config(network):
    return Config.fromfile(config_path(f'probes/{network}.py'))


def fingerprint(cell):
    """Twelve hexadecimal digits that change with the cell's config, the version of the
    data and the base's config."""
    cfg = _tuned(copy.deepcopy(_network_config(cell.network)), cell)
    parts = [data.VERSION, NUM_TRAIN, NUM_VAL]
    for name in ('train_dataloader', 'val_dataloader'):
        del cfg[name].dataset.data_root  # wherever it lies
    for name in _DECIDES:
        parts.append(cfg.to_dict()[name])
    if cell.base:
        parts.append(fingerprint(cell.base))
    return digits(json.dumps(parts, sort_keys=True, default=str).encode())


_DECIDES = (
    *('model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'randomness'),
    *('train_dataloader', 'val_dataloader'),
)


def digits(content):
    """Twelve hexadecimal digits of bytes' SHA-256."""
    return hashlib.sha256(content).hexdigest()[:12]


def cell_of(record):
    """The cell that a record is of."""
    names = [field.name for field in dataclasses.fields(Cell)]
    return Cell(**{name: record[name] for name in names if name in record})


def read_records(folder):
    """The records in a folder that are of their cells' present configs, by the cells'
    names.

    Raises:
        ValueError: A file is no record.
    """
    records = {}
    for path in sorted(Path(folder).glob('*.json')):
        try:
            record = json.loads(path.read_text(encoding='utf-8'))
            cell = cell_of(record)
            config = record['config']
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path} is no record of a run: remove it') from error
        if cell.network in CONFIGS and config == fingerprint(cell):
            records[cell.name] = record
    return records
