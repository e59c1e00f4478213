"""Records from a COCO annotation file: its ``images``, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.core.extras import needed
from captioner.readers.bytestreams import from_thread, open_binary, position
from captioner.readers.rows import Batching, fault_line, line_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from captioner.core.types import InputRecord


class CocoSource:
    """The ``images`` of a file in the format of COCO captions (https://cocodataset.org/#format-data).

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ijson = needed("ijson", "coco")

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._path.stat().st_size

    def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the images in order."""
        return from_thread(self._images)

    def _images(self) -> Iterator[list[InputRecord]]:
        batching = Batching()
        number = 0
        with open_binary(self._path) as file:
            images = self._ijson.items(file, "images.item", use_float=True)
            while True:
                try:
                    image = next(images)
                except StopIteration:
                    break
                except (self._ijson.JSONError, EOFError, OSError) as error:
                    number += 1
                    what = {"file": self._path.name, "after": number - 1}
                    message = f"the file breaks off: {' '.join(str(error).split())[:200]}"
                    yield [*batching.rest(), fault_line(number, what, 0, "bad_json", message)]
                    return
                number += 1
                if not isinstance(image, dict):
                    line = fault_line(
                        number,
                        {"image": image},
                        position(file),
                        "bad_record",
                        "it is no JSON object",
                    )
                else:
                    line = line_of(number, image, position(file))
                if found := batching.add(line):
                    yield found
        if found := batching.rest():
            yield found
