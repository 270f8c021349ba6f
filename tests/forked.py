"""Run scripts in processes that have imported MMDetection already.

A new process imports MMDetection for about five seconds. Here, one server process
imports MMDetection, and each script runs in a fork of the server process.
"""

import multiprocessing
import os
import runpy
import sys
import warnings
from types import SimpleNamespace

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(
    [f'mmdet.{name}' for name in ('datasets', 'engine', 'evaluation', 'models')]
)


def run_script(arguments, cwd, env, output):
    """Run a Python script as its own process.

    Args:
        arguments (list[str]): The script and its arguments.
        cwd (Path): The current folder of the process.
        env (dict | None): Environment variables. None: those of this process.
        output (Path): A file for the output.

    Returns:
        SimpleNamespace: ``stdout``, with the errors, and ``returncode``.
    """
    environment = dict(os.environ if env is None else env)
    process = _CONTEXT.Process(target=_run, args=(arguments, cwd, environment, output))
    process.start()
    process.join()
    text = output.read_text('utf-8', 'replace')
    return SimpleNamespace(stdout=text, returncode=process.exitcode)


def _run(arguments, cwd, environment, output):
    assert 'prm_mmdet' not in sys.modules
    with output.open('w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter('ignore')
    sys.argv = arguments
    sys.path.insert(0, os.path.dirname(arguments[0]))
    runpy.run_path(arguments[0], run_name='__main__')
