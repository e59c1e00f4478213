"""From an input record to a record ready to be sent. It blocks, except for `prepare_at_once`."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import orjson
from pybase64 import b64encode
from xxhash import xxh3_128

from captioner.core.badjson import why_no_json
from captioner.core.errors import BadImageError, BadRecordError, RecordError, WouldBlockError
from captioner.core.jsonbytes import fields_in, quoted
from captioner.core.keys import digest
from captioner.core.media import is_video
from captioner.core.row import OF_RECORD
from captioner.core.secrets import without_secrets
from captioner.core.types import (
    UNCHANGED,
    Caption,
    EncodedImage,
    Failure,
    ImageRef,
    InputRecord,
    NeedsFetch,
    PreparedRecord,
    Turn,
    Usage,
)
from captioner.engine.conversation import ask_each, images_of, read_turns
from captioner.engine.reservation import Mode, Reservation
from captioner.engine.templates import Templates
from captioner.images.fit import FitOptions, fit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from captioner.core.memory import MemoryBudget
    from captioner.core.protocols import Dialect
    from captioner.core.types import FetchedImages, ImageOverrides, Outcome
    from captioner.engine.cache import Cache
    from captioner.images.files import ImageFolders
    from captioner.images.fit import Fitted, Render
    from captioner.settings.settings import Settings

MOST_VALUES = 300_000
"""Most lists and objects in a record; each takes up to 200 bytes of memory."""

_SHORT = 1 << 20
"""Bytes of a record in which lists and objects are not counted."""

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
    """

    def __init__(
        self,
        settings: Settings,
        dialect: Dialect,
        folders: ImageFolders,
        memory: MemoryBudget,
        render: Render,
        cache: Cache | None = None,
    ) -> None:
        self._settings = settings
        self._dialect = dialect
        self._folders = folders
        self._memory = memory
        self._render = render
        self._cache = cache
        prompt = settings.prompt
        self._templates = Templates(prompt.system_prompt, prompt.prompt, settings.questions)
        self._fit_options = FitOptions(settings.images, settings.prompt.detail)
        names = settings.field_family
        wanted = OF_RECORD.intersection(settings.captions.with_)
        self._wants_prompt, self._wants_digests = "prompt" in wanted, "image_digest" in wanted
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
        return self._prepare(
            record, reservation, self._render, image_overrides or UNCHANGED, fetched
        )

    def prepare_at_once(self, record: InputRecord) -> PreparedRecord | NeedsFetch | Outcome | None:
        """Return the same if that needs no waiting for disk, memory or a decoder; else None."""
        if self._cache is not None:
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
            texts = self._templates.fill(fields)
            turns = read_turns(fields, self._settings.records, texts)
            images = images_of(turns)
            if fetched is None and (urls := self._urls_to_fetch(images)):
                return NeedsFetch(record, urls)
            loaded = _loaded(fetched) if fetched else {}
            if record.images:
                loaded = {**loaded, **dict(record.images)}
            digests: list[str | None] | None = [] if self._wants_digests else None
            several: list[list[EncodedImage]] = []
            for image in images:
                if several:
                    reservation.keep(several[-1])
                several.append(
                    self._encode(image, reservation, render, image_overrides, loaded, digests)
                )
            frames = [one for each in several for one in each] if images[1:] else several[0]
            timed = self._settings.images.frame_times
            if texts.questions or timed or frames[len(images) :]:
                encoded = dict(zip(map(id, images), several, strict=True))
                questions = tuple(
                    self._dialect.messages(*_with_frames(question, encoded, timed=timed))
                    for question in ask_each(turns, texts.questions)
                )
            else:
                questions = (self._dialect.messages(turns, frames),)
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
        key, cached = self._key(questions)
        made = None
        if self._wants_prompt or digests is not None:
            asked = texts.questions or ["\n".join(_texts(turns[-1]))]
            made = {"prompt": _one_or_all(asked), "image_digest": _one_or_all(digests or [None])}
        return PreparedRecord(
            record, questions, replaces, reservation.size, pixels, key, cached, made
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
        if len(raw) > _SHORT and raw.count(b"{") + raw.count(b"[") > MOST_VALUES:
            raise BadRecordError(
                "record_too_large", f"the record has more than {MOST_VALUES:,} lists and objects"
            )
        try:
            fields = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise BadRecordError("bad_json", why_no_json(raw, error)) from None
        if not isinstance(fields, dict):
            raise BadRecordError("bad_record", "the line is not a JSON object")
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
        choice = self._settings.records.existing
        present = existing_captions(fields, self._settings.fields)
        if choice == "error" and present:
            raise BadRecordError(
                "existing_caption",
                f"the record has a {present[0]!r} already (--existing replace or skip)",
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
            data = self._folders.read(image.path, reservation.reserve, waits=reservation.waits)
        else:
            data = image.data or b""
            reservation.reserve(len(data))
        if not data:
            raise BadImageError("image_empty", "the image is empty")
        if digests is not None:
            digests.append(digest(data).hex())
        return [
            EncodedImage(media_type, b64encode(fitted), "", width, height, time_s)
            for media_type, fitted, width, height, time_s in fit(
                data, self._fit_options, render, image_overrides
            )
        ]


def _texts(turn: Turn) -> list[str]:
    return [part for part in turn.parts if isinstance(part, str)]


def _one_or_all(values: Sequence[str | None]) -> Any:
    return values[0] if len(values) == 1 else list(values)


def existing_captions(record: Mapping[str, object], fields: Sequence[str]) -> list[str]:
    """Return which caption fields of a record are not empty."""
    return [
        name
        for name in fields
        if (value := record.get(name)) not in (None, "", [])
        and not (isinstance(value, str) and not value.strip())
    ]


def _is_http(url: str) -> bool:
    return url[:5].lower() in ("http:", "https")


def _loaded(fetched: FetchedImages) -> dict[str, bytes]:
    """Return fetched images by URL, or raise the error of one that could not be fetched."""
    loaded: dict[str, bytes] = {}
    for url, found in fetched.images.items():
        if isinstance(found, Exception):
            raise found
        loaded[url] = found
    return loaded


def would_block(_: bytes, __: ImageOverrides) -> tuple[Fitted, ...]:
    """Take the place of `Render` where nothing is decoded: raise `WouldBlockError`."""
    raise WouldBlockError


def _with_frames(
    turns: list[Turn], encoded: Mapping[int, list[EncodedImage]], *, timed: bool
) -> tuple[list[Turn], list[EncodedImage]]:
    """Return turns in which a moving image stands once for each frame, and all the images.

    Args:
        turns: The turns.
        encoded: The frames of each image by its ``id``.
        timed: Put the time of each frame before it.
    """
    images = [encoded[id(part)] for part in images_of(turns)]
    if timed or any(len(several) > 1 for several in images):
        turns = [
            Turn(
                turn.role,
                tuple(one for part in turn.parts for one in _parts(part, encoded, timed=timed)),
            )
            for turn in turns
        ]
    return turns, [image for several in images for image in several]


def _parts(
    part: str | ImageRef, encoded: Mapping[int, list[EncodedImage]], *, timed: bool
) -> Iterator[str | ImageRef]:
    """Yield what stands for a part of a turn: an image once for each of its frames."""
    if isinstance(part, str):
        yield part
        return
    for image in encoded[id(part)]:
        if timed and image.time_s is not None:
            yield f"Frame at {image.time_s:.1f} s:"
        yield part
