"""From an input record to a record ready to be sent. It blocks, except for `prepare_at_once`."""

from __future__ import annotations

import secrets
from hashlib import blake2b
from typing import TYPE_CHECKING

import orjson
from pybase64 import b64encode
from xxhash import xxh3_128

from captioner.core.badjson import why_no_json
from captioner.core.errors import BadImageError, BadRecordError, RecordError, WouldBlockError
from captioner.core.jsonbytes import (
    BEYOND,
    MOST_FIELDS,
    SHORT,
    excess,
    fields_in,
    has_too_many_fields,
    quoted,
)
from captioner.core.keys import digest
from captioner.core.media import is_video
from captioner.core.secrets import without_secrets
from captioner.core.types import (
    UNCHANGED,
    Caption,
    EncodedImage,
    Failure,
    ImageRef,
    InputRecord,
    NeedsFetch,
    Notes,
    Pictures,
    PreparedRecord,
    Usage,
)
from captioner.engine.conversation import ask_each, images_of, read_turns
from captioner.engine.existing import existing_captions
from captioner.engine.frames import with_frames
from captioner.engine.questions import Questions
from captioner.engine.reservation import Mode, Reservation
from captioner.engine.template_context import would_look
from captioner.images.fit import FitOptions, fit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from captioner.core.memory import MemoryBudget
    from captioner.core.protocols import Dialect
    from captioner.core.types import FetchedImages, ImageOverrides, Outcome, Turn
    from captioner.engine.cache import Cache
    from captioner.engine.template_context import Look
    from captioner.images.files import ImageFolders
    from captioner.images.fit import Fitted, Render
    from captioner.settings.settings import Settings

_SEED = secrets.randbits(64)
"""A random seed, so that different images with equal keys cannot be made on purpose."""


