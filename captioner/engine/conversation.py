"""From a parsed record to the turns that are sent, images in their places. Pure, no I/O.

Two spellings of a conversation are read alike: ``{"from": "human", "value": …}`` (LLaVA, ShareGPT)
and ``{"role": "user", "content": …}`` (OpenAI), mixed as one likes.
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from captioner.core.cells import from_cell
from captioner.core.errors import BadRecordError
from captioner.core.humanize import exactly
from captioner.core.types import DIGEST, STORES, ImageRef, Role, Turn
from captioner.settings.options import CONVERSATION_FIELDS, IMAGE_FIELDS

if TYPE_CHECKING:
    from captioner.engine.templates import Filled, Texts
    from captioner.settings.options import PromptSettings, RecordSettings

PLACEHOLDER = "<image>"
VIDEO_PLACEHOLDER = "<video>"

_PLACE = re.compile(f"{PLACEHOLDER}|{VIDEO_PLACEHOLDER}")

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|(file):/", re.IGNORECASE)
_DATA_URI = re.compile(r"data:([^,]*),", re.IGNORECASE)
_MEDIA = ("image_url", "image", "video_url", "video")
"""Types of parts that hold an image or a video, in a member of the same name."""

_BASE64_IMAGES = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
"""How the base64 of a JPEG, PNG, GIF and WebP begins."""

_LONG = 100
"""Characters; shorter text is taken for a path."""

MAX_PARTS = 10_000
"""Most turns of a conversation, and most parts of all its turns together."""

MAX_TEXT = 4 << 20
"""Most characters of the texts of a request; no model reads as many."""

_Turn = tuple[Role, list[Any]]
_IS_IMAGE = object()
"""Stands in a list of parts for the next image of the record's image field."""


def read_turns(
    record: dict[str, Any], records: RecordSettings, prompt: PromptSettings | Texts | Filled
) -> list[Turn]:
    """Return the turns to send: never without an image, and a user turn last.

    Images and videos stand where ``<image>`` or ``<video>`` placeholders are; those that have
    none come before the text of the last user turn. Turns after that one are an old answer and
    are not sent. A system turn of the record's own takes the place of the default system prompt.

    Raises:
        BadRecordError: The record has no image, too many images, turns or characters, an unknown
            role, or a value of a wrong type.
    """
    images = _read_images(record, records.image_field, records.max_images)
    fields = (records.conversation_field,) if records.conversation_field else CONVERSATION_FIELDS
    asked = records.prompt_field
    if images and (asked is not None or record.keys().isdisjoint(fields)):
        question = _read_prompt(record, asked) or prompt.prompt
        # As nearly all records are: it spares the general way.
        if PLACEHOLDER not in question and VIDEO_PLACEHOLDER not in question:
            if len(question) > MAX_TEXT:
                raise _too_long(len(question))
            turn = Turn("user", (*images, question))
            return (
                [Turn("system", (prompt.system_prompt,)), turn] if prompt.system_prompt else [turn]
            )
    conversation = _read_conversation(record, records.conversation_field) if asked is None else []
    turns = _up_to_the_question(conversation)
    _ask(turns, record, asked, prompt)
    _place_images(turns, images)
    _ask(turns, record, asked, prompt)  # where there was but a placeholder
    pictured = sum(isinstance(part, ImageRef) for _, parts in turns for part in parts)
    _check_count(pictured, records.max_images)
    _check_length(sum(len(part) for _, parts in turns for part in parts if isinstance(part, str)))
    if not pictured:
        names = ", ".join(repr(name)[:40] for name in list(record)[:10]) or "none"
        raise BadRecordError("no_image", f"the record names no image; its fields: {names}")
    if not any(role == "system" for role, _ in turns) and (system := prompt.system_prompt):
        turns.insert(0, ("system", [system]))
    return [Turn(role, tuple(parts)) for role, parts in turns]


def _check_length(length: int) -> None:
    if length > MAX_TEXT:
        raise _too_long(length)


def _too_long(length: int) -> BadRecordError:
    return BadRecordError(
        "record_too_large",
        f"the texts of the record have {length} characters; the most is {MAX_TEXT}",
    )


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise BadRecordError(
            "too_many_images",
            f"the record has {count} images; the most is {most} (--max-images)",
        )


