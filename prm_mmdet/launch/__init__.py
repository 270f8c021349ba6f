"""Training and testing with MMDetection's scripts, checked and made resumable."""

from .data_files import MissingInput, check_data
from .run_errors import RunError
from .runner import Runner, TestRunner, TrainRunner
from .tool import run_tool

__all__ = [
    'MissingInput',
    'RunError',
    'Runner',
    'TestRunner',
    'TrainRunner',
    'check_data',
    'run_tool',
]
