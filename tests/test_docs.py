"""README and docs: code runs, commands and links exist."""

import re
import shlex
from pathlib import Path

import mmdet
import pytest
import torch
from conftest import ROOT
from mmdet.models import ResNet
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from prm_mmdet import SAC

PAGES = sorted(
    path
    for pattern in ('*.md', 'docs/**/*.md', 'projects/*/README.md')
    for path in ROOT.glob(pattern)
    if '_build' not in path.parts
)
TEXTS = {str(path.relative_to(ROOT)): path.read_text('utf-8') for path in PAGES}
MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'
OTHER_NETWORKS = TEXTS['docs/howto/other-networks.md']


def blocks(text, language):
    """Fenced blocks of a language, without the indentation of a list."""
    found = re.findall(rf'^( *)```{language}\n(.*?)^ *```', text, re.M | re.S)
    return [re.sub(rf'^{indent}', '', code, flags=re.M) for indent, code in found]


def cases(language):
    return [
        pytest.param(code, id=f'{page}-{i}')
        for page, text in TEXTS.items()
        for i, code in enumerate(blocks(text, language))
    ]


@pytest.mark.usefixtures('quiet_export')
@pytest.mark.parametrize('code', cases('python'))
def test_python_runs(code, tmp_path, monkeypatch):
    """A block without an import is a config."""
    monkeypatch.chdir(tmp_path)
    register_all_modules()
    if 'import' in code.replace('custom_imports', ''):
        exec(compile(code, 'page', 'exec'), {})
        return
    base = "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
    (tmp_path / 'my_config.py').write_text(base)
    (tmp_path / 'config.py').write_text(code)
    cfg = Config.fromfile(tmp_path / 'config.py')
    if 'model' in cfg:
        cfg.model.backbone.pop('init_cfg', None)
        names = [name for name, _ in MODELS.build(cfg.model).named_modules()]
        block = re.search(r'prm_mmdet\.(PRM|LCT|SAC)', code).group(1).lower()
        assert any(re.search(rf'\.{block}(_block)?$', name) for name in names)


def test_custom_keys_match_parameters():
    [code] = [c for c in blocks(TEXTS['docs/faq.md'], 'python') if 'custom_keys' in c]
    keys = Config.fromstring(code, '.py').optim_wrapper.paramwise_cfg.custom_keys
    plugins = [
        dict(cfg=dict(type=f'prm_mmdet.{block}', groups=4), position='after_conv3')
        for block in ('PRM', 'LCT')
    ]
    names = [n for n, _ in ResNet(50, plugins=plugins).named_parameters()]
    for key in keys:
        assert any(key in f'backbone.{name}' for name in names), key


def commands():
    """Each command line of the bash blocks: (page, words)."""
    for page, text in TEXTS.items():
        for code in blocks(text, 'bash'):
            for line in code.replace('\\\n', ' ').splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield page, words


def test_commands_exist():
    """Tools, their options, configs and make targets that the pages name."""
    makefile = (ROOT / 'Makefile').read_text()
    checked = 0
    for page, words in commands():
        where = f'{page}: {shlex.join(words)}'
        if words[0] == 'make':
            assert re.search(rf'^{words[1]}:', makefile, re.M), where
        folder = ROOT / 'projects/context_probes' if 'projects' in page else ROOT
        for word in words:
            if re.fullmatch(r'(configs|tools|projects|docs)/\S+\.(py|sh)', word):
                assert (folder / word).is_file() or (ROOT / word).is_file(), where
        if words[0] == 'python' and words[1].startswith('tools/'):
            source = (ROOT / words[1]).read_text()
            if words[1] in ('tools/train.py', 'tools/test.py'):
                source += (MMDET_TOOLS / words[1][6:]).read_text()
                source += ''.join(
                    path.read_text() for path in ROOT.glob('prm_mmdet/launch*/**/*.py')
                )
            if words[1] == 'tools/inspect_model.py':  # one of the two is required
                assert {'--split', '--images'} & {*words}, where
            for option in (word for word in words if word.startswith('--')):
                assert f"'{option}'" in source, f'{where}: no {option}'
            checked += 1
    assert checked > 20


def test_links_exist():
    """Relative links of pages, to files and to pages."""
    checked = 0
    for path in PAGES:
        text = re.sub(r'```.*?```', '', path.read_text('utf-8'), flags=re.S)
        for target in re.findall(r'\]\(([^)\s#]+)', text):
            if '://' not in target:
                assert (path.parent / target).exists(), f'{path}: {target}'
                checked += 1
    assert checked > 40


def test_plugged_config_trains_a_step(tmp_path):
    register_all_modules()
    config, _ = blocks(OTHER_NETWORKS, 'python')
    (tmp_path / 'config.py').write_text(config)
    cfg = Config.fromfile(tmp_path / 'config.py')
    cfg.model.backbone.model.init_cfg = None  # nothing to be downloaded
    model = MODELS.build(cfg.model)
    names = [name for name, m in model.named_modules() if isinstance(m, SAC)]
    assert names == [f'backbone.stage{s}.sac_block' for s in ('2.1', '3.1', '4.2')]
    model.init_weights()
    model.train()
    inputs = demo_mm_inputs(2, [(3, 64, 64)] * 2, num_classes=4)
    losses = model.train_step(inputs, build_optim_wrapper(model, cfg.optim_wrapper))
    assert losses['loss_cls'].isfinite()
    transform = model.backbone.stage4[2].sac_block.transform
    assert transform.weight.isfinite().all() and transform.weight.any()


def test_attach_plugins_call_gives_each_level_a_block(capsys):
    scope = {}
    exec(blocks(OTHER_NETWORKS, 'python')[1], scope)
    assert 'SAC(' in capsys.readouterr().out
    neck = scope['neck']
    maps = [torch.randn(1, c, 8, 8) for c in neck.in_channels]
    assert len(neck(maps)) == len(neck.sac_block) == 5


@pytest.mark.parametrize(
    'name', re.findall(r'^\| .* \| `(r?\'.*\')` \|$', OTHER_NETWORKS, re.M)
)
def test_names_of_modules_are_regular_expressions(name):
    re.compile(eval(name))
