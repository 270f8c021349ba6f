"""Format the benchmark's records (dicts of measurements) as text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .block_costs import COMPILED, LEARNT, LIMIT, OURS, PLAIN
from .measure import Spread


def columns(rows: Sequence[Sequence[str]]) -> str:
    """A table's rows as text. The first column is aligned left, all others right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        lines.append('  '.join([first.ljust(widths[0]), *cells]).rstrip())
    return '\n'.join(lines) + '\n'


def block_table(records: Sequence[Mapping[str, Any]]) -> str:
    """One table of all records of :func:`.block_costs.measure_blocks`."""
    rows = [['block, map', 'pass', 'ours ms', 'x*gate ms', 'plain ms', 'compiled ms']]
    rows[0] += ['/ x*gate', '/ learnt', '/ plain', '/ compiled', 'both compiled']
    rows[0] += ['floors', 'MB']
    for record in records:
        seconds, ratios = record['seconds'], record['ratios']
        forms = (LIMIT, PLAIN, PLAIN + COMPILED)
        shape = ' x '.join(map(str, record['shape']))
        rows.append(
            [
                f'{record["block"]} {record["stage"]} {shape}',
                record['pass'],
                *(milliseconds(seconds.get(name)) for name in (OURS, *forms)),
                spread(ratios[LIMIT]),
                f'{ratios[LEARNT]["median"]:.2f}',
                *(spread(ratios.get(name)) for name in forms[1:]),
                spread(record['both_compiled']),
                f'{record["floor"]["median"]:.2f}',
                f'{record["memory"][OURS] / 1e6:.0f}',
            ]
        )
    return columns(rows)


BLOCK_LEGEND = """\
Each cell is a median. In parentheses are quartiles of the ratios within rounds.
ours: this package's operator, whose ratios are '/ ...'. step: forward and backward.
forward: inference. x*gate: product with a given number a channel. learnt: the same
with the gradient of these numbers. plain: the block's equations in vectorised PyTorch.
compiled: plain under torch.compile. both compiled: ours compiled / plain compiled.
floors: time of ours / time to copy the bytes that the pass must read and write.
MB: peak memory of ours beyond its input, in 10^6 bytes.
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
            row.append(spread(record['ratios'][kind], 3))
        row.append(f'{record["memory"] / 1e6:.0f}')
        counted = record['multiply_adds']
        row.append('' if counted is None else f'{counted / 1e9:.2f}')
        rows.append(row)
    return columns(rows)


def milliseconds(times: Sequence[float] | None) -> str:
    """Median of ``times`` (in seconds), as text in milliseconds. If ``times`` is None,
    the text is empty."""
    return '' if times is None else f'{1e3 * Spread.of(times).median:.2f}'


def spread(values: Mapping[str, float] | None, digits: int = 2) -> str:
    """A median and its quartiles as text, such as '1.02 (0.99-1.05)'. If ``values`` is
    None, the text is empty. ``digits`` is the number of decimals."""
    if values is None:
        return ''
    median, low, high = (f'{values[k]:.{digits}f}' for k in ('median', 'low', 'high'))
    return f'{median} ({low}-{high})'