def _check_parts(count: int) -> None:
    if count > MAX_PARTS:
        raise BadRecordError(
            "record_too_large",
            f"the conversation has more than {MAX_PARTS} turns, parts or places for images",
        )


def ask_each(turns: list[Turn], questions: tuple[str, ...]) -> list[list[Turn]]:
    """Return the turns once for each question; the record's own where there are none.

    A question takes the place of all that the record says, its system turns excepted; its
    images stay, in order, before the question.
    """
    if not questions:
        return [turns]
    _check_length(sum(map(len, questions)))
    system = [turn for turn in turns if turn.role == "system"]
    images = images_of([turn for turn in turns if turn.role != "system"])
    return [[*system, Turn("user", (*images, question))] for question in questions]


def images_of(turns: list[Turn]) -> list[ImageRef]:
    """Return the images of all turns, in the order they are sent."""
    return [part for turn in turns for part in turn.parts if isinstance(part, ImageRef)]


def _up_to_the_question(turns: list[_Turn]) -> list[_Turn]:
    """Return the turns with a user turn last, an empty one if there is none.

    What follows the last user turn is an old answer; system turns count wherever they stand.
    """
    last = max((at for at, (role, _) in enumerate(turns) if role == "user"), default=-1)
    later = [turn for turn in turns[last + 1 :] if turn[0] == "system"]
    return later + (turns[: last + 1] if last >= 0 else [("user", [])])


def _ask(
    turns: list[_Turn],
    record: dict[str, Any],
    field: str | None,
    prompt: PromptSettings | Texts | Filled,
) -> None:
    """Put a question into the last turn if it has none."""
    parts = turns[-1][1]
    if not any(isinstance(part, str) for part in parts):
        parts.append(_read_prompt(record, field) or prompt.prompt)


def _place_images(turns: list[_Turn], images: list[ImageRef]) -> None:
    """Put the images where the placeholders are, in order; the rest into the last turn."""
    left = iter(images)
    places = marks = 0
    needed = bool(images)  # a placeholder in a text may stand for an image among the parts
    for at, (role, parts) in enumerate(turns):
        if role != "user":
            if any(part is _IS_IMAGE for part in parts):
                raise BadRecordError(
                    "bad_conversation",
                    f"turn {at + 1} is not the user's, but has a place for an image",
                )
            continue
        placed: list[Any] = []
        for part in parts:
            if part is not _IS_IMAGE and not (isinstance(part, str) and _PLACE.search(part)):
                placed.append(part)
                continue
            needed = needed or part is _IS_IMAGE
            if isinstance(part, str):
                marks += part.count(PLACEHOLDER) + part.count(VIDEO_PLACEHOLDER)
                _check_parts(marks)
            texts = ["", ""] if part is _IS_IMAGE else _PLACE.split(str(part))
            for number, text in enumerate(texts):
                if number:
                    places += 1
                    placed += [image for image in [next(left, None)] if image is not None]
                if text.strip():
                    placed.append(text.strip())
        turns[at] = (role, placed)
    if needed and places > len(images):
        raise BadRecordError(
            "image_count",
            f"the conversation has {exactly(places, 'place')} for images, but the record has "
            f"{exactly(len(images), 'image')}",
        )
    turns[-1][1][:0] = list(left)


def _read_conversation(record: dict[str, Any], field: str | None) -> list[_Turn]:
    name, value = _first(record, (field,) if field else CONVERSATION_FIELDS)
    if value is None:
        return []
    if isinstance(value, str):
        value = from_cell(value)
    if isinstance(value, str):
        return [("user", _read_content(value, 1))]
    if not isinstance(value, list):
        raise BadRecordError("bad_conversation", f"{name!r} is not a list of turns")
    _check_parts(len(value))
    turns: list[_Turn] = []
    count = 0
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            raise BadRecordError("bad_conversation", f"turn {number} of {name!r} is not an object")
        _, who = _first(turn, ("from", "role"))
        role = _ROLES.get(who.lower()) if isinstance(who, str) else None
        if role is None:
            raise BadRecordError(
                "unknown_role",
                f"turn {number} of {name!r} is by {str(who)[:40]!r}; known are {', '.join(_ROLES)}",
            )
        _, content = _first(turn, ("value", "content"))
        if isinstance(content, list):
            count += len(content)
            _check_parts(count)
        turns.append((role, _read_content(content, number)))
    return turns


