"""The papers' tables as data."""

from .table import Counting, Row, Table
from .tables import TABLES, find_table

__all__ = ['TABLES', 'Counting', 'Row', 'Table', 'find_table']
