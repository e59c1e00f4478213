"""From a line of the input to a record ready to be sent; blocking, but for `prepare_at_once`."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Literal

import orjson
from pybase64 import b64encode
from xxhash import xxh3_128

from captioner.core.errors import BadImageError, BadRecordError, RecordError, WouldBlockError
from captioner.core.jsonbytes import fields_in, quoted
from captioner.core.secrets import without_secrets
from captioner.core.types import (
    UNCHANGED,
    EncodedImage,
    Failure,
    ImageRef,
    InputRecord,
    NeedsFetch,
    PreparedRecord,
    Turn,
)
from captioner.engine.conversation import ask_each, images_of, read_turns
from captioner.engine.templates import Templates
from captioner.images.fit import FitOptions, fit

NEAR = 4_096
"""Bytes that a record may hold more than it needs: giving them back is not worth the while."""

_SEED = secrets.randbits(64)
"""Nobody can prepare images that are taken for each other."""

if TYPE_CHECKING:
    from collections.abc import Mapping

    from captioner.core.memory import MemoryBudget
    from captioner.core.protocols import Dialect
    from captioner.core.types import FetchedImages, ImageOverrides
    from captioner.engine.cache import Cache
    from captioner.images.files import ImageFolders
    from captioner.images.fit import Fitted, Render
    from captioner.settings.settings import Settings


class Preparer:
    """Reads records, loads and fits their images, and builds their messages.

    Args:
        settings: How records and images are read.
        dialect: Builds the messages.
        folders: Where files are.
        budget: Bytes that may be held at once.
        render: Re-encodes what cannot be sent as it is.
        cache: What was answered in earlier runs.
    """

    def __init__(
        self,
        settings: Settings,
        dialect: Dialect,
        folders: ImageFolders,
        budget: MemoryBudget,
        render: Render,
        cache: Cache | None = None,
    ) -> None:
        self._settings = settings
        self._dialect = dialect
        self._folders = folders
        self._budget = budget
        self._render = render
        self._cache = cache
        prompt = settings.prompt
        self._templates = Templates(prompt.system_prompt, prompt.prompt, settings.questions)
        self._wanted = FitOptions(settings.images, settings.prompt.detail)
        names = settings.field_family
        self._names = frozenset(names)
        self._quoted = frozenset(map(quoted, names))

    def prepare(
        self,
        line: InputRecord,
        image_overrides: ImageOverrides | None = None,
        fetched: FetchedImages | None = None,
    ) -> PreparedRecord | NeedsFetch | Failure:
        """Return the record ready to be sent, or why it never will be, or what is to be fetched.

        Args:
            line: The record.
            image_overrides: How to encode the images of a record that was sent before. Its memory
                is reserved already.
            fetched: Its images from elsewhere.
        """
        if image_overrides is not None:
            place = _Place(self._budget, "none")
        elif fetched is not None:
            place = _Place(self._budget, "force", fetched.reserved)
        else:
            place = _Place(self._budget, "wait")
        return self._prepare(line, place, self._render, image_overrides or UNCHANGED, fetched)

    def prepare_at_once(self, line: InputRecord) -> PreparedRecord | NeedsFetch | Failure | None:
        """Return the same without waiting for disk, memory or a decoder; None if it would."""
        if self._cache is not None:
            return None
        place = _Place(self._budget, "at once")
        try:
            return self._prepare(line, place, _not_at_once, UNCHANGED, None)
        except WouldBlockError:
            return None

    def _prepare(
        self,
        line: InputRecord,
        place: _Place,
        render: Render,
        image_overrides: ImageOverrides,
        fetched: FetchedImages | None,
    ) -> PreparedRecord | NeedsFetch | Failure:
        try:
            if line.fault is not None:
                raise BadRecordError(*line.fault)  # noqa: TRY301 - becomes a failure, as all do
            record, replaces = self._read(line.raw)
            texts = self._templates.fill(record)
            turns = read_turns(record, self._settings.records, texts)
            images = images_of(turns)
            if fetched is None and (urls := self._remote(images)):
                return NeedsFetch(line, urls)
            loaded = _here(fetched) if fetched else {}
            if line.images:
                loaded = {**loaded, **dict(line.images)}
            several = [
                self._encode(image, place, render, image_overrides, loaded) for image in images
            ]
            frames = several[0] if len(several) == 1 else [one for each in several for one in each]
            asked = texts.questions
            if asked or len(frames) > len(several):
                encoded = dict(zip(map(id, images), several, strict=True))
                questions = tuple(
                    self._dialect.messages(*_with_frames(question, encoded))
                    for question in ask_each(turns, asked)
                )
            else:
                questions = (self._dialect.messages(turns, frames),)
        except RecordError as error:
            place.leave()
            return Failure(line, error.code, error.message, 0)
        except BaseException:
            place.leave()
            raise
        size = sum(len(data) for _, data in line.images) if line.images else 0
        pixels = 0
        for frame in frames:
            size += len(frame.base64)
            pixels += frame.width * frame.height
        place.settle(size)
        key, known = self._known(questions)
        return PreparedRecord(line, questions, replaces, place.reserved, pixels, key, known)

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
            for member in fields_in(raw):
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
        """Return the addresses of images that are to be fetched."""
        urls = [image.url for image in images if image.url is not None]
        if urls and self._settings.images.pass_urls:
            urls = [url for url in urls if url[:5].lower() not in ("http:", "https")]
        if urls and self._settings.records.image_root is not None:
            for url in urls:
                if url[:5].lower() not in ("http:", "https"):
                    raise BadImageError(
                        "image_outside_root",
                        f"{without_secrets(url)[:200]} is not in the image root",
                    )
        return tuple(urls)

    def _encode(
        self,
        image: ImageRef,
        place: _Place,
        render: Render,
        image_overrides: ImageOverrides,
        loaded: Mapping[str, bytes],
    ) -> list[EncodedImage]:
        """Return an image ready to be sent, or several frames of a moving one."""
        if image.url is not None:
            if image.url not in loaded:
                return [EncodedImage(url=image.url)]
            data = loaded[image.url]
        elif image.digest is not None:
            if image.digest not in loaded:
                raise BadImageError(
                    "image_missing",
                    "the record names an image by its digest, which is in the table it came from",
                )
            data = loaded[image.digest]
            place.reserve(len(data))
        elif image.path is not None:
            data = self._folders.read(image.path, place.reserve, waits=place.waits)
        else:
            data = image.data or b""
            place.reserve(len(data))
        if not data:
            raise BadImageError("image_empty", "the image is empty")
        return [
            EncodedImage(kind, b64encode(fitted), "", width, height)
            for kind, fitted, width, height in fit(data, self._wanted, render, image_overrides)
        ]


def _here(fetched: FetchedImages) -> dict[str, bytes]:
    """Return images that were fetched, or raise why one of them was not."""
    loaded: dict[str, bytes] = {}
    for url, found in fetched.images.items():
        if isinstance(found, Exception):
            raise found
        loaded[url] = found
    return loaded


def _not_at_once(_: bytes, __: ImageOverrides) -> tuple[Fitted, ...]:
    """Render nothing: decoding takes long."""
    raise WouldBlockError


class _Place:
    """What one record holds in the memory budget.

    Args:
        budget: The budget.
        reserved: Bytes it holds already.
        how: ``wait`` for room; ``at once`` or not at all, raising `WouldBlockError`; ``force``,
            room or not, for whom others may wait; ``none`` neither takes nor gives anything.
    """

    def __init__(
        self,
        budget: MemoryBudget,
        how: Literal["wait", "at once", "force", "none"],
        reserved: int = 0,
    ) -> None:
        self._budget = budget
        self._how = how
        self.reserved = reserved
        self.waits = how != "at once"

    def reserve(self, size: int) -> None:
        """Take what an image needs as it is and in base64; may block."""
        size += size // 3
        if self._how == "none":
            return
        if self._how == "at once":
            if not self._budget.reserve_at_once(size):
                raise WouldBlockError
        else:
            # A record that holds some already must not wait for others that do the same.
            self._budget.reserve(size, wait=self._how == "wait" and not self.reserved)
        self.reserved += size

    def settle(self, size: int) -> None:
        """Hold what is really held from now on."""
        if self._how != "none" and not 0 <= self.reserved - size < NEAR:
            self._budget.change(size - self.reserved)
            self.reserved = size

    def leave(self) -> None:
        """Give everything back."""
        if self.reserved:
            self._budget.release(self.reserved)
            self.reserved = 0


def _with_frames(
    turns: list[Turn], encoded: Mapping[int, list[EncodedImage]]
) -> tuple[list[Turn], list[EncodedImage]]:
    """Return turns in which an animated image stands once for each frame, and all the images."""
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
