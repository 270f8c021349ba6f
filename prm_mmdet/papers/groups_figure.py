"""PRM's Figure 4, accuracy by the number of groups, from runs of the table prm-fig4."""

from __future__ import annotations

import re
from pathlib import Path

from ..inspection.figure_files import check_png, save_png
from ..inspection.prm_figures import accuracy_by_groups
from .table_report import measured
from .tables import find_table

_DEFAULT_GROUPS = 64


def write_groups_figure(work_dirs: str, out: str) -> None:
    """Draw the top-1 accuracy of networks with PRM by the number of PRM's groups.

    The figure also shows the accuracy of the network without a block.

    Args:
        work_dirs: Folder of the runs. It has one folder for each config.
        out: The PNG file to write.

    Raises:
        ValueError: ``out`` is no .png file, or no run with PRM has been evaluated.
    """
    check_png(out)
    points, baseline = {}, None
    for row in find_table('prm-fig4').rows:
        accuracy = measured(work_dirs, row.config).get('top1')
        if accuracy is None:
            continue
        if row.config == row.baseline:
            baseline = accuracy
        else:
            found = re.search(r'-g(\d+)-', row.config)
            points[int(found.group(1)) if found else _DEFAULT_GROUPS] = accuracy
    if not points:
        first = Path(find_table('prm-fig4').rows[1].config).stem
        raise ValueError(
            f'{work_dirs} has no evaluated run of prm-fig4, such as {first}: run '
            'tools/reproduce.py prm-fig4 first'
        )
    save_png(accuracy_by_groups(points, baseline), out)
