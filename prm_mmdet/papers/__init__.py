"""The papers' COCO tables as data."""

from .tables import TABLES, Row, Table, find_table

__all__ = ['TABLES', 'Row', 'Table', 'find_table']