class Preparer:
    """Reads records, loads and fits their images, and builds their messages.

    Args:
        settings: How records and images are read.
        dialect: Builds the messages.
        folders: Where image files are.
        memory: Bytes that prepared records may hold.
        render: Re-encodes images that cannot be sent unchanged.
        cache: Responses of earlier runs.
        look: Reads what templates name of an image.
    """

    def __init__(
        self,
        settings: Settings,
        dialect: Dialect,
        folders: ImageFolders,
        memory: MemoryBudget,
        render: Render,
        cache: Cache | None = None,
        look: Look = would_look,
    ) -> None:
        self._settings = settings
        self._dialect = dialect
        self._folders = folders
        self._memory = memory
        self._render = render
        self._cache = cache
        self._questions = Questions(settings, folders, look)
        self._fit_options = FitOptions(settings.images, settings.prompt.detail)
        names = settings.field_family
        self._is_staged = bool(settings.stages)
        self._wants_digests = "image_digest" in settings.extras
        self._names = frozenset(names)
        self._quoted_names = frozenset(map(quoted, names))

    def prepare(
        self,
        record: InputRecord,
        image_overrides: ImageOverrides | None = None,
        fetched: FetchedImages | None = None,
    ) -> PreparedRecord | NeedsFetch | Outcome:
        """Return the record ready to be sent, the URLs to fetch first, or its outcome.

        The outcome is a failure, or a caption that the record had before.

        Args:
            record: The record.
            image_overrides: How to encode the images of a record that was sent before. Its memory
                is reserved already.
            fetched: Its remote images.
        """
        if image_overrides is not None:
            reservation = Reservation(self._memory, Mode.NOTHING)
        elif fetched is not None:
            reservation = Reservation(self._memory, Mode.FORCE, fetched.reserved)
        else:
            reservation = Reservation(self._memory, Mode.WAIT)
        if len(record.raw) > SHORT:  # the writer would compute it in the event loop
            record = record._replace(key=self._settings.record_keys.of_record(record))
        return self._prepare(
            record, reservation, self._render, image_overrides or UNCHANGED, fetched
        )

    def prepare_at_once(self, record: InputRecord) -> PreparedRecord | NeedsFetch | Outcome | None:
        """Return the same if that is quick, and waits for no disk, memory or decoder; else None."""
        if self._cache is not None or self._is_staged or record.raw[BEYOND]:
            return None
        reservation = Reservation(self._memory, Mode.TRY)
        try:
            return self._prepare(record, reservation, would_block, UNCHANGED, None)
        except WouldBlockError:
            return None

    def _prepare(
        self,
        record: InputRecord,
        reservation: Reservation,
        render: Render,
        image_overrides: ImageOverrides,
        fetched: FetchedImages | None,
    ) -> PreparedRecord | NeedsFetch | Outcome:
        try:
            if record.fault is not None:
                raise BadRecordError(*record.fault)  # noqa: TRY301 - becomes a failure below
            fields, replaces = self._parse(record.raw)
            if replaces and self._keeps(fields):
                text = fields[self._settings.fields[0]]
                return Caption(record, text, replaces, 0, Usage(), existing=True)
            questions = self._questions
            turns = read_turns(fields, self._settings.records, questions.plain)
            images = images_of(turns)
            if fetched is None and (urls := self._urls_to_fetch(images)):
                return NeedsFetch(record, urls)
            if (
                questions.may_keep
                and not replaces
                and (text := questions.kept(images, reservation))
            ):
                return Caption(record, text, replaces, 0, Usage(), existing=True)
            loaded = _loaded(record, fetched) if fetched or record.images else {}
            digests: list[str | None] | None = [] if self._wants_digests else None
            asked, notes = questions.plain.questions, None
            if questions.vary:
                turns, asked, notes = questions.filled(record, fields, images, reservation, loaded)
                images = images_of(turns)
            several: list[list[EncodedImage]] = []
            for image in images:
                if several:
                    reservation.keep(several[-1])
                several.append(
                    self._encode(image, reservation, render, image_overrides, loaded, digests)
                )
            frames = [one for each in several for one in each] if images[1:] else several[0]
            if asked or self._settings.images.frame_times or frames[len(images) :]:
                encoded = dict(zip(map(id, images), several, strict=True))
                messages = self._messages(turns, asked, encoded)
            else:
                messages = (self._dialect.messages(turns, frames),)
        except RecordError as error:
            reservation.cancel()
            return Failure(record, error.code, error.message, 0)
        except BaseException:
            reservation.cancel()
            raise
        size = sum(len(data) for _, data in record.images) if record.images else 0
        pixels = 0
        for frame in frames:
            size += len(frame.base64)
            pixels += frame.width * frame.height
        reservation.settle(size)
        notes = notes if digests is None else (notes or Notes())._replace(digests=digests)
        pictures = _pictures(frames) if self._is_staged else None
        key, cached = self._key(messages if pictures is None else _seen(messages, notes))
        return PreparedRecord(
            record, messages, replaces, reservation.size, pixels, key, cached, notes, pictures
        )

    def _messages(
        self, turns: list[Turn], asked: tuple[str, ...], encoded: dict[int, list[EncodedImage]]
    ) -> tuple[tuple[bytes, ...], ...]:
        timed = self._settings.images.frame_times
        return tuple(
            self._dialect.messages(*with_frames(question, encoded, timed=timed))
            for question in ask_each(turns, asked)
        )

    def _key(self, questions: tuple[tuple[bytes, ...], ...]) -> tuple[bytes, bytes]:
        """Return the key of a request, and the response of an earlier run to it if there is one."""
        if self._cache is not None:
            key = self._cache.key(questions)
            return key, self._cache.get(key)
        if not self._settings.run.dedup:
            return b"", b""
        hasher = xxh3_128(seed=_SEED)  # 20 times as fast as BLAKE2; the key never leaves the run
        for pieces in questions:
            for piece in pieces:
                hasher.update(piece)
        return hasher.digest(), b""

    def _parse(self, raw: bytes) -> tuple[dict[str, object], bool]:
        """Return the fields of a record, and whether it has a field that the run writes."""
        if more := excess(raw):
            raise BadRecordError("record_too_large", f"the record has {more}")
        try:
            fields = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise BadRecordError("bad_json", why_no_json(raw, error)) from None
        if not isinstance(fields, dict):
            raise BadRecordError("bad_record", "the line is not a JSON object")
        if raw[MOST_FIELDS:] and has_too_many_fields(raw):
            raise BadRecordError(
                "record_too_large", f"the record has more than {MOST_FIELDS} fields"
            )
        replaces = not self._names.isdisjoint(fields)
        if replaces and b"\\" in raw:
            for field in fields_in(raw):
                if field.name not in self._quoted_names:
                    name = orjson.loads(field.name)
                    if name in self._names:
                        raise BadRecordError(
                            "bad_record", f"the name of the field {name!r} is written with escapes"
                        )
        id_field = self._settings.records.id_field
        if id_field is not None and id_field not in fields:
            raise BadRecordError("no_id", f"the record has no field {id_field!r}")
        return fields, replaces

    def _keeps(self, fields: dict[str, object]) -> bool:
        """Return whether a record is kept as it is because it has captions already.

        Raises:
            BadRecordError: ``existing_caption``: it has one, and ``--existing`` is ``error``.
        """
        choice = self._settings.records.existing or "error"
        present = existing_captions(fields, self._settings.fields)
        if choice == "error" and present:
            raise BadRecordError(
                "existing_caption",
                f"the record has a {present[0]!r} already (--existing skip or replace)",
            )
        return choice == "skip" and len(present) == len(self._settings.fields)

    def _urls_to_fetch(self, images: list[ImageRef]) -> tuple[str, ...]:
        """Return the URLs of the images that must be fetched."""
        urls = [image.url for image in images if image.url is not None]
        if urls and self._settings.images.pass_urls:
            urls = [url for url in urls if not _is_http(url) or is_video(url.partition("?")[0])]
        if urls and self._settings.records.image_root is not None:
            for url in urls:
                if not _is_http(url):
                    raise BadImageError(
                        "image_outside_root",
                        f"{without_secrets(url)[:200]} is not in the image root",
                    )
        return tuple(urls)

    def _encode(
        self,
        image: ImageRef,
        reservation: Reservation,
        render: Render,
        image_overrides: ImageOverrides,
        loaded: Mapping[str, bytes],
        digests: list[str | None] | None,
    ) -> list[EncodedImage]:
        """Return an image ready to be sent, or the frames of a video or an animated one.

        The digest of its file is added to ``digests``, None for one that the endpoint fetches.
        """
        if image.url is not None:
            if image.url not in loaded:
                if digests is not None:
                    digests.append(None)
                return [EncodedImage(url=image.url)]
            data = loaded[image.url]
        elif image.digest is not None:
            if image.digest not in loaded:
                raise BadImageError(
                    "image_missing",
                    "the record names an image by its digest, which is in the table it came from",
                )
            data = loaded[image.digest]
            reservation.reserve(len(data))
        elif image.path is not None:
            data = loaded.get(image.path) or self._folders.read(
                image.path, reservation.reserve, waits=reservation.waits
            )
        else:
            data = image.data or b""
            reservation.reserve(len(data))
        if not data:
            raise BadImageError("image_empty", "the image is empty")
        if digests is not None:
            digests.append(digest(data).hex())
        try:
            frames = fit(data, self._fit_options, render, image_overrides)
        except BadImageError as error:
            name = image.path or without_secrets(image.url or "")
            place = f"{name[:200]}: " if name else ""
            raise BadImageError(error.code, place + error.message) from None
        return [
            EncodedImage(media_type, b64encode(fitted), "", width, height, time_s)
            for media_type, fitted, width, height, time_s in frames
        ]


def _pictures(frames: list[EncodedImage]) -> Pictures:
    hasher = blake2b(digest_size=16)
    for frame in frames:
        hasher.update(b"%d %b" % (len(frame.base64), frame.base64 or frame.url.encode()))
    return Pictures(tuple(frames), hasher.digest())


def _seen(
    messages: tuple[tuple[bytes, ...], ...], notes: Notes | None
) -> tuple[tuple[bytes, ...], ...]:
    """Return all that stages see of a record: equal records have the same."""
    return (*messages, (orjson.dumps(notes.known if notes is not None else None),))


def _is_http(url: str) -> bool:
    return url[:5].lower() in ("http:", "https")


def _loaded(record: InputRecord, fetched: FetchedImages | None) -> dict[str, bytes]:
    """Return fetched images by URL and those of the input by digest.

    It raises the error of one that could not be fetched.
    """
    loaded: dict[str, bytes] = dict(record.images)
    for url, found in fetched.images.items() if fetched else ():
        if isinstance(found, Exception):
            raise found
        loaded[url] = found
    return loaded


def would_block(_: bytes, __: ImageOverrides) -> tuple[Fitted, ...]:
    """Take the place of `Render` where nothing is decoded: raise `WouldBlockError`."""
    raise WouldBlockError
