"""Records of trials: their content, and which records are still valid.

``records.jsonl`` has a record in each line: the trial's arguments, ``ap`` and ``ap50``,
the number of ``parameters``, ``seconds``, ``date``, ``versions``, and

- ``config``: a hash of the config and of the data
- ``base``: a hash of the base network's weights, from which the trial started
- ``largest``: the largest magnitude after training of each parameter of the block
- ``example``: what the network detects in the first validation image, as boxes (x1, y1,
  x2, y2 in pixels), labels and scores
- ``right``, in longer trials only: the number of objects whose best detection has their
  class, and the number of all objects. Images with objects of ``one`` class and of
  ``two`` classes are counted separately.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config

from prm_mmdet.files.atomic import write_file

from . import images as data
from .trials import CONFIGS, Trial

NUM_TRAIN, NUM_VAL = 320, 100
RECORDS = Path(__file__).parents[1] / 'records.jsonl'


def trial_config(trial: Trial, data_root: str, work_dirs: str) -> Config:
    """The config of a trial. ``data_root`` has a folder of data for each probe, and
    ``work_dirs`` has the weights of the base networks."""
    os.environ['PROBE_DATA'] = os.path.join(os.path.abspath(data_root), trial.probe)
    cfg = Config.fromfile(CONFIGS / f'{trial.network}.py')
    if trial.base:
        cfg.load_from = str(weights_path(trial.base, work_dirs))
    _tune(cfg, trial)
    return cfg


def work_dir(trial: Trial, work_dirs: str) -> Path:
    """Folder of a trial's run. Its name has a hash of all that a result depends on."""
    return Path(work_dirs, f'{trial.name}_{fingerprint(trial)}')


def weights_path(base: Trial, work_dirs: str) -> Path:
    """File with the weights of a base, a network that other trials start from."""
    return work_dir(base, work_dirs) / 'weights.pth'


def _tune(cfg: Config | dict, trial: Trial) -> None:
    cfg['optim_wrapper']['optimizer']['lr'] = trial.rate
    cfg['randomness'] = dict(seed=trial.seed)
    cfg['train_cfg'].update(max_epochs=trial.epochs, val_interval=trial.epochs)
    cfg['param_scheduler'][1]['T_max'] = trial.epochs


_DECISIVE = (
    'model',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'randomness',
    'train_dataloader',
    'val_dataloader',
)


@functools.cache
def _network_config(network: str) -> dict:
    """The settings in a network's config that a result depends on."""
    cfg = Config.fromfile(CONFIGS / f'{network}.py').to_dict()
    for name in ('train_dataloader', 'val_dataloader'):
        # Results do not depend on the path of the folder with the data.
        del cfg[name]['dataset']['data_root']
    return {name: cfg.get(name) for name in _DECISIVE}


@functools.cache
def fingerprint(trial: Trial) -> str:
    """A hash (twelve hexadecimal digits) of the trial's config, the version of the data
    and the config of the trial's base network."""
    cfg = copy.deepcopy(_network_config(trial.network))
    _tune(cfg, trial)
    parts = [data.VERSION, NUM_TRAIN, NUM_VAL, *(cfg[name] for name in _DECISIVE)]
    if trial.base:
        parts.append(fingerprint(trial.base))
    return digits(json.dumps(parts, sort_keys=True, default=str).encode())


def digits(content: bytes) -> str:
    """Twelve hexadecimal digits of the SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()[:12]


def trial_of(record: dict) -> Trial:
    """The trial that a record describes."""
    names = Trial.__dataclass_fields__.keys() & record.keys()
    return Trial(**{name: record[name] for name in names})


def read_records(path: str | Path = RECORDS) -> dict[str, dict]:
    """Read the records that were made with the current configs. The keys are the names
    of the trials. If the file is missing, there are no records.

    Raises:
        ValueError: A line is not a record.
    """
    records = {}
    for name, record in _all_records(path).items():
        trial = trial_of(record)
        config = CONFIGS / f'{trial.network}.py'
        if config.is_file() and record['config'] == fingerprint(trial):
            records[name] = record
    return records


def add_records(new: Iterable[dict], path: str | Path = RECORDS) -> None:
    """Write records into the file, in place of older records of the same trials. If the
    file is missing, it is made."""
    records = _all_records(path)
    records.update({trial_of(record).name: record for record in new})
    lines = [json.dumps(records[name]) + '\n' for name in sorted(records)]
    write_file(path, ''.join(lines))


def _all_records(path: str | Path) -> dict[str, dict]:
    records = {}
    text = Path(path).read_text(encoding='utf-8') if Path(path).exists() else ''
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(line)
            record['config']
            records[trial_of(record).name] = record
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'line {number} of {path} is not a record of a trial: remove it'
            ) from error
    return records
