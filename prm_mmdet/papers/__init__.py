"""The tables of the papers on PRM, LCT and SAC, as data."""

from .table import Counting, Row, Table
from .tables import TABLES, find_table

__all__ = ['TABLES', 'Counting', 'Row', 'Table', 'find_table']
