"""Make an environment in this checkout with the versions that requirements/ pins.

"make" calls it. Run it again after an interruption: finished steps are not done twice,
and mmcv's compilation goes on where it stopped. The wheel of mmcv is kept in the user's
cache (XDG_CACHE_HOME, or ~/.cache) for the next checkout.
"""

import argparse
import concurrent.futures
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
COMMON = ROOT / 'requirements' / 'common.txt'
KERNELS = ROOT / 'prm_mmdet' / 'ops' / 'csrc'
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'prm_mmdet'
CSRC = 'mmcv/ops/csrc/pytorch'
BUILD_TOOLS = ('torch', 'numpy', 'packaging', 'setuptools', 'wheel', 'ninja', 'psutil')


def main():
    if sys.version_info[:2] != (3, 11):
        sys.exit(
            f'error: {COMMON.parent.name}/ is pinned for Python 3.11, and this is '
            f'{sys.version.split()[0]}; name another with "make PYTHON=python3.11"'
        )
    args = parse_args()
    requirements = COMMON.with_name(f'{args.stack}.txt')
    venv = ROOT / args.venv
    stamp = venv / 'complete'
    files = [COMMON, requirements, ROOT / 'setup.py', *sorted(KERNELS.iterdir())]
    inputs = b''.join(path.read_bytes() for path in files)
    state = f'{sys.version}\n{hashlib.sha256(inputs).hexdigest()}\n'
    python = venv / 'bin' / 'python'
    if stamp.is_file() and stamp.read_text() == state and serves_this_checkout(python):
        return
    started = time.monotonic()
    say(f'setting up {venv} (once)')
    run(sys.executable, '-m', 'venv', venv)
    say('installing torch and what builds mmcv')
    pip(python, 'install', '-c', COMMON, '-c', requirements, *BUILD_TOOLS)
    # Run pip and the compiler at the same time. pip needs the network and little CPU.
    with concurrent.futures.ThreadPoolExecutor(1) as background:
        wheel = background.submit(mmcv_wheel, python, requirements)
        say('installing the other dependencies')
        pip(python, 'install', '--no-deps', *pins_without_mmcv(COMMON, requirements))
        pip(python, 'install', '--no-deps', wheel.result())
    # All packages are installed already. pip only checks that the pinned versions fit
    # together.
    pip(python, 'install', '-r', COMMON, '-r', requirements)
    pip(python, 'install', '--no-deps', '--no-build-isolation', '--editable', ROOT)
    run(python, '-W', 'ignore', '-c', 'import mmcv.ops, prm_mmdet')
    stamp.write_text(state)
    say(f'set-up done in {(time.monotonic() - started) / 60:.1f} minutes')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    stacks = {path.stem for path in COMMON.parent.glob('*.txt')} - {COMMON.stem}
    parser.add_argument('stack', choices=sorted(stacks), help='whose versions')
    parser.add_argument('venv', help='the folder, in this checkout')
    return parser.parse_args()


def serves_this_checkout(python):
    """Whether the environment imports prm_mmdet from this checkout."""
    question = 'from importlib.util import find_spec as f; print(f("prm_mmdet").origin)'
    answer = subprocess.run([python, '-c', question], capture_output=True, text=True)
    return answer.stdout.strip() == str(ROOT / 'prm_mmdet' / '__init__.py')


def pins_without_mmcv(*files):
    """Every ``name==version`` in requirements files, except mmcv's."""
    text = '\n'.join(file.read_text() for file in files)
    return [p for p in re.findall(r'^\S+==\S+', text, re.M) if 'mmcv' not in p]


def mmcv_wheel(python, requirements):
    """Path of a wheel of mmcv for this Python and torch. It is built if it is
    missing."""
    pin = re.search(r'^(\S*mmcv)==(\S+)$', requirements.read_text(), re.M)
    package, version = pin.groups()
    question = (
        'import platform, torch; print(torch.__version__, "cuda" if '
        'torch.cuda.is_available() else "cpu", platform.machine(), sep="-")'
    )
    # Compiled code fits one version of torch, so the folder's name contains it.
    torch = subprocess.check_output([python, '-c', question], text=True).strip()
    folder = CACHE / f'{package}-{version}-cp311-torch-{torch}'
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / 'lock'):
        wheels = list(folder.glob('*.whl'))
        if wheels:
            say(f'using the wheel in {folder}')
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
                f'compiler; install the CUDA toolkit of the version in {torch!r}, or '
                'hide the GPU: make CUDA_VISIBLE_DEVICES='
            )
        return build_mmcv(python, package, version, folder)


