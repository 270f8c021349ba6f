"""MMDetection's train.py and test.py, with what they lack.

The scripts are MMDetection's own, found in the installed package, so that their flags
and habits are the ones users know. Only the Runner they build is replaced, by one that
looks for the data before it starts, and can train on CPU ranks.
"""

import atexit
import importlib.util
import os
import sys
from pathlib import Path
from urllib.error import URLError

import mmdet
import torch
import torch.distributed
from mmengine.logging import print_log
from mmengine.runner import Runner as MMEngineRunner

from . import compat


def run_tool(name):
    """Run one of MMDetection's scripts on the process's own command line.

    Args:
        name (str): 'train.py' or 'test.py'.

    Raises:
        FileNotFoundError: The installed MMDetection does not contain its tools.
    """
    path = Path(mmdet.__file__).parent / '.mim' / 'tools' / name
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} is missing: MMDetection {mmdet.__version__} was installed without '
            'its tools; install that release again with pip'
        )
    compat.hide_known_warnings()
    compat.load_weights_only()
    spec = importlib.util.spec_from_file_location(f'mmdet_{path.stem}', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.Runner = {'train.py': TrainRunner, 'test.py': TestRunner}[name]
    try:
        tool.main()
    except MissingInput as error:
        # Every rank stops, one of them says why.
        first = os.environ.get('LOCAL_RANK', '0') == '0'
        raise SystemExit(f'\nerror: {error}' if first else 1) from None
    if torch.distributed.is_initialized() and not torch.cuda.is_available():
        _leave()


def _leave():
    """End a CPU rank without finalising the interpreter: a thread of gloo that frees
    the last collective's tensor meanwhile aborts the process (seen in torch 2.13)."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


#: What a test ends with, by the metrics' names.
HEADLINES = {
    'coco/bbox_mAP': 'box AP',
    'coco/segm_mAP': 'mask AP',
    'accuracy/top1': 'top-1 accuracy',
    'accuracy/top5': 'top-5 accuracy',
}


class Runner(MMEngineRunner):
    """MMEngine's Runner that checks the data first and knows CPU ranks."""

    phases: tuple[str, ...] = ()  # whose data sets are looked for

    @classmethod
    def from_cfg(cls, cfg):
        check_data(cfg, *cls.phases)
        return super().from_cfg(cfg)

    def test(self):
        metrics = super().test()
        for name, label in HEADLINES.items():
            if name in metrics:
                print_log(f'{label} {metrics[name]:.3f}', 'current')
        return metrics

    def _init_model_weights(self):
        try:
            super()._init_model_weights()
        except (URLError, FileNotFoundError) as error:
            raise MissingInput(_how_to_get_weights(self.cfg, error)) from error

    def setup_env(self, env_cfg):
        # MMEngine's launcher selects a CUDA device; it leaves an open group alone.
        if self._launcher == 'pytorch' and not torch.cuda.is_available():
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg, model):
        # MMEngine's default wrapper, less the CUDA device that it names.
        if self.distributed and not torch.cuda.is_available():
            model_wrapper_cfg = model_wrapper_cfg or dict(
                type='MMDistributedDataParallel',
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False),
            )
            model_wrapper_cfg.setdefault('device_ids', None)
        return super().wrap_model(model_wrapper_cfg, model)


class TrainRunner(Runner):
    """The Runner of train.py."""

    phases = ('train', 'val')


class TestRunner(Runner):
    """The Runner of test.py."""

    phases = ('test',)


class MissingInput(FileNotFoundError):
    """A file that the config names cannot be had; the message says what to do."""


