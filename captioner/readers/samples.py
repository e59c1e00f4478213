"""Records from samples: files whose names are equal up to the first dot, in a shard or a folder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import BadRecordError
from captioner.core.filenames import escaped
from captioner.core.media import is_video
from captioner.settings import IMAGE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger(__name__)

LARGEST_TEXT = 1 << 20
"""Size limit in bytes of a member that is read as text; a larger one is skipped."""

NAMES_SHOWN = 5
"""Members that a message names."""


class Samples:
    """Makes the records of samples.

    A record has the sample's name as ``__key__``, the fields of its ``.json`` member, its text
    members by suffix, and its images as ``image``. If it has images and videos, the images are
    taken.

    Args:
        image_field: Suffix of the member that is the image. The record has it under that name,
            and the names of other images under their suffixes.
    """

    def __init__(self, image_field: str | None = None) -> None:
        is_general = image_field is None or image_field in IMAGE_FIELDS
        self._wanted = None if is_general else image_field
        self._name = (image_field if is_general else None) or "image"
        self._told = False

    def record(
        self,
        key: str,
        members: Sequence[str],
        images: Sequence[tuple[str, str]],
        texts: Mapping[str, Callable[[], bytes | None]],
        place: str,
    ) -> dict[str, Any]:
        """Return the record of a sample.

        Args:
            key: Its name.
            members: Names of all its members.
            images: Suffix and reference of each image and video.
            texts: What reads each other member, by suffix; None stands for one that is no text.
            place: The shard or folder, for messages.

        Raises:
            BadRecordError: ``no_image``.
        """
        record: dict[str, Any] = {"__key__": escaped(key)}
        chosen = self._chosen(key, images)
        others = [one for one in images if one not in chosen]
        own = {"__key__", "image", self._name, *texts, *(field for field, _ in others)}
        own.discard("json")
        for field, read in texts.items():
            if (data := read()) is not None:
                _add_text(record, field, data, own)
        if not chosen and not record.get(self._wanted or ""):
            more = len(members) - NAMES_SHOWN
            raise BadRecordError(
                "no_image",
                f"the sample {escaped(key)} of {place} has no image"
                f"{f' .{self._wanted}' if self._wanted else ''}: its members are "
                f"{', '.join(map(escaped, members[:NAMES_SHOWN]))}"
                f"{f' and {more} more' if more > 0 else ''}",
            )
        if chosen:
            shown = [one for _, one in chosen]
            record[self._wanted or self._name] = shown[0] if len(shown) == 1 else shown
        for field, one in others:
            record.setdefault(field, one)
        return record

    def _chosen(self, key: str, images: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the images that are sent."""
        if self._wanted is not None:
            return [one for one in images if one[0] == self._wanted.lower()]
        videos = [one for one in images if is_video(f"x.{one[0]}")]
        stills = [one for one in images if one not in videos]
        if not (videos and stills):
            return list(images)
        if self._name.startswith("video"):
            return videos
        if not self._told:
            self._told = True
            logger.warning(
                "samples such as %s have images and videos: the images are sent; "
                "--image-field %s sends the videos",
                escaped(key),
                videos[0][0],
            )
        return stills


def split_name(name: str) -> tuple[str, str]:
    """Return the sample's key and the field: the parts of a name around its first dot."""
    folder, slash, base = name.rpartition("/")
    key, _, field = base.partition(".")
    return folder + slash + key, field.lower()


def _add_text(record: dict[str, Any], field: str, data: bytes, own: set[str]) -> None:
    """Add the text of a member to the record; fields of a ``.json`` unless the sample has one."""
    if field == "json":
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            value = data.decode(errors="replace")
        if isinstance(value, dict) and own.isdisjoint(value):
            record.update(value)
        else:
            record["json"] = value
        return
    try:
        record[escaped(field)] = data.decode().strip()
    except UnicodeDecodeError:
        return  # binary data, such as a NumPy array, is not part of the record
