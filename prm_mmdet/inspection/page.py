"""Write figures as PNG files and as one HTML page."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

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
    """A figure on the page."""

    name: str  # name of its PNG file, without .png
    heading: str
    caption: str
    figure: Figure


def write_page(
    folder: str | Path,
    title: str,
    facts: Mapping[str, Any],
    entries: Sequence[Entry],
) -> int:
    """Write each figure as ``<name>.png``, and all figures into ``index.html``.

    The page contains its pictures, so it needs no other file. If the folder has a page
    of an earlier run, pictures that only the earlier page shows are removed.

    Args:
        folder: Where the files are written. The folder is made if it is missing.
        title: Title of the page.
        facts: Names and values of a list below the title.
        entries: The figures.

    Returns:
        Size of the page in bytes.
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
    # A file name can have characters that UTF-8 cannot encode. The page shows "?".
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f'<h1>{title}</h1>\n<dl>\n{items}</dl>\n{"".join(parts)}</body>\n</html>\n'
    ).encode(errors='replace')
    before = _shown(f'{folder}/index.html')
    write_file(f'{folder}/index.html', page)
    for name in before - {entry.name for entry in entries}:
        if os.path.exists(f'{folder}/{name}.png'):
            os.remove(f'{folder}/{name}.png')
    return len(page)


def _shown(path):
    """Names of the figures on a page, none if there is no page."""
    if not os.path.exists(path):
        return set()
    with open(path, encoding='utf-8', errors='replace') as file:
        return set(re.findall(r'^<figure id="(\w+)">$', file.read(), re.MULTILINE))
