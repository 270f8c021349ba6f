"""A table of a paper as data, and a function that reads such a table from text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One row of a table: a config and the numbers that the paper prints for it."""

    config: str  # path below configs/
    # Config of the row to which gains are relative. For a baseline, its own config.
    baseline: str
    cells: Mapping[str, float]  # the paper's numbers, by the column's name


@dataclass(frozen=True)
class Counting:
    """How a paper counted the parameters and multiply-adds of a table.

    Args:
        size: Height and width of the input, in pixels.
        trainable: Whether frozen parameters are left out. Default: False.
        every_layer: Whether every kind of layer in the whole network counts, as in the
            tool ptflops. This includes batch normalisation (two operations an
            element), activations, pooling and biases of convolutions. If False, only
            convolutions, linear layers and the blocks' pooling in the backbone count,
            and FLOPs are compared as differences to the baseline. Default: False.
    """

    size: tuple[int, int]
    trainable: bool = False
    every_layer: bool = False


@dataclass(frozen=True)
class Table:
    """One table of a paper."""

    key: str  # paper and number of the table, such as 'sac-V'
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    # How the paper counted parameters and FLOPs. None if the table prints neither.
    counting: Counting | None = None
    # Reasons why a printed number cannot be compared, by (config, column).
    remarks: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def baseline(self, row: Row) -> Row:
        """The row to which the gains of ``row`` are relative."""
        return next(r for r in self.rows if r.config == row.baseline)

    def digits(self, column: str) -> int:
        """Number of decimal places that the paper prints in a column."""
        cells = (row.cells[column] for row in self.rows if column in row.cells)
        return max((len(f'{cell}'.partition('.')[2]) for cell in cells), default=0)

    @property
    def folder(self) -> str:
        """The folder of the table's configs, below ``configs/``."""
        return self.rows[0].config.partition('/')[0]


def read_table(
    key: str,
    title: str,
    columns: str,
    path: tuple[str, str],
    text: str,
    counting: Counting | None = None,
    remarks: Mapping[tuple[str, str], str] | None = None,
    baselines: bool = True,
) -> Table:
    """Read a table from lines such as ``name | 37.3 - 40.3``.

    A line has the name of a row and a number for each column. ``-`` means that the
    paper prints no number. An empty line ends a group of rows. A recipe (the part of
    the config's name about the training, such as ``4xb2-1x``) may follow the name of a
    row: ``name recipe | 37.3``.

    Args:
        key: Key of the table.
        title: Title of the table.
        columns: Names of the columns, separated by spaces.
        path: Two texts. The first is the path of a row's config, with ``{name}`` and
            ``{recipe}`` in it. The second is the recipe of rows that name no recipe.
        text: The lines.
        counting: How the paper counted parameters and FLOPs. Default: None.
        remarks: Reasons why a printed number cannot be compared, by (name of the row,
            column). Default: none.
        baselines: Whether the first row of a group is the baseline of the group. If
            False, rows have no gains. Default: True.

    Raises:
        ValueError: A line does not have one number for each column.
    """
    pattern, recipe = path
    names = tuple(columns.split())
    rows, remarked = [], {}
    for group in text.strip().split('\n\n'):
        baseline = None
        for line in group.splitlines():
            name, _, numbers = line.partition('|')
            name, _, other = name.strip().partition(' ')
            config = pattern.format(name=name, recipe=other.strip() or recipe)
            if baseline is None or not baselines:
                baseline = config
            for (at, column), remark in (remarks or {}).items():
                if at == name:
                    remarked[config, column] = remark
            values = numbers.split()
            if len(values) != len(names):
                raise ValueError(
                    f'{key}: {line!r} has {len(values)} numbers for {len(names)} '
                    'columns'
                )
            cells = {c: float(v) for c, v in zip(names, values) if v != '-'}
            rows.append(Row(config, baseline, cells))
    return Table(key, title, names, tuple(rows), counting, remarked)
