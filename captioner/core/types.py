"""Values that the packages pass to each other, in the order in which a record meets them."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - read by tools that inspect fields
from typing import Any, Literal, NamedTuple

Role = Literal["system", "user", "assistant"]


class InputRecord(NamedTuple):
    """One record as it stands in the input.

    Attributes:
        number: Position in the input, from 1: the line of a JSONL file, the element of an array.
        raw: The record's JSON without surrounding white space; if ``fault`` is set, its beginning.
        end: Offset in the input just after the record, to show progress.
        fault: Why the source could not deliver the record, as ``(code, message)``.
        key: The record's key (16 bytes), if the source computed it.
        images: Digest and bytes of images that the input itself holds; see `ImageRef`.
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
    "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf", "az": "azure", "abfs": "azure",
}  # fmt: skip
"""The extra that reads an object store, by the scheme of its addresses."""

_LIBRARIES = {"s3": "s3fs", "gcs": "gcsfs", "hf": "huggingface_hub", "azure": "adlfs"}


def library_of(url: str) -> str:
    """Return the package that reads the object store of a URL, for ``pip install``."""
    return _LIBRARIES.get(STORES.get(url.partition(":")[0].lower(), ""), "fsspec")


class ImageRef(NamedTuple):
    """The location of one image: exactly one of the four is set.

    Attributes:
        path: A file's path as the record gives it, or ``archive.tar#member``.
        url: An ``http(s)`` URL, or the address of an object as in ``s3://bucket/name``.
        data: The image itself.
        digest: BLAKE2b-128 of the image in hexadecimal; the bytes are in `InputRecord.images`.
    """

    path: str | None = None
    url: str | None = None
    data: bytes | None = None
    digest: str | None = None


DIGEST = "blake2b"
"""Field of an image in a record that holds its digest, if the input holds its bytes."""


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
        time_s: When a frame of a video or an animated image is shown; None for other images.
    """

    media_type: str = ""
    base64: bytes = b""
    url: str = ""
    width: int = 0
    height: int = 0
    time_s: float | None = None


class ImageOverrides(NamedTuple):
    """How the images of one record differ from the settings.

    Attributes:
        scale: Factor of both sides, at most 1.
        reencode: Re-encode even an image that could be sent as it is.
        crop: Left, top, right and bottom of the part to send, in pixels of the upright image, or
            as fractions of its sides if none is above 1; None sends all of it.
    """

    scale: float = 1.0
    reencode: bool = False
    crop: tuple[float, float, float, float] | None = None


UNCHANGED = ImageOverrides()
"""No change to the settings."""


class NeedsFetch(NamedTuple):
    """A record whose images must be fetched from URLs before it can be prepared."""

    record: InputRecord
    urls: tuple[str, ...]


class FetchedImages(NamedTuple):
    """The images fetched for a record.

    Attributes:
        images: Bytes or the error, by URL.
        reserved: Bytes held for them in the memory budget.
    """

    images: dict[str, bytes | Exception]
    reserved: int


class Notes(NamedTuple):
    """What the row of a record needs besides the answers, kept until they come.

    Attributes:
        prompts: The texts that were asked, one for each question.
        digests: BLAKE2b-128 of the file of each image, None for one that the endpoint fetches.
        existing: The old captions that new ones are joined to, one for each question.
        values: What the caption template names.
        known: What stages name of the record and its image.
    """

    prompts: tuple[str, ...] = ()
    existing: tuple[str, ...] = ()
    values: dict[str, Any] = {}  # noqa: RUF012 - not changed
    known: dict[str, Any] = {}  # noqa: RUF012 - not changed
    digests: tuple[str | None, ...] | list[str | None] = ()


class Pictures(NamedTuple):
    """The images of a record as they are sent, and a digest of them."""

    frames: tuple[EncodedImage, ...]
    digest: bytes


class Asked(NamedTuple):
    """The question of a stage.

    Attributes:
        turns: The texts of its turns; empty for one of the record's own questions.
        image: The images of the record are sent with it.
        crop: See `ImageOverrides`.
        own: Which of the record's own questions it is.
    """

    turns: tuple[Turn, ...] = ()
    image: bool = True
    crop: tuple[float, float, float, float] | None = None
    own: int = 0

    @property
    def text(self) -> str:
        """The question; empty for one of the record's own."""
        return "\n".join(map(str, self.turns[-1].parts)) if self.turns else ""