def _read_content(content: Any, number: int) -> list[Any]:
    if content is None:
        return []
    if isinstance(content, str):
        return [] if _is_blank(content) else [content]
    if isinstance(content, list):
        parts = [_read_part(part, number) for part in content]
        return [part for part in parts if part is _IS_IMAGE or not _is_blank(part)]
    raise BadRecordError("bad_conversation", f"turn {number} has neither text nor parts")


def _read_part(part: Any, number: int) -> Any:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            return part["text"]
        if kind in _MEDIA:
            _, source = _first(part, _MEDIA)
            return _IS_IMAGE if source is None else _read_image(source)
    raise BadRecordError(
        "bad_conversation", f"turn {number} has a part that is neither text nor an image"
    )


def _read_prompt(record: dict[str, Any], field: str | None) -> str:
    field = field or "prompt"
    prompt = record.get(field)
    if prompt is None:
        return ""
    if not isinstance(prompt, str):
        raise BadRecordError("bad_prompt", f"{field!r} is not text")
    return prompt.strip()


def image_field_of(record: dict[str, Any], field: str | None) -> str:
    """Return the name of the field that holds a record's images."""
    return _first(record, (field,) if field else IMAGE_FIELDS)[0]


def _read_images(record: dict[str, Any], field: str | None, most: int) -> list[ImageRef]:
    _, value = _first(record, (field,) if field else IMAGE_FIELDS)
    if value is None:
        return []
    if isinstance(value, str):
        value = from_cell(value)
    if isinstance(value, list):
        _check_count(len(value), most)
        return [_read_image(one) for one in value]
    return [_read_image(value)]


def _read_image(value: Any) -> ImageRef:
    if isinstance(value, dict):
        if isinstance(data := value.get("bytes"), str):
            return ImageRef(data=_base64(data))
        if isinstance(digest := value.get(DIGEST), str):
            return ImageRef(digest=digest)
        value = value.get("url") or value.get("path")
    if not isinstance(value, str) or not value.strip():
        raise BadRecordError(
            "bad_image_reference", "an image is neither a path, a URL, a data URI nor bytes"
        )
    text = value.strip()
    if found := _SCHEME.match(text):
        return _read_url((found[1] or found[2]).lower(), text)
    if text[:5].lower() == "data:":
        head = _DATA_URI.match(text)
        if head is None or not head[1].lower().endswith(";base64"):
            raise BadRecordError("bad_image_reference", "a data URI is not in base64")
        return ImageRef(data=_base64(text[head.end() :]))
    if text.startswith(_BASE64_IMAGES) and len(text) >= _LONG:
        return ImageRef(data=_base64(text))
    return ImageRef(path=value)


def _read_url(scheme: str, url: str) -> ImageRef:
    if scheme == "file":
        host, slash, path = url[len("file:") :].removeprefix("//").partition("/")
        if host.lower() not in ("", "localhost") or not slash:
            raise BadRecordError(
                "bad_image_reference",
                f"{url[:200]} names the machine {host[:100]!r}: write file:///… for a file of this "
                "machine, or its path alone",
            )
        return ImageRef(path=unquote(slash + path))
    if scheme not in ("http", "https", *STORES):
        raise BadRecordError(
            "bad_image_reference", f"images are not read from {scheme[:20]}:// addresses"
        )
    return ImageRef(url=url)


def _base64(text: str) -> bytes:
    if "%" in text:
        text = unquote(text)
    if "-" in text or "_" in text:  # the URL-safe alphabet, RFC 4648 section 5
        text = text.replace("-", "+").replace("_", "/")
    try:
        data = text.encode("ascii")
        try:
            return binascii.a2b_base64(data, strict_mode=True)
        except binascii.Error:  # broken into lines, or without its padding
            data = data.translate(None, b" \t\r\n").rstrip(b"=")
            return binascii.a2b_base64(data + b"=" * (-len(data) % 4), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise BadRecordError("bad_image_reference", "an image's base64 is broken") from None


def _first(record: dict[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    """Return the first field with a value: tables with both spellings leave one empty."""
    for name in names:
        if record.get(name) not in (None, "", []):
            return name, record[name]
    return names[0], None


def _is_blank(part: Any) -> bool:
    return isinstance(part, str) and not part.strip()
