"""The benchmark's records as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .block_costs import COMPILED, LIMIT, OURS, PLAIN
from .measure import Spread


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of aligned columns, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        lines.append('  '.join([first.ljust(widths[0]), *cells]).rstrip())
    return '\n'.join(lines) + '\n'


def block_table(records: Sequence[Mapping[str, Any]]) -> str:
    """One table of all records of :func:`.block_costs.measure_blocks`."""
    head = [
        *('block, map', 'pass', 'ours ms', 'x*gate ms', 'plain ms', 'compiled ms'),
        *('ours / x*gate', 'ours / plain', 'ours / compiled', 'both compiled'),
        *('floors', 'ours MB', 'x*gate MB'),
    ]
    rows = [head]
    for record in records:
        seconds, ratios = record['seconds'], record['ratios']
        names = (LIMIT, PLAIN, PLAIN + COMPILED)
        shape = ' x '.join(map(str, record['shape']))
        rows.append(
            [
                f'{record["block"]} {record["stage"]} {shape}',
                record['pass'],
                *(milliseconds(seconds.get(name)) for name in (OURS, *names)),
                *(spread(ratios.get(name)) for name in names),
                spread(record['both_compiled']),
                f'{record["floor"]["median"]:.2f}',
                *(f'{record["memory"][name] / 1e6:.0f}' for name in (OURS, LIMIT)),
            ]
        )
    return columns(rows)


BLOCK_LEGEND = """\
Each cell is a median; in parentheses: quartiles of the ratios within rounds.
ours: this package's operator. plain: the same equations in vectorised PyTorch.
compiled: plain under torch.compile. both compiled: ours compiled / plain compiled.
step: forward and backward. forward: inference.
floors: time of ours / time to copy the bytes that the pass must read and write.
"""


def network_table(records: Sequence[Mapping[str, Any]]) -> str:
    """One table of all records of :mod:`.network_costs`."""
    kinds = list(dict.fromkeys(kind for r in records for kind in r['seconds']))
    head = ['block']
    for kind in kinds:
        head += [f'{kind} ms', f'{kind} / none']
    rows = [[*head, 'memory MB', 'multiply-adds G']]
    for record in records:
        row = [record['name']]
        for kind in kinds:
            row.append(milliseconds(record['seconds'][kind]))
            row.append(spread(record['ratios'][kind]))
        row.append(f'{record["memory"] / 1e6:.0f}')
        counted = record['multiply_adds']
        row.append('' if counted is None else f'{counted / 1e9:.2f}')
        rows.append(row)
    return columns(rows)


def milliseconds(times: Sequence[float] | None) -> str:
    """The median of times in seconds, or nothing for None."""
    return '' if times is None else f'{1e3 * Spread.of(times).median:.2f}'


def spread(values: Mapping[str, float] | None) -> str:
    """A spread as text, or nothing for None."""
    if values is None:
        return ''
    return f'{values["median"]:.3f} ({values["low"]:.3f}-{values["high"]:.3f})'
