"""All tables of the three papers. Each row names the config that reproduces it."""

from . import classification, detection
from .table import Table

TABLES = detection.TABLES + classification.TABLES


def find_table(key: str) -> Table:
    """The table with a key, such as 'sac-V'.

    Raises:
        ValueError: No table has this key. The message lists all keys.
    """
    for table in TABLES:
        if table.key.lower() == key.lower():
            return table
    known = ', '.join(table.key for table in TABLES)
    raise ValueError(f'there is no table {key!r}; there are {known}')
