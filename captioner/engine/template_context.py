"""What templates may name besides the fields of a record: what is known about its first image."""

from __future__ import annotations

from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from captioner.core.errors import BadRecordError, WouldBlockError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from captioner.core.types import ImageRef
    from captioner.images.files import ImageFolders

    Look = Callable[[bytes, Sequence[str]], dict[str, Any]]
    """Returns ``exif`` and ``ocr`` of an image; see `captioner.images.render.look`."""

NAMES = frozenset({"sidecar", "stem", "folder", "path", "exif", "ocr", "existing"})
"""The names. A field of the record goes before one of these."""

LOOKED_UP = frozenset({"exif", "ocr"})
"""Those for which the image is read."""

TEXTS = (".txt", ".caption")
"""Suffixes of files that hold a caption."""

_SIDECARS = (*TEXTS, ".json")


class RecordContext:
    """What is known about the first image of a record, found out when it is asked for.

    Args:
        fields: The record.
        image: Its first image; None if it has none.
        names: Those of `NAMES` that are wanted.
        folders: Where image files are.
        field: The field that receives the caption.
        read: Returns the bytes of the image, or None if they are not on this machine.
        look: Reads them.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        image: ImageRef | None,
        names: Collection[str],
        folders: ImageFolders,
        field: str,
        read: Callable[[], bytes | None],
        look: Look,
    ) -> None:
        self._fields = fields
        self._path = image.path if image is not None else None
        self._url = image.url if image is not None else None
        self._names = names
        self._folders = folders
        self._field = field
        self._read = read
        self._look = look

    @cached_property
    def values(self) -> dict[str, Any]:
        """The values of the names; those without one are left out, and those that are empty not.

        Raises:
            BadRecordError: ``bad_sidecar``: a file beside the image cannot be read.
            BadImageError: The image cannot be read.
            WouldBlockError: That would take a while.
        """
        wanted = [name for name in self._names if name not in self._fields]
        found: dict[str, Any] = {}
        if place := self._path or (urlsplit(self._url).path if self._url else ""):
            path = PurePath(place)
            found["stem"] = path.stem
            found["folder"] = str(path.parent).removeprefix(".")
            found["path"] = {"parts": list(path.parts), "name": path.name, "suffix": path.suffix}
        if "sidecar" in wanted:
            found["sidecar"] = self._beside(_SIDECARS)
        if "existing" in wanted:
            found["existing"] = self._fields.get(self._field) or self._beside(TEXTS) or None
        looked_up = sorted(LOOKED_UP.intersection(wanted))
        if looked_up and (data := self._read()) is not None:
            found |= self._look(data, looked_up)
        return {name: found[name] for name in wanted if found.get(name) is not None}

    def _beside(self, suffixes: Sequence[str]) -> Any:
        if self._path is None:
            return None
        found = self._folders.beside(self._path, suffixes)
        return None if found is None else text_in(*found)


def text_in(name: str, content: bytes) -> Any:
    """Return the text of a file, or the value of one whose name ends in ``.json``.

    Raises:
        BadRecordError: ``bad_sidecar``.
    """
    try:
        if name.endswith(".json"):
            return orjson.loads(content.removeprefix(b"\xef\xbb\xbf"))
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 text: byte {error.start + 1} is 0x{content[error.start]:02x}"
    except orjson.JSONDecodeError as error:
        reason = f"is not valid JSON: {error}"
    raise BadRecordError("bad_sidecar", f"{name} {reason}")


def would_look(_: bytes, __: Sequence[str]) -> dict[str, Any]:
    """Take the place of `Look` where nothing is decoded: raise `WouldBlockError`."""
    raise WouldBlockError
