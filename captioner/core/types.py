"""Every value that moves, in the order a record meets them. No behaviour beyond construction."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - read by tools that inspect fields
from typing import Any, Literal, NamedTuple

Role = Literal["system", "user", "assistant"]


class InputRecord(NamedTuple):
    """One record as it stands in the input.

    Attributes:
        number: Position in the input, from 1: the line of a JSONL file, the element of an array.
        raw: The record's JSON without surrounding white space; if ``fault`` is set, its beginning.
        end: Offset in the input just after the record; tells how far a run has come.
        fault: Why the source could not deliver the record, as ``(code, message)``.
        key: The record's identity where the source had to compute it (16 bytes).
        images: Images that the record names by their digest, for they are in no file of
            their own; see `ImageRef`.
    """

    number: int
    raw: bytes
    end: int = 0
    fault: tuple[str, str] | None = None
    key: bytes | None = None
    images: tuple[tuple[str, bytes], ...] = ()


Line = InputRecord
"""The name of `InputRecord` until version 0.2."""

STORES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "hf": "hf",
    "az": "azure",
    "abfs": "azure",
}
"""Object stores by the scheme of their addresses, and the extra that reads each."""


class ImageRef(NamedTuple):
    """Where one image is: exactly one of the four is set.

    Attributes:
        path: A file's path as the record gives it, or ``archive.tar#member``.
        url: An ``http(s)`` URL, or the address of an object as in ``s3://bucket/name``.
        data: The image itself.
        digest: BLAKE2b-128 of the image in hexadecimal: it comes along with the record.
    """

    path: str | None = None
    url: str | None = None
    data: bytes | None = None
    digest: str | None = None


DIGEST = "blake2b"
"""Member of an image in a record that tells its digest, where the input holds its bytes."""


class Turn(NamedTuple):
    """One turn of a conversation: text and images in the order they are sent."""

    role: Role
    parts: tuple[str | ImageRef, ...]


class EncodedImage(NamedTuple):
    """An image ready to be sent.

    Attributes:
        media_type: For example ``image/jpeg``; empty when ``url`` is passed on.
        base64: The image's bytes in base64.
        url: An ``http(s)`` URL that the endpoint fetches by itself.
        width: Pixels; 0 if unknown.
        height: Pixels; 0 if unknown.
    """

    media_type: str = ""
    base64: bytes = b""
    url: str = ""
    width: int = 0
    height: int = 0


class ImageOverrides(NamedTuple):
    """How the images of one record differ from the settings.

    Attributes:
        scale: Factor of both sides, at most 1.
        reencode: Re-encode even an image that could be sent as it is.
    """

    scale: float = 1.0
    reencode: bool = False


UNCHANGED = ImageOverrides()
"""As the settings say."""


class NeedsFetch(NamedTuple):
    """A record whose images have to be fetched before it can be prepared.

    Attributes:
        record: The record.
        urls: Where they are.
    """

    record: InputRecord
    urls: tuple[str, ...]


class FetchedImages(NamedTuple):
    """Images that were fetched for a record, by URL; those that were not, by why.

    Attributes:
        images: Bytes, or the error.
        reserved: Bytes held for them in the memory budget.
    """

    images: dict[str, bytes | Exception]
    reserved: int


class PreparedRecord(NamedTuple):
    """A record ready to be sent.

    Attributes:
        record: The record it came from.
        questions: For each question the JSON array of its messages, in pieces that are sent one
            after the other; questions share the pieces that hold images.
        replaces: The record has a member of ours already; its value is replaced in place.
        reserved: Bytes held in the memory budget until the record is settled.
        pixels: Pixels of all its images, as far as they are known.
        key: Equal for records that ask the same about the same images (16 bytes).
        cached: The response of an earlier run, as the cache stores it; empty if there is none.
    """

    record: InputRecord
    questions: tuple[tuple[bytes, ...], ...]
    replaces: bool
    reserved: int
    pixels: int = 0
    key: bytes = b""
    cached: bytes = b""


class RequestOverrides(NamedTuple):
    """What one attempt asks for otherwise than the settings say.

    Attributes:
        temperature: Sampling temperature; None leaves that of the settings.
        max_tokens: Most tokens; None leaves that of the settings.
        turns: Turns after the question: an answer that would not do, and why not.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    turns: tuple[Turn, ...] = ()

    @property
    def raised(self) -> bool:
        """Temperature or length are not those of the settings."""
        return self.temperature is not None or self.max_tokens is not None


NO_OVERRIDES = RequestOverrides()
"""As the settings say."""


class Request(NamedTuple):
    """One HTTP request; the body is sent as its pieces in order, never joined needlessly."""

    method: str
    path: str
    pieces: tuple[bytes, ...] = ()


class Response(NamedTuple):
    """One HTTP reply. Header names are looked up in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Usage(NamedTuple):
    """Tokens as the endpoint counted them; 0 where it did not say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Completion(NamedTuple):
    """What the endpoint answered, not yet looked at as a caption; the text may be empty."""

    text: str
    finish_reason: str
    model: str
    usage: Usage


class ValidatedCompletion(NamedTuple):
    """An answer that is kept.

    Attributes:
        value: The caption's text, or the object where a schema was asked for.
        completion: The reply it came from.
        flag: Code of what is wrong with it, where the user takes it all the same; else empty.
        latency_s: Seconds the successful request took.
    """

    value: Any
    completion: Completion
    flag: str = ""
    latency_s: float = 0.0


class CaptionResult(NamedTuple):
    """The answers that make up one record's caption.

    Attributes:
        each: For each question, one for each sample.
        attempts: Requests sent for them.
    """

    each: list[list[ValidatedCompletion]]
    attempts: int


class Caption(NamedTuple):
    """A captioned record.

    Attributes:
        record: The record.
        text: The caption: text, an object where a schema was asked for, or a list of either.
        replaces: See :class:`PreparedRecord`.
        attempts: Requests sent for it; 0 where it shares the caption of an equal record.
        usage: Tokens of the requests whose answers are kept.
        more: Further members of the row, each a name and a JSON value.
    """

    record: InputRecord
    text: Any
    replaces: bool
    attempts: int
    usage: Usage
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def line(self) -> InputRecord:
        """The record, by its name until version 0.2."""
        return self.record

    @property
    def ok(self) -> bool:
        """True: there is a caption."""
        return True


class Failure(NamedTuple):
    """A record that has no caption.

    Attributes:
        record: The record.
        code: Short machine-readable kind, for example ``image_missing``.
        message: One plain sentence for a person.
        attempts: Requests sent for it, 0 if it never left.
    """

    record: InputRecord
    code: str
    message: str
    attempts: int

    @property
    def line(self) -> InputRecord:
        """The record, by its name until version 0.2."""
        return self.record

    @property
    def ok(self) -> bool:
        """False: there is no caption."""
        return False


Outcome = Caption | Failure