def check_data(cfg, *phases):
    """Look for the files that a config's data sets need.

    Args:
        cfg (Config): A whole config.
        phases (str): Of 'train', 'val' and 'test'.

    Raises:
        MissingInput: Names each missing file and how to point to the right place.
    """
    missing = []  # (path, setting that would change it)
    classifies = False
    for phase in phases:
        loader = cfg.get(f'{phase}_dataloader') or {}
        for key, dataset in _datasets(f'{phase}_dataloader', loader):
            classifies = classifies or dataset.get('type') == 'prm_mmdet.ImageNet'
            root = dataset.get('data_root') or ''
            prefixes = (dataset.get('data_prefix') or {}).values()
            for name in (dataset.get('ann_file'), *prefixes):
                if isinstance(name, str) and name:
                    path = os.path.join(root, name)
                    missing += _missing(path, f'{key}.data_root', dataset)
        evaluators = cfg.get(f'{phase}_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            path = evaluator.get('ann_file')
            if isinstance(path, str):
                missing += _missing(path, f'{phase}_evaluator.ann_file', evaluator)
    if not missing:
        return
    paths = list(dict.fromkeys(path for path, _ in missing))
    options = ' '.join(dict.fromkeys(f'{key}=...' for _, key in missing))
    if all('data/demo/' in path for path in paths):
        cure = 'Make the demo data with: python tools/make_demo_data.py'
    elif all('data/demo_classes/' in path for path in paths):
        cure = 'Make the demo data with: python tools/make_demo_data.py --classes 8'
    elif classifies:
        cure = (
            "This package's ImageNet configs take the folder that holds train/<wnid>/ "
            'and val/<wnid>/, or val/ and a file of labels named as ann_file, from '
            'IMAGENET=/path/to/imagenet/'
        )
    else:
        cure = (
            "This package's COCO configs take the folder that holds annotations/, "
            'train2017/ and val2017/ from MMDET_DATASETS=/path/to/coco/'
        )
    raise MissingInput(
        'the data set that the config names is not there. Missing, seen from '
        f'{os.getcwd()}:\n  ' + '\n  '.join(paths) + f'\n{cure}\n'
        f'Any config takes other places from --cfg-options {options}'
    )


def _missing(path, key, node):
    """[(path, key)] if a data set's or an evaluator's file is looked for on this disk
    and not there, else []."""
    backend = (node.get('backend_args') or {}).get('backend', 'local')
    if backend != 'local' or '://' in path or os.path.exists(path):
        return []
    return [(path, key)]


def _datasets(key, node):
    """Every data set below a data loader, wrapped ones included: (key, cfg) pairs."""
    if 'ann_file' in node or 'data_prefix' in node:
        yield key, node
    inner = [('dataset', node.get('dataset'))]
    inner += [(f'datasets.{i}', d) for i, d in enumerate(node.get('datasets') or [])]
    for name, child in inner:
        if isinstance(child, dict):
            yield from _datasets(f'{key}.{name}', child)


def _how_to_get_weights(cfg, error):
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    lines = []
    for key, name in _pretrained('model', cfg.get('model') or {}):
        url = compat.weights_url(name)
        if url:
            path = os.path.join(folder, url.rsplit('/', 1)[-1])
            lines.append(f'  {key}={name}: {url}\n    to be put at {path}')
        elif '://' not in name and not os.path.exists(name):
            lines.append(f'  {key}={name}\n    to be put at {os.path.abspath(name)}')
    return (
        f'pre-trained weights cannot be had ({getattr(error, "reason", error)}):\n'
        + '\n'.join(lines)
        + '\nOr say where a file is with --cfg-options ...init_cfg.checkpoint=FILE, or '
        'start from nothing with --cfg-options ...init_cfg=None (not with a block in '
        'c2, which is frozen: it wants a backbone that was pre-trained with it)'
    )


def _pretrained(key, node):
    """Every checkpoint that an ``init_cfg`` below a config names: (key, name) pairs."""
    if isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from _pretrained(f'{key}.{i}', child)
    if not isinstance(node, dict):
        return
    if isinstance(node.get('checkpoint'), str):  # its type is a name or a class
        yield f'{key}.checkpoint', node['checkpoint']
    for name, child in node.items():
        yield from _pretrained(f'{key}.{name}', child)
