"""All tables of the three papers, each row tied to the config that reproduces it."""

from . import classification, detection

TABLES = detection.TABLES + classification.TABLES


def find_table(key):
    """The table of that key, such as 'sac-V'.

    Raises:
        ValueError: There is no such table; the message lists those there are.
    """
    for table in TABLES:
        if table.key.lower() == key.lower():
            return table
    known = ', '.join(table.key for table in TABLES)
    raise ValueError(f'there is no table {key!r}; there are {known}')
