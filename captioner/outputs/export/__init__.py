"""Writes the rows of a journal in other formats. An export can be repeated at any time."""

from captioner.journal.disk import replacing
from captioner.outputs.export.registry import check_format, export, targets_of
from captioner.outputs.export.tables import column_names, write_csv_rows

__all__ = ["check_format", "column_names", "export", "replacing", "targets_of", "write_csv_rows"]
