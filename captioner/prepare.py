"""From a line of the input to a record ready to be sent. Blocking code: runs in threads."""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING

import orjson

from captioner.conversation import ask_each, images_of, read_turns
from captioner.errors import BadRecordError, RecordError
from captioner.images.convert import AS_IS, fit
from captioner.rawjson import members, quoted
from captioner.records import EncodedImage, Failure, ImageRef, Line, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from captioner.budget import ByteBudget
    from captioner.images.load import Folders
    from captioner.interfaces import Dialect
    from captioner.records import Remake
    from captioner.settings import Settings


class Preparer:
    """Reads records, loads and fits their pictures, and builds their messages.

    Args:
        settings: How records and pictures are read.
        dialect: Builds the messages.
        folders: Where files are.
        budget: Bytes that may be held at once.
    """

    def __init__(
        self, settings: Settings, dialect: Dialect, folders: Folders, budget: ByteBudget
    ) -> None:
        self._settings = settings
        self._dialect = dialect
        self._folders = folders
        self._budget = budget
        names = settings.member_family
        self._names = frozenset(names)
        self._quoted = frozenset(map(quoted, names))

    def prepare(self, line: Line, remake: Remake | None = None) -> Prepared | Failure:
        """Return the record ready to be sent, or why it never will be.

        Args:
            line: The record.
            remake: It was sent before, and is to be made otherwise; what it replaces has its
                place in the budget.
        """
        reserved = 0

        def reserve(size: int) -> None:
            nonlocal reserved
            if remake is not None:
                return
            size += size // 3  # what base64 adds
            # A record that holds some already must not wait for others that do the same.
            self._budget.reserve(size, wait=not reserved)
            reserved += size

        try:
            if line.fault is not None:
                raise BadRecordError(*line.fault)
            record, replaces = self._read(line.raw)
            prompt, fields = self._settings.prompt, self._settings.records
            turns = read_turns(record, fields, prompt)
            encoded = {
                id(part): self._encode(part, reserve, remake or AS_IS) for part in images_of(turns)
            }
            questions = tuple(
                self._dialect.messages(asked, [encoded[id(part)] for part in images_of(asked)])
                for asked in ask_each(turns, self._settings.questions)
            )
            pixels = sum(image.pixels for image in encoded.values())
            return Prepared(line, questions, replaces, reserved, pixels)
        except RecordError as error:
            if reserved:
                self._budget.release(reserved)
            return Failure(line, error.code, error.message, 0)

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

    def _encode(
        self, image: ImageRef, reserve: Callable[[int], None], remake: Remake
    ) -> EncodedImage:
        if image.url is not None:
            return EncodedImage(url=image.url)
        if image.path is not None:
            data = self._folders.read(image.path, reserve)
        else:
            data = image.data or b""
            reserve(len(data))
        fitted = fit(data, self._settings.images.max_side, remake)
        encoded = binascii.b2a_base64(fitted.data, newline=False)
        return EncodedImage(fitted.media_type, encoded, "", fitted.width * fitted.height)