def build_mmcv(python, package, version, folder):
    source = folder / f'{package.replace("-", "_")}-{version}'
    log, built = folder / 'build.log', folder / 'built'
    if not source.is_dir():
        options = ['--no-deps', '--no-build-isolation', f'--no-binary={package}']
        pip(python, 'download', *options, '--dest', folder, f'{package}=={version}')
        unpack_mmcv(folder, source, merged=True)
    say('compiling mmcv: some minutes, once for this machine')
    status = compile_mmcv(python, source, log, built)
    if status and re.search(r':\d+:\d+: error: ', log.read_text(errors='replace')):
        say('the merged files of mmcv do not compile here; compiling file by file')
        unpack_mmcv(folder, source, merged=False)
        status = compile_mmcv(python, source, log, built)
    if status:
        tail = ''.join(log.open(errors='replace').readlines()[-30:])
        sys.exit(f'{tail}\nerror: mmcv did not compile; the whole log is {log}')
    wheel = next(built.glob('*.whl'))
    wheel = wheel.rename(folder / wheel.name)
    shutil.rmtree(source)
    return wheel


def unpack_mmcv(folder, source, merged):
    """Unpack the downloaded archive. The folder ``source`` appears when its content is
    complete, so an interruption does no harm."""
    unpacked = folder / 'unpacked'
    shutil.rmtree(source, ignore_errors=True)
    shutil.unpack_archive(next(folder.glob('*.tar.gz')), unpacked)
    if merged:
        merge_sources(unpacked / source.name)
    (unpacked / source.name).rename(source)


def compile_mmcv(python, source, log, built):
    """Compile mmcv, and return the exit status. The output goes to the file ``log``."""
    # Python's own flags are -g -O3. Without debug information and at -O2, mmcv's files
    # compile in about half the time. The compiler obeys the last flag it reads, and
    # CFLAGS come after Python's flags.
    cflags = f'-g0 -O2 {os.environ.get("CFLAGS", "")}'
    # To compile a merged file (merge_sources), a job takes 1.1 GB of memory. If memory
    # is short, set MAX_JOBS.
    jobs = os.environ.get('MAX_JOBS') or str(os.cpu_count())
    env = dict(os.environ, MMCV_WITH_OPS='1', CFLAGS=cflags, MAX_JOBS=jobs)
    # pip builds in the folder that it is given. So ninja finds the files that were
    # compiled before.
    command = [python, '-m', 'pip', 'wheel', '-v', '--no-deps', '--no-build-isolation']
    command += ['--wheel-dir', built, source]
    with heartbeat(source), log.open('w') as output:
        return subprocess.call(command, env=env, stdout=output, stderr=output)


def merge_sources(source, parts=6):
    """Write ``parts`` C++ files that include most of mmcv's C++ files.

    Most of the compile time of an mmcv file goes into torch's headers. With merged
    files, the headers are read a few times instead of 77 times. Files that define
    macros or types could clash with one another, so they are compiled alone.
    """
    csrc = source / CSRC
    merged = []
    for path in sorted([*csrc.glob('*.cpp'), *csrc.glob('cpu/*.cpp')]):
        defines = re.search(r'^\s*(#define|struct|class)\b', path.read_text(), re.M)
        if path.stem != 'pybind' and not defines:
            # mmcv's setup.py compiles every *.cpp. Rename the file, so that it is only
            # compiled as a part of a merged file.
            merged.append(path.rename(path.with_suffix('.inc')))
    for i in range(parts):
        included = [path.relative_to(csrc).as_posix() for path in merged[i::parts]]
        text = ''.join(f'#include "{name}"\n' for name in included)
        (csrc / f'merged_{i}.cpp').write_text(text)


@contextlib.contextmanager
def heartbeat(source):
    """Print the compiler's progress every half minute."""
    done = threading.Event()
    started = time.monotonic()
    csrc = source / CSRC
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


def pip(python, command, *arguments):
    run(python, '-m', 'pip', command, '--quiet', *arguments)


def run(*command):
    command = [str(part) for part in command]
    if subprocess.call(command):
        sys.exit(
            f'error: "{" ".join(command)}" failed; mend the cause above and run the '
            'same command again'
        )


def say(text):
    print(f'[set-up] {text}', flush=True)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('\n[set-up] interrupted; run the same command again to go on')
