import hashlib
import re
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
KERNELS = 'prm_mmdet/ops/csrc'

# MMEngine's pure-Python configs can only import modules, and a config's name has
# dashes. So each config gets a module, which MMEngine reads as a base.
MODULE = """\
# {name} under a name that can be imported. Written by setup.py.
globals().update(__import__('prm_mmdet').load_config({name!r}))
"""


class BuildWithConfigs(build_py):
    """Adds configs and tools to the package, as MMDetection does, in ``.mim``."""

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            return  # a checkout's own folders serve
        package = Path(self.build_lib) / 'prm_mmdet'
        for folder in ('.mim', 'configs'):
            shutil.rmtree(package / folder, ignore_errors=True)
        ignore = shutil.ignore_patterns('__pycache__', 'setup_env.py')
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, package / '.mim' / folder, ignore=ignore)
        shutil.copy(ROOT / 'configs' / 'model-index.yml', package / '.mim')
        for config in sorted((ROOT / 'configs').rglob('*.py')):
            name = config.relative_to(ROOT / 'configs')
            module = package / 'configs' / str(name).replace('-', '_')
            module.parent.mkdir(parents=True, exist_ok=True)
            module.write_text(MODULE.format(name=name.as_posix()), encoding='utf-8')


def long_description():
    """README without what a package index cannot show: pictures and linked files of the
    repository."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    text = re.sub(r'^!\[.*?\]\((?!https?:).*?\)\n', '', text, flags=re.M)
    return re.sub(r'\[([^]]+)\]\((?!https?:)[^)]+\)', r'\1', text)


def version():
    scope = {}
    exec((ROOT / 'prm_mmdet' / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


def cpu_kernels():
    """The library that prm_mmdet/ops/kernels.py loads. It contains no Python module and
    needs no torch. If it does not compile, the package installs without it."""
    if sys.platform == 'win32':  # the source relies on GCC's or Clang's attributes
        return []
    files = sorted((ROOT / KERNELS).iterdir())
    # kernels.py compares the hash: it never calls a library of other sources.
    content = b''.join(path.read_bytes() for path in files)
    source = hashlib.sha256(content).hexdigest()[:16]
    options = '-std=c++17 -O3 -g0 -fopenmp -fno-math-errno -fno-trapping-math'
    return [
        Extension(
            'prm_mmdet.ops._kernels',
            [f'{KERNELS}/{path.name}' for path in files if path.suffix == '.cpp'],
            depends=[f'{KERNELS}/{path.name}' for path in files],
            define_macros=[('SOURCE', f'"{source}"')],
            # OpenMP is not linked: its functions are those that torch has loaded.
            extra_compile_args=[*options.split(), '-Wno-psabi'],
            language='c++',
            optional=True,
        )
    ]


setup(
    name='prm_mmdet',
    version=version(),
    description='PRM, LCT and SAC attention blocks as plugins for MMDetection',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.9',
    packages=find_packages(include=['prm_mmdet', 'prm_mmdet.*']),
    package_data={'prm_mmdet.ops': ['csrc/*']},
    ext_modules=cpu_kernels(),
    # mmcv is left out as in MMDetection: a source build must be the user's choice.
    install_requires=[
        'filelock',
        'matplotlib',
        'mmdet>=3.2,<4',
        'mmengine>=0.10,<1',
        'numpy',
        'pillow',
        'pycocotools',
        'scipy',
        'torch>=2.0',
        'tqdm',
    ],
    cmdclass={'build_py': BuildWithConfigs},
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    zip_safe=False,
)
