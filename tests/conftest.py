import logging
import os
import runpy
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

# make test runs a process on each core. Their threads would compete for the cores.
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import torch
from hypothesis import settings

# A shell lets jobs in the background ignore SIGINT, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU, Triton kernels run in its interpreter. Triton asks when it is imported.
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'

# New examples at every run by hand, the same ones in CI.
settings.register_profile('ci', derandomize=True)
if os.environ.get('CI'):
    settings.load_profile('ci')

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(
    p.relative_to(ROOT / 'configs').as_posix()
    for p in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in p.parts
)


def pytest_runtest_setup(item):
    """A test may change MMEngine's default scope, which the next test would get."""
    if 'mmdet' in sys.modules:
        from mmengine.registry import init_default_scope

        init_default_scope('mmdet')


class Touch:
    """Unpickled in full, creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.fixture(scope='session')
def demo_data(tmp_path_factory):
    """A handful of generated images with boxes and masks."""
    # Imported here, because the tests of the operators must run without MMDetection.
    from prm_mmdet.datasets.demo import generate_demo

    root = tmp_path_factory.mktemp('demo')
    generate_demo(root, num_train=8, num_val=4, image_size=64)
    return root


@pytest.fixture(scope='session')
def demo_options(demo_data):
    """--cfg-options that train a demo config for two epochs on those images."""
    root = f'{demo_data}/'
    options = [f'val_evaluator.ann_file={root}annotations/instances_val.json']
    options += [f'test_evaluator.ann_file={root}annotations/instances_val.json']
    for loader in ('train', 'val', 'test'):
        options += [
            f'{loader}_dataloader.dataset.data_root={root}',
            f'{loader}_dataloader.num_workers=0',
            f'{loader}_dataloader.persistent_workers=False',
            f'{loader}_dataloader.batch_size=2',
        ]
    options += ['train_dataloader.dataset.indices=4']
    options += ['train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
    return ['--cfg-options', *options]


@pytest.fixture(scope='session')
def user_config(demo_data, tmp_path_factory):
    """A config file of another project: a detector and four training images."""
    from prm_mmdet.config import config_path

    loader = dict(
        batch_size=2,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(data_root=f'{demo_data}/'),
    )
    annotations = f'{demo_data}/annotations/instances_val.json'
    path = tmp_path_factory.mktemp('user') / 'my_config.py'
    path.write_text(
        f'_base_ = {config_path("demo/mask-rcnn_r50_fpn_demo.py")!r}\n'
        f'train_dataloader = dict(**{loader!r})\n'
        'train_dataloader["dataset"]["indices"] = 4\n'
        f'val_dataloader = {loader!r}\n'
        f'test_dataloader = {loader!r}\n'
        f'val_evaluator = dict(ann_file={annotations!r})\n'
        'test_evaluator = val_evaluator\n'
        'train_cfg = dict(max_epochs=2, val_interval=1)\n'
        # Masks of 100 objects would take most of the time.
        'model = dict(test_cfg=dict(rcnn=dict(max_per_img=10)))\n'
    )
    return path


@pytest.fixture(scope='session')
def user_cfg(user_config):
    from mmengine.config import Config

    return Config.fromfile(user_config)


@pytest.fixture(scope='module')
def unformatted_configs():
    """Writes configs without yapf's layout, which takes a second a detector."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            'mmengine.config.config.FormatCode',
            lambda text, **style: (text, True),
            raising=False,  # onedl-mmengine uses no yapf
        )
        yield


@pytest.fixture
def run_python(tmp_path, tmp_path_factory):
    """Run Python in another folder; returns what it printed, and its exit status.

    Tools, and code with ``fork=True``, run in a process that has imported MMDetection,
    but not this package.
    """

    def run(*arguments, cwd=tmp_path, env=None, check=True, fork=False):
        arguments = [*map(str, arguments)]
        if fork or Path(arguments[0]).parent.name == 'tools':
            from forked import run_script

            folder = tmp_path_factory.mktemp('run')
            if arguments[0] == '-c':
                (folder / 'code.py').write_text(arguments[1])
                arguments[:2] = [str(folder / 'code.py')]
            result = run_script(arguments, cwd, env, folder / 'output.txt')
        else:
            result = subprocess.run(
                [sys.executable, '-W', 'ignore', *arguments],
                cwd=cwd,
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        assert not check or result.returncode == 0, result.stdout[-6000:]
        return result

    return run


@pytest.fixture
def run_tool(monkeypatch):
    """Run a tool in this process, given the name of its file and its arguments."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')

    yield run
    logging.disable(logging.NOTSET)  # Some tools disable it.


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def quiet_export():
    """Without what torch says whenever TorchScript exports: that it is deprecated, and
    that sizes may become constants."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        warnings.simplefilter('ignore', DeprecationWarning)
        yield
