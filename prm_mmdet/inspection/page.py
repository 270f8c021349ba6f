"""One HTML page that holds its figures."""

import base64
import html
import os
import re
from dataclasses import dataclass

from ..files.atomic import write_file
from .figure_files import png

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; background: #fff; }
figure { margin: 0 0 2.5rem; }
img { max-width: 100%; height: auto; }
figcaption { max-width: 50rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
"""


@dataclass
class Entry:
    """A figure on the page: the name of its file, a heading, a caption, the Figure."""

    name: str
    heading: str
    caption: str
    figure: object


def write_page(folder, title, facts, entries):
    """Write each figure as ``<name>.png``, and ``index.html`` with all of them in it,
    which needs no other file. Files are replaced whole; pictures that only the page of
    an earlier run shows are removed.

    Args:
        folder (str): Where to; made if it is missing.
        title (str): Of the page.
        facts (dict): What stands under the title: names to values.
        entries (list[Entry]): The figures.

    Returns:
        int: Bytes of the page.
    """
    items = ''.join(
        f'<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>\n'
        for name, value in facts.items()
    )
    parts = []
    for entry in entries:
        picture = png(entry.figure)
        write_file(f'{folder}/{entry.name}.png', picture)
        heading, caption = html.escape(entry.heading), html.escape(entry.caption)
        source = base64.b64encode(picture).decode()
        parts.append(
            f'<figure id="{html.escape(entry.name)}">\n<h2>{heading}</h2>\n'
            f'<img alt="{heading}" src="data:image/png;base64,{source}">\n'
            f'<figcaption>{caption}</figcaption>\n</figure>\n'
        )
    title = html.escape(title)
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f'<h1>{title}</h1>\n<dl>\n{items}</dl>\n{"".join(parts)}</body>\n</html>\n'
    ).encode(errors='replace')  # names of files can be any bytes
    before = _shown(f'{folder}/index.html')
    write_file(f'{folder}/index.html', page)
    for name in before - {entry.name for entry in entries}:
        if os.path.exists(f'{folder}/{name}.png'):
            os.remove(f'{folder}/{name}.png')
    return len(page)


def _shown(path):
    """Names of the figures on a page that is there."""
    if not os.path.exists(path):
        return set()
    with open(path, encoding='utf-8', errors='replace') as file:
        return set(re.findall(r'^<figure id="(\w+)">$', file.read(), re.MULTILINE))
