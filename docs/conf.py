"""Configuration of the documentation site. ``make docs`` builds it."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

project = 'prm_mmdet'
author = 'the prm_mmdet developers'
copyright = author
version = re.search(r"'(.*)'", (ROOT / 'prm_mmdet/version.py').read_text()).group(1)
release = version

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
    'sphinx_design',
]
exclude_patterns = ['_build', 'requirements.txt', 'reference/_*']
myst_enable_extensions = ['dollarmath', 'colon_fence', 'deflist']
myst_heading_anchors = 3

html_theme = 'furo'
html_math_renderer = 'mathml'
html_title = f'prm_mmdet {version}'
html_static_path = []
copybutton_exclude = '.linenos, .gp'

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # the docstrings have the types
autodoc_inherit_docstrings = False
autodoc_default_options = {'show-inheritance': True}
napoleon_google_docstring = True
napoleon_use_rtype = False


def write_help(app):
    """Write what each tool prints for --help, which reference/command-lines shows."""
    folder = DOCS / 'reference' / '_help'
    folder.mkdir(exist_ok=True)
    tools = sorted(p for p in (ROOT / 'tools').glob('*.py') if p.stem != 'setup_env')
    environment = {**os.environ, 'COLUMNS': '88', 'NO_COLOR': '1'}

    def write(tool):
        result = subprocess.run(
            [sys.executable, '-W', 'ignore', str(tool), '--help'],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise RuntimeError(f'{tool.name} --help failed:\n{result.stderr}')
        (folder / f'{tool.stem}.txt').write_text(result.stdout, encoding='utf-8')

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, tools))


def write_configs(app):
    """Copy the READMEs of configs/ for reference/configs, without links to files that
    are not part of the site."""
    folder = DOCS / 'reference' / '_configs'
    folder.mkdir(exist_ok=True)
    for readme in (ROOT / 'configs').glob('*/README.md'):
        text = readme.read_text(encoding='utf-8')
        text = re.sub(r'\[([^]]+)\]\((?!https?:)[^)]+\)', r'`\1`', text)
        (folder / f'{readme.parent.name}.md').write_text(text, encoding='utf-8')


def write_inline_math(translator, node):
    translator.body.append(tex2mathml(node.astext()))
    raise SkipNode


def write_display_math(translator, node):
    translator.body.append(tex2mathml(node.astext(), as_block=True))
    raise SkipNode


def setup(app):
    # MathJax, the default, is loaded from the network whenever a page is opened.
    app.add_html_math_renderer(
        'mathml', (write_inline_math, None), (write_display_math, None)
    )
    app.connect('builder-inited', write_help)
    app.connect('builder-inited', write_configs)
