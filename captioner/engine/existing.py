"""Captions that records have before a run: in their fields, or in a text file for each image."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from captioner.core.errors import BadRecordError
from captioner.images.archives import in_archive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from captioner.core.types import ImageRef

MOST_TEXT = 1 << 20
"""Bytes of a text file that is read."""


def existing_captions(record: Mapping[str, object], fields: Sequence[str]) -> list[str]:
    """Return which caption fields of a record are not empty."""
    return [
        name
        for name in fields
        if (value := record.get(name)) not in (None, "", [])
        and not (isinstance(value, str) and not value.strip())
    ]


def text_file(folder: Path, images: Sequence[str | None], suffix: str) -> Path | None:
    """Return the text file that an export writes for a record; None if there is none.

    Args:
        folder: The folder of the export; an absolute path of an image stays absolute.
        images: Paths or URLs of the images of the record.
        suffix: ``.txt`` or ``.caption``.
    """
    if len(images) != 1 or images[0] is None or "://" in images[0] or in_archive(images[0]):
        return None
    return (folder / images[0]).with_suffix(suffix)


class TextFiles:
    """The text files that a run writes, before it writes them.

    Args:
        folder: The folder of the output.
        suffix: See `text_file`.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        self._folder = folder
        self._suffix = suffix

    def text(self, images: Sequence[ImageRef]) -> str:
        """Return the text of the file of a record; empty if there is none.

        Raises:
            BadRecordError: ``bad_sidecar``: the file cannot be read.
        """
        path = text_file(self._folder, [image.path for image in images], self._suffix)
        if path is None:
            return ""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                content = file.read(MOST_TEXT + 1)
            if len(content) > MOST_TEXT:
                raise BadRecordError("bad_sidecar", f"{path} has more than {MOST_TEXT} bytes")
            return content.decode("utf-8-sig").strip()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except UnicodeDecodeError:
            raise BadRecordError("bad_sidecar", f"{path} is not UTF-8 text") from None
        except OSError as error:
            reason = error.strerror or "it is no file"
            raise BadRecordError("bad_sidecar", f"cannot read {path}: {reason}") from None


def joined(first: str, second: str) -> str:
    """Return two captions as one: after a sentence a space is between them, else a comma."""
    return f"{first}{' ' if first.endswith(ENDS) else ', '}{second}"


ENDS = (".", "!", "?", "…", "。", "！", "？")  # noqa: RUF001 - ends of sentences in Chinese
"""Ends of sentences."""
