"""MMDetection's train.py and test.py, run with this package's Runner.

The scripts are MMDetection's own, found in the installed package, so that users find
the flags and the behaviour that they know. Only the Runner that they build is replaced.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import os
import sys
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NoReturn

import mmdet
import torch
import torch.distributed

from .. import compat
from . import processes
from .run_errors import RunError
from .runner import TestRunner, TrainRunner

ALLOW_PARTIAL = """load weights that lack some of the model's, or hold others; what is
missing keeps its initial values. Without this flag, only a training that starts from
weights (load_from) may lack plugin blocks and layers of another number of classes"""


def run_tool(name: str) -> None:
    """Run one of MMDetection's scripts with the command line of this process.

    Args:
        name: 'train.py' or 'test.py'.

    Raises:
        FileNotFoundError: The installed MMDetection does not contain its tools.
        SystemExit: The run cannot start or go on. The exception's message says why.
    """
    path = Path(mmdet.__file__).parent / '.mim' / 'tools' / name
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} is missing: MMDetection {mmdet.__version__} was installed without '
            'its tools; install that release again with pip'
        )
    processes.end_with_torchrun()
    compat.hide_known_warnings()
    compat.load_weights_only()
    loader = SourceFileLoader(f'mmdet_{path.stem}', str(path))
    tool: Any = types.ModuleType(loader.name)
    loader.exec_module(tool)
    runner = {'train.py': TrainRunner, 'test.py': TestRunner}[name]

    class Parser(argparse.ArgumentParser):
        """Parser of MMDetection's script, with one more flag: ``--allow-partial``."""

        def parse_args(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore
            self.add_argument(
                '--allow-partial', action='store_true', help=ALLOW_PARTIAL
            )
            parsed = super().parse_args(*args, **kwargs)
            if not Path(parsed.config).is_file():
                self.error(f'{parsed.config} is not a file; name a config file')
            path = getattr(parsed, 'checkpoint', '')
            if path and '://' not in path and not Path(path).is_file():
                self.error(f'{path} is no file; name a checkpoint file')
            runner.allow_partial = parsed.allow_partial
            if getattr(parsed, 'resume', None) == 'auto':
                # If --resume has no path, MMDetection sets load_from to None. But if
                # there is no checkpoint, the training needs the config's load_from. So
                # MMDetection does not see the flag, and TrainRunner resumes.
                runner.auto_resume = True
                parsed.resume = None
            return parsed

    tool.argparse = types.SimpleNamespace(ArgumentParser=Parser)
    tool.Runner = runner
    try:
        tool.main()
    except KeyboardInterrupt:
        if processes.rank() == 0:
            again = ' To go on, add --resume.' if name == 'train.py' else ''
            print(f'\ninterrupted.{again}', file=sys.stderr)
        raise SystemExit(130) from None
    except RunError as error:
        _stop(f'{error}')
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _stop(f'{error}: free some space and run the same command again')
    if torch.distributed.is_initialized() and not torch.cuda.is_available():
        _leave()


def _stop(message: str) -> NoReturn:
    """Exit with an error message. Only rank 0 prints the message."""
    # Remove the traceback with which the message of a data worker's error begins.
    message = message.rpartition('RunError: ')[2].strip()
    raise SystemExit(f'\nerror: {message}' if processes.rank() == 0 else 1) from None


def _leave() -> None:
    """Exit a rank on the CPU without Python's clean-up. During the clean-up, a thread
    of gloo may free the tensor of the last collective operation and abort the process
    (seen in torch 2.13)."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
