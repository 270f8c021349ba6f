"""Make .venv in this checkout, with what requirements.txt pins. ``make`` calls it.

Run it again after an interruption: finished steps are not done twice, and mmcv's
compilation goes on where it stopped. The wheel of mmcv is kept in the user's cache
(XDG_CACHE_HOME, or ~/.cache) for the next checkout.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
REQUIREMENTS = ROOT / 'requirements.txt'
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'prm_mmdet'
BUILD_TOOLS = ('torch', 'numpy', 'setuptools', 'wheel', 'ninja', 'psutil')


def main():
    if sys.version_info[:2] != (3, 11):
        sys.exit(
            f'error: {REQUIREMENTS.name} is pinned for Python 3.11, and this is '
            f'{sys.version.split()[0]}; name another with "make PYTHON=python3.11"'
        )
    stamp = VENV / 'complete'
    inputs = REQUIREMENTS.read_bytes() + (ROOT / 'setup.py').read_bytes()
    state = f'{sys.version}\n{hashlib.sha256(inputs).hexdigest()}\n'
    if stamp.is_file() and stamp.read_text() == state and serves_this_checkout():
        return
    started = time.monotonic()
    say(f'setting up {VENV} (once)')
    run(sys.executable, '-m', 'venv', VENV)
    say('installing torch and what builds mmcv')
    pip('install', '--constraint', REQUIREMENTS, *BUILD_TOOLS)
    wheel = mmcv_wheel()
    say('installing the other dependencies')
    pip('install', '--no-deps', wheel)
    pip('install', '--requirement', REQUIREMENTS)
    pip('install', '--no-deps', '--no-build-isolation', '--editable', ROOT)
    run(PYTHON, '-W', 'ignore', '-c', 'import mmcv.ops, prm_mmdet')
    stamp.write_text(state)
    say(f'set-up done in {(time.monotonic() - started) / 60:.1f} minutes')


def serves_this_checkout():
    """Whether the environment's prm_mmdet is this one, not a copy installed since."""
    question = (
        'from importlib.util import find_spec; print(find_spec("prm_mmdet").origin)'
    )
    answer = subprocess.run([PYTHON, '-c', question], capture_output=True, text=True)
    return answer.stdout.strip() == str(ROOT / 'prm_mmdet' / '__init__.py')


def mmcv_wheel():
    """Path of a wheel of mmcv for this Python and torch; built if there is none."""
    version = re.search(r'^mmcv==(\S+)$', REQUIREMENTS.read_text(), re.M).group(1)
    question = (
        'import platform, torch; print(torch.__version__, "cuda" if '
        'torch.cuda.is_available() else "cpu", platform.machine(), sep="-")'
    )
    # Compiled code fits one version of torch: the folder's name says which.
    answer = subprocess.run(
        [PYTHON, '-c', question], check=True, capture_output=True, text=True
    )
    folder = CACHE / f'mmcv-{version}-cp311-torch-{answer.stdout.strip()}'
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / 'lock'):
        wheels = list(folder.glob('*.whl'))
        if wheels:
            say(f'using the mmcv wheel in {folder}')
            return wheels[0]
        if not (shutil.which('c++') or shutil.which('g++')):
            sys.exit(
                'error: mmcv must be compiled, and there is no C++ compiler; '
                'install one (on Debian and Ubuntu: apt-get install g++)'
            )
        if '-cuda-' in folder.name and not (
            shutil.which('nvcc') or os.environ.get('CUDA_HOME')
        ):
            sys.exit(
                'error: mmcv must be compiled for the GPU, and there is no CUDA '
                'compiler; install the CUDA toolkit of the version in '
                f'{answer.stdout.strip()!r}, or hide the GPU: '
                'make CUDA_VISIBLE_DEVICES='
            )
        return build_mmcv(version, folder)


def build_mmcv(version, folder):
    source = folder / f'mmcv-{version}'
    if not source.is_dir():
        pip(
            *('download', '--no-deps', '--no-build-isolation', '--no-binary=mmcv'),
            *('--dest', folder, f'mmcv=={version}'),
        )
        unpacked = folder / 'unpacked'
        shutil.unpack_archive(next(folder.glob('*.tar.gz')), unpacked)
        (unpacked / source.name).rename(source)
    say('compiling mmcv: about ten minutes on two cores, once for this machine')
    log = folder / 'build.log'
    built = folder / 'built'
    with heartbeat(source), log.open('w') as output:
        # A folder is built in place, so that ninja finds what was compiled before.
        result = subprocess.run(
            [
                *(PYTHON, '-m', 'pip', 'wheel', '-v', '--no-deps'),
                *('--no-build-isolation', '--wheel-dir', built, source),
            ],
            env={**os.environ, 'MMCV_WITH_OPS': '1'},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if result.returncode:
        tail = ''.join(log.open(errors='replace').readlines()[-30:])
        sys.exit(f'{tail}\nerror: mmcv did not compile; the whole log is {log}')
    wheel = next(built.glob('*.whl'))
    wheel = wheel.rename(folder / wheel.name)
    shutil.rmtree(source)
    return wheel


@contextlib.contextmanager
def heartbeat(source):
    """Say every half minute how far the compiler is."""
    done = threading.Event()
    started = time.monotonic()
    csrc = source / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    total = len([*csrc.glob('*.cpp'), *csrc.glob('cpu/*.cpp')])

    def beat():
        while not done.wait(30):
            objects = sum(1 for _ in (source / 'build').rglob('*.o'))
            minutes = (time.monotonic() - started) / 60
            say(f'compiling mmcv: {objects} of {total} files, {minutes:.1f} minutes')

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def locked(path):
    """Let one set-up at a time build in a folder."""
    with path.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('another set-up is building mmcv; waiting for it')
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pip(command, *arguments):
    run(PYTHON, '-m', 'pip', command, '--quiet', *arguments)


def run(*command):
    result = subprocess.run([str(part) for part in command])
    if result.returncode:
        sys.exit(
            f'error: "{" ".join(str(part) for part in command)}" failed; '
            'mend the cause above and run the same command again'
        )


def say(text):
    print(f'[set-up] {text}', flush=True)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('\n[set-up] interrupted; run the same command again to go on')
