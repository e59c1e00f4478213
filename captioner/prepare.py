"""From a line of the input to a record ready to be sent. Blocking code: runs in threads."""

from __future__ import annotations

import binascii
import secrets
from typing import TYPE_CHECKING

import orjson
from xxhash import xxh3_128

from captioner.conversation import ask_each, images_of, read_turns
from captioner.errors import BadImageError, BadRecordError, RecordError
from captioner.images.convert import AS_IS, Wanted, fit
from captioner.rawjson import members, quoted
from captioner.records import EncodedImage, Failure, ImageRef, Line, Prepared, Remote, Turn

_SEED = secrets.randbits(64)
"""Nobody can prepare pictures that are taken for each other."""

if TYPE_CHECKING:
    from collections.abc import Mapping

    from captioner.budget import ByteBudget
    from captioner.cache import Cache
    from captioner.images.convert import Draw
    from captioner.images.load import Folders
    from captioner.interfaces import Dialect
    from captioner.records import Fetched, Remake
    from captioner.settings import Settings


class Preparer:
    """Reads records, loads and fits their pictures, and builds their messages.

    Args:
        settings: How records and pictures are read.
        dialect: Builds the messages.
        folders: Where files are.
        budget: Bytes that may be held at once.
        draw: Draws what cannot be sent as it is.
        cache: What was answered in earlier runs.
    """

    def __init__(
        self,
        settings: Settings,
        dialect: Dialect,
        folders: Folders,
        budget: ByteBudget,
        draw: Draw,
        cache: Cache | None = None,
    ) -> None:
        self._settings = settings
        self._dialect = dialect
        self._folders = folders
        self._budget = budget
        self._draw = draw
        self._cache = cache
        self._wanted = Wanted(settings.images, settings.prompt.detail)
        names = settings.member_family
        self._names = frozenset(names)
        self._quoted = frozenset(map(quoted, names))

    def prepare(
        self, line: Line, remake: Remake | None = None, fetched: Fetched | None = None
    ) -> Prepared | Remote | Failure:
        """Return the record ready to be sent, or why it never will be, or what is to be fetched.

        Args:
            line: The record.
            remake: It was sent before, and is to be made otherwise; what it replaces has its
                place in the budget.
            fetched: Its pictures from elsewhere.
        """
        place = _Place(self._budget, fetched.reserved if fetched else 0, fixed=remake is not None)
        try:
            if line.fault is not None:
                raise BadRecordError(*line.fault)  # noqa: TRY301 - becomes a failure, as all do
            record, replaces = self._read(line.raw)
            prompt, fields = self._settings.prompt, self._settings.records
            turns = read_turns(record, fields, prompt)
            images = images_of(turns)
            if fetched is None and (urls := self._remote(images)):
                return Remote(line, urls)
            pictures = fetched.pictures if fetched else {}
            encoded = {
                id(part): self._encode(part, place, remake or AS_IS, pictures) for part in images
            }
            questions = tuple(
                self._dialect.messages(*_with_frames(asked, encoded))
                for asked in ask_each(turns, self._settings.questions)
            )
        except RecordError as error:
            place.leave()
            return Failure(line, error.code, error.message, 0)
        except BaseException:
            place.leave()
            raise
        frames = [image for several in encoded.values() for image in several]
        place.settle(sum(len(image.base64) for image in frames))
        pixels = sum(image.pixels for image in frames)
        key, known = self._known(questions)
        return Prepared(line, questions, replaces, place.reserved, pixels, key, known)

    def _known(self, questions: tuple[tuple[bytes, ...], ...]) -> tuple[bytes, bytes]:
        """Return the key of what is asked, and what was answered to it in an earlier run."""
        if self._cache is not None:
            key = self._cache.key(questions)
            return key, self._cache.get(key)
        if not self._settings.run.dedup:
            return b"", b""
        hasher = xxh3_128(seed=_SEED)  # it only has to last as long as the run: 20 times as fast
        for pieces in questions:
            for piece in pieces:
                hasher.update(piece)
        return hasher.digest(), b""

    def _read(self, raw: bytes) -> tuple[dict[str, object], bool]:
        try:
            record = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise BadRecordError("bad_json", f"the line is not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise BadRecordError("bad_record", "the line is no JSON object")
        replaces = not self._names.isdisjoint(record)
        if replaces:
            for member in members(raw):
                if member.name not in self._quoted and orjson.loads(member.name) in self._names:
                    raise BadRecordError(
                        "bad_record",
                        f"the name of the field {orjson.loads(member.name)!r} is spelled with "
                        "escapes",
                    )
        id_field = self._settings.records.id_field
        if id_field is not None and id_field not in record:
            raise BadRecordError("no_id", f"the record has no field {id_field!r}")
        return record, replaces

    def _remote(self, images: list[ImageRef]) -> tuple[str, ...]:
        """Return the addresses of pictures that are to be fetched."""
        passed = ("http:", "https") if self._settings.images.pass_urls else ()
        return tuple(
            image.url
            for image in images
            if image.url is not None and image.url[:5].lower() not in passed
        )

    def _encode(
        self,
        image: ImageRef,
        place: _Place,
        remake: Remake,
        pictures: Mapping[str, bytes | Exception],
    ) -> tuple[EncodedImage, ...]:
        """Return a picture ready to be sent, or several frames of a moving one."""
        if image.url is not None:
            if image.url not in pictures:
                return (EncodedImage(url=image.url),)
            found = pictures[image.url]
            if isinstance(found, Exception):
                raise found
            data = found
        elif image.path is not None:
            data = self._folders.read(image.path, place.reserve)
        else:
            data = image.data or b""
            place.reserve(len(data))
        if not data:
            raise BadImageError("image_empty", "the image is empty")
        return tuple(
            EncodedImage(
                fitted.media_type,
                binascii.b2a_base64(fitted.data, newline=False),
                "",
                fitted.width * fitted.height,
            )
            for fitted in fit(data, self._wanted, self._draw, remake)
        )


class _Place:
    """What one record holds in the memory budget.

    Args:
        budget: The budget.
        reserved: Bytes it holds already.
        fixed: It neither takes nor gives anything.
    """

    def __init__(self, budget: ByteBudget, reserved: int, *, fixed: bool) -> None:
        self._budget = budget
        self._fixed = fixed
        self.reserved = reserved

    def reserve(self, size: int) -> None:
        """Take what a picture needs as it is and in base64; may block."""
        if self._fixed:
            return
        size += size // 3
        # A record that holds some already must not wait for others that do the same.
        self._budget.reserve(size, wait=not self.reserved)
        self.reserved += size

    def settle(self, size: int) -> None:
        """Hold what is really held from now on."""
        if not self._fixed:
            self._budget.change(size - self.reserved)
            self.reserved = size

    def leave(self) -> None:
        """Give everything back."""
        if self.reserved:
            self._budget.release(self.reserved)
            self.reserved = 0


def _with_frames(
    turns: list[Turn], encoded: Mapping[int, tuple[EncodedImage, ...]]
) -> tuple[list[Turn], list[EncodedImage]]:
    """Return turns in which a moving picture stands once for each frame, and all the pictures."""
    images = [encoded[id(part)] for part in images_of(turns)]
    if any(len(several) > 1 for several in images):
        turns = [
            Turn(
                turn.role,
                tuple(
                    one
                    for part in turn.parts
                    for one in (part,) * (1 if isinstance(part, str) else len(encoded[id(part)]))
                ),
            )
            for turn in turns
        ]
    return turns, [image for several in images for image in several]
