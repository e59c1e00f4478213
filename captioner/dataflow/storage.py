"""The files of a script's steps."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import orjson

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.core.regular import writing
from captioner.dataflow.running import run_blocking, run_coroutine
from captioner.journal.disk import Files, replacing
from captioner.journal.finalize import write_array
from captioner.outputs.export import column_names, write_csv_rows, write_lines
from captioner.outputs.rows import parsed
from captioner.readers.registry import open_input
from captioner.readers.rows import dumped, plain

CacheType = Literal["json", "jsonl", "csv", "parquet", "pickle"]

FRAMES = (".parquet", ".pickle", ".pkl")
"""Endings of files that pandas reads and writes."""

_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class FileStorage:
    """A file for each step of a pipeline: the input, then ``<prefix>_step1.<type>`` and so on.

    Args:
        first_entry_file_name: The input: JSON, JSONL, CSV, Parquet, pickle, ``hf:…`` or ``ms:…``.
        cache_path: Folder of the other files.
        file_name_prefix: Beginning of their names.
        cache_type: ``json``, ``jsonl``, ``csv``, ``parquet`` or ``pickle``.
        allow_pickle: Read pickle files, which runs the code in them: only for files of your own.
            The environment variable ``DF_ALLOW_PICKLE=1`` does the same.
    """

    first_entry_file_name: str
    cache_path: str = "./cache"
    file_name_prefix: str = "dataflow_cache"
    cache_type: CacheType = "jsonl"
    allow_pickle: bool = field(default=False, kw_only=True)
    operator_step: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        """Check the type."""
        known = get_args(CacheType)
        if self.cache_type not in known:
            raise ValueError(
                f"Unsupported file type: {self.cache_type}, output file should end with "
                f"{', '.join(known)}"
            )

    def step(self) -> Self:
        """Move to the next step."""
        self.operator_step += 1
        return self

    def reset(self) -> Self:
        """Return to the state before the first step."""
        self.operator_step = -1
        return self

    def path_of(self, step: int) -> Path:
        """Return the file that a step reads; it writes the file of the next step."""
        if step <= 0:
            return Path(self.first_entry_file_name)
        return Path(self.cache_path) / f"{self.file_name_prefix}_step{step}.{self.cache_type}"

    def read(self, output_type: Literal["dataframe", "dict"] = "dataframe") -> Any:
        """Return the rows of the current step, with the values of the file.

        Args:
            output_type: ``dataframe`` for a pandas DataFrame, ``dict`` for a list of dicts.

        Raises:
            SystemExit: It cannot be read, or it is a pickle file and reading these is not allowed.
            ValueError: `output_type` is neither.
        """
        if output_type not in ("dataframe", "dict"):
            raise ValueError(f"Unsupported output type: {output_type}")
        path = self.path_of(self.operator_step)
        if path.suffix in FRAMES:
            frame = run_blocking(lambda: read_frame(path, self))
            return frame if output_type == "dataframe" else frame.to_dict(orient="records")
        rows = run_coroutine(_rows(path))
        return needed("pandas").DataFrame(rows) if output_type == "dataframe" else rows

    def write(self, data: Any) -> str:
        """Write rows, a DataFrame or a list of dicts, for the next step; return the file's path.

        Raises:
            ValueError: They are neither.
        """
        if hasattr(data, "to_dict") and hasattr(data, "columns"):
            data = data.to_dict(orient="records")
        if not (isinstance(data, list) and all(isinstance(row, dict) for row in data)):
            raise ValueError(f"Unsupported data type: {type(data)}")
        path = self.path_of(self.operator_step + 1)
        write_file(data, path)
        return str(path)


def read_frame(path: Path, storage: FileStorage) -> Any:
    """Return a Parquet or pickle file as a DataFrame.

    Raises:
        SettingsError: It is a pickle file, and the storage does not allow these.
    """
    pandas = needed("pandas")
    allowed = storage.allow_pickle or os.environ.get("DF_ALLOW_PICKLE") == "1"
    if path.suffix != ".parquet" and not allowed:
        raise SettingsError(
            f"{path} is a pickle, and reading it runs the code in it: if the file is yours, "
            "create FileStorage with allow_pickle=True or set DF_ALLOW_PICKLE=1"
        )
    return pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_pickle(path)


async def _rows(path: Path) -> list[dict[str, Any]]:
    found = []
    async for batch in open_input(path).source.batches():
        for line in batch:
            try:
                row = parsed(line.raw) if line.fault is None else None
            except ValueError:
                row = None
            if row is None:
                _LOG.warning("row %d of %s is not a JSON object and is left out", line.number, path)
            else:
                found.append({name: _from_cell(value) for name, value in row.items()})
    return found


def _from_cell(value: Any) -> Any:
    """Parse a list or an object in a text, as in a CSV cell."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(value)
    return value


def write_file(data: Any, path: Path) -> None:
    """Write rows, or a DataFrame for Parquet and pickle, as a file of the type of its name."""
    if path.suffix in FRAMES:
        frame = data if hasattr(data, "columns") else needed("pandas").DataFrame(data)
        with replacing(path) as partial, writing(partial) as file:
            if path.suffix == ".parquet":
                frame.to_parquet(file)
            else:
                frame.to_pickle(file, compression=None)
        return
    rows = map(plain, data)
    if path.suffix == ".csv":
        listed = list(rows)
        write_csv_rows(listed, column_names(listed), path)
    elif path.suffix == ".json":
        write_array(map(dumped, rows), path, Files())
    else:
        write_lines(map(dumped, rows), path)