class PreparedRecord(NamedTuple):
    """A record ready to be sent.

    Attributes:
        questions: For each question the JSON array of its messages, in consecutive pieces;
            questions share the pieces that hold images.
        replaces: The record has a caption field already; its value is replaced in place.
        reserved: Bytes held in the memory budget until the record is settled.
        pixels: Pixels of all its images whose size is known.
        key: Equal for records with the same questions about the same images (16 bytes).
        cached: The response of an earlier run, as the cache stores it; empty if there is none.
        notes: What the row needs besides the answers; None if nothing.
        pictures: Its images, for the questions of stages; None without stages.
        asked: The question of the stage; None without stages.
    """

    record: InputRecord
    questions: tuple[tuple[bytes, ...], ...]
    replaces: bool
    reserved: int
    pixels: int = 0
    key: bytes = b""
    cached: bytes = b""
    notes: Notes | None = None
    pictures: Pictures | None = None
    asked: Asked | None = None


class RequestOverrides(NamedTuple):
    """Changes to the settings for one attempt.

    Attributes:
        temperature: None leaves that of the settings.
        max_tokens: None leaves that of the settings.
        turns: Turns after the question: a rejected answer, and why it was rejected.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    turns: tuple[Turn, ...] = ()
    thinking: bool | None = None

    @property
    def raised(self) -> bool:
        """Whether temperature or length differ from the settings."""
        return self.temperature is not None or self.max_tokens is not None


NO_OVERRIDES = RequestOverrides()
"""No change to the settings."""


class Request(NamedTuple):
    """One HTTP request; the body is sent as its pieces, in order."""

    method: str
    path: str
    pieces: tuple[bytes, ...] = ()


class Response(NamedTuple):
    """One HTTP reply. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Usage(NamedTuple):
    """Tokens as the endpoint counted them; 0 if it did not.

    Attributes:
        prompt_tokens: Input tokens.
        completion_tokens: Output tokens.
        cached_tokens: Those of the input that the endpoint still had from another request.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total(self) -> int:
        """Input and output tokens."""
        return self.prompt_tokens + self.completion_tokens


class Completion(NamedTuple):
    """The model's text, not checked as a caption yet.

    Attributes:
        text: The text without thinking; may be empty.
        finish_reason: Why the model ended, in the endpoint's words.
        model: The model, in the endpoint's words.
        usage: Tokens of the request.
        thought: The model wrote thinking as well.
        logprobs: ``logprobs`` of the choice as the endpoint sent it; None if it did not.
    """

    text: str
    finish_reason: str
    model: str
    usage: Usage
    thought: bool = False
    logprobs: Any = None


class ValidatedCompletion(NamedTuple):
    """An answer that is kept.

    Attributes:
        value: Text, or an object if a schema is set.
        flag: Code of a fault that the user accepts; else empty.
        latency_s: Seconds the successful request took.
        raw: The value before it was given its shape; None if it was given none.
        asked: The question of the stage that it answers; empty if it is that of the record.
        doubt: How doubtful it is, from 0 to 1; None if that is not known.
    """

    value: Any
    completion: Completion
    flag: str = ""
    latency_s: float = 0.0
    raw: Any = None
    asked: str = ""
    doubt: float | None = None


class CaptionResult(NamedTuple):
    """The answers that make up one record's caption.

    Attributes:
        each: For each question, one answer for each sample.
        attempts: Requests sent.
        endpoint: The one that gave the last answer, which may still have the image; see
            `EndpointPool.choose`. None if it is not known.
    """

    each: list[list[ValidatedCompletion]]
    attempts: int
    endpoint: Any = None


class Caption(NamedTuple):
    """A captioned record.

    Attributes:
        text: Text, an object if a schema is set, or a list of either.
        replaces: See `PreparedRecord`.
        attempts: Requests sent; 0 if it shares the caption of an equal record.
        usage: Tokens of the requests whose answers are kept.
        more: Name and JSON value of each further field of the row.
        existing: The record had its captions before and is kept as it is (``--existing skip``).
    """

    record: InputRecord
    text: Any
    replaces: bool
    attempts: int
    usage: Usage
    more: tuple[tuple[str, Any], ...] = ()
    existing: bool = False

    @property
    def line(self) -> InputRecord:
        """The record, by its name until version 0.2."""
        return self.record

    @property
    def ok(self) -> bool:
        """True: there is a caption."""
        return True


class Failure(NamedTuple):
    """A record without a caption.

    Attributes:
        code: Machine-readable code, for example ``image_missing``.
        message: One sentence for a person.
        attempts: Requests sent.
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
