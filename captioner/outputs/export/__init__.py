"""Writes the rows of a journal in other formats. An export can be repeated at any time."""

from captioner.outputs.export.registry import check_format, export, first_file, output_files
from captioner.outputs.export.store import object_exists, open_store, start_upload
from captioner.outputs.export.tables import column_names, write_csv_rows, write_lines

__all__ = [
    "check_format",
    "column_names",
    "export",
    "first_file",
    "object_exists",
    "open_store",
    "output_files",
    "start_upload",
    "write_csv_rows",
    "write_lines",
]
