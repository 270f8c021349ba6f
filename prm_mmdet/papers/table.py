"""What a table of a paper is, and how the tables here are written."""

from dataclasses import dataclass, field
from typing import Optional


@dataclass(frozen=True)
class Row:
    """One line of a table: ``config`` is a path below ``configs/``, ``baseline`` that
    of the row that its gains are over (its own, if they are over none), and ``cells``
    maps columns to numbers."""

    config: str
    baseline: str
    cells: dict


@dataclass(frozen=True)
class Counting:
    """How a paper counted the parameters and multiply-adds of a table.

    Args:
        size (tuple): Height and width of the input, in pixels.
        trainable (bool): Whether frozen parameters were left out. Default: False.
        every_layer (bool): Whether all kinds of layers of the whole network were
            counted, so that the FLOPs of baselines compare too: beside convolutions and
            linear layers batch normalisation (two operations an element), activations,
            pooling and the biases of convolutions, as the tool ptflops does. Without
            it, convolutions, linear layers and the blocks' pooling, in the backbone,
            and only differences to the baseline compare. Default: False.
    """

    size: tuple
    trainable: bool = False
    every_layer: bool = False


@dataclass(frozen=True)
class Table:
    """One table: ``key`` is the paper and the number that it gives the table.
    ``counting`` explains its complexity columns, if it has any, and ``remarks`` maps
    (config, column) of a cell that cannot be taken as it stands to the reason."""

    key: str
    title: str
    columns: tuple
    rows: tuple
    counting: Optional[Counting] = None
    remarks: dict = field(default_factory=dict)

    def baseline(self, row):
        """The row that the gains of ``row`` are over."""
        return next(r for r in self.rows if r.config == row.baseline)

    def digits(self, column):
        """Decimal places that the paper prints in a column."""
        cells = (row.cells[column] for row in self.rows if column in row.cells)
        return max((len(f'{cell}'.partition('.')[2]) for cell in cells), default=0)

    @property
    def folder(self):
        """The folder of its configs, below ``configs/``."""
        return self.rows[0].config.partition('/')[0]


def read_table(
    key, title, columns, path, text, counting=None, remarks=None, baselines=True
):
    """Read a table written as lines ``name | numbers``; ``-`` is an empty cell, and an
    empty line ends a group of rows.

    Args:
        key (str): The table's.
        title (str): The table's.
        columns (str): Their names, with spaces between.
        path (tuple[str, str]): Pattern of the configs' paths, with ``{name}`` and
            ``{recipe}`` in it, and the recipe of rows whose name is not followed by
            another one.
        text (str): The lines.
        counting (Counting | None): The table's.
        remarks (dict | None): (name, column) to text.
        baselines (bool): Whether a group begins with its baseline; without, there are
            no gains. Default: True.

    Raises:
        ValueError: A line has not one number a column.
    """
    pattern, recipe = path
    columns = tuple(columns.split())
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
            if len(values) != len(columns):
                raise ValueError(f'{key}: {line!r} has not one number a column')
            cells = {c: float(v) for c, v in zip(columns, values) if v != '-'}
            rows.append(Row(config, baseline, cells))
    return Table(key, title, columns, tuple(rows), counting, remarked)
