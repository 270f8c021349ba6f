"""Run experiments of many trainings. Each training can be resumed, and has a file with
its results."""

from .cells import Cell, state, write_config
from .launchers import Launch
from .records import read_record
from .runner import Outcome, plan, run_cells

__all__ = [
    'Cell',
    'Launch',
    'Outcome',
    'plan',
    'read_record',
    'run_cells',
    'state',
    'write_config',
]
