"""Records from a COCO annotation file: the elements of its ``images``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from captioner.readers.bytestreams import FILE_ERRORS, open_binary, position
from captioner.readers.rows import (
    RecordSource,
    broken_input,
    fault_record,
    one_line,
    record_of,
)

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from captioner.core.types import InputRecord


class CocoSource(RecordSource):
    """The ``images`` of a file in the COCO format (https://cocodataset.org/#format-data)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ijson = import_module("ijson")

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._path.stat().st_size

    def _records(self) -> Generator[InputRecord, None, None]:
        number = 0
        with open_binary(self._path) as file:
            images = self._ijson.items(file, "images.item", use_float=True)
            try:
                for number, image in enumerate(images, 1):
                    end = position(file)
                    if isinstance(image, dict):
                        yield record_of(number, image, end)
                    else:
                        content = {"image": image}
                        message = "it is not a JSON object"
                        yield fault_record(number, content, end, "bad_record", message)
            except (self._ijson.JSONError, *FILE_ERRORS) as error:
                place = {"file": self._path.name}
                message = f"the file breaks off: {one_line(error)}"
                yield broken_input(number + 1, place, 0, "bad_json", message)
