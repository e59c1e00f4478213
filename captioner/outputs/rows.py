"""The prompt, images and captions of one row of an output."""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import BadImageError, RecordError
from captioner.engine.conversation import images_of, read_turns
from captioner.engine.templates import Templates, Texts
from captioner.readers.rows import dumped
from captioner.settings.options import DEFAULT_PROMPT, RecordSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from captioner.core.types import ImageRef, Turn
    from captioner.images.files import ImageFolders

_DEFAULT_TEMPLATES = Templates("", DEFAULT_PROMPT, [])
_LONG_NUMBER = re.compile(rb"\d{19}")


class Row(dict[str, Any]):
    """A row that earlier settings made than those in the checkpoint."""

    def __init__(self, row: dict[str, Any], made: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.made = made


class RowContents:
    """Reads the prompt and images of rows.

    Args:
        settings: The options of the run that wrote the rows, by name.
        image_field: The field that holds the images; None tries the usual names.
        folders: The folders with the image files.
    """

    def __init__(
        self, settings: Mapping[str, Any], image_field: str | None, folders: ImageFolders
    ) -> None:
        self.folders = folders
        self._settings = settings
        self._image_field = image_field
        self._earlier: dict[int, RowContents] = {}
        self.options = RecordSettings(
            image_field=image_field,
            conversation_field=settings.get("conversation_field"),
            prompt_field=settings.get("prompt_field"),
            max_images=sys.maxsize,  # the run decided
        )

    @cached_property
    def templates(self) -> Templates:
        """What fills in the prompts."""
        prompt = str(self._settings.get("prompt") or DEFAULT_PROMPT)
        questions = [str(one).partition("=")[2] for one in self._settings.get("ask") or []]
        return Templates("", prompt, [prompt] if self._settings.get("preset") else questions)

    def _of(self, row: dict[str, Any]) -> RowContents:
        """Return what reads a row with the settings that made it."""
        if not isinstance(row, Row):
            return self
        found = self._earlier.get(id(row.made))
        if found is None:
            found = RowContents(row.made, self._image_field, self.folders)
            self._earlier[id(row.made)] = found
        return found

    def questions(self, row: dict[str, Any]) -> tuple[str, ...]:
        """Return the questions that replaced the row's own prompt, as it keeps them or as set."""
        templates, asked = self._of(row).templates, self._asked(row)
        questions = templates.texts.questions
        if isinstance(asked, list) and len(asked) == len(questions):
            return tuple(map(str, asked))
        if isinstance(asked, str) and len(questions) == 1:
            return (asked,)
        return templates.fill(row).questions

    def _asked(self, row: dict[str, Any]) -> Any:
        """Return what a row says that was asked; None if it does not."""
        made = row.made if isinstance(row, Row) else self._settings
        kept = "prompt" in (made.get("with") or ()) or made.get("prompt_mix") or made.get("stages")
        if not (kept or made.get("prompt_file_in_folder")):
            return None
        return row.get(f"{made.get('output_field') or 'caption'}_prompt")

    def turns(self, row: dict[str, Any]) -> list[Turn]:
        """Return the turns that were sent for a row; empty if they cannot be rebuilt."""
        own = self._of(row)
        try:
            asked = self._asked(row)
            texts = Texts("", asked) if isinstance(asked, str) else own.templates.fill(row)
            return read_turns(row, own.options, texts)
        except RecordError:
            return []

    def prompt(self, row: dict[str, Any]) -> list[str]:
        """Return the text parts of the last turn that was sent for a row."""
        turns = self.turns(row)
        return [part for part in turns[-1].parts if isinstance(part, str)] if turns else []

    def shown_prompt(self, row: dict[str, Any]) -> str:
        """Return what was asked about a row as one text; empty if it cannot be rebuilt."""
        questions: tuple[str, ...] = ()
        with suppress(RecordError):
            questions = self.questions(row) if row else ()
        return "\n".join(questions or self.prompt(row))

    def model(self, row: dict[str, Any]) -> str:
        """Return the model that captioned a row; empty if it is not known."""
        settings = row.made if isinstance(row, Row) else self._settings
        return str(settings.get("model") or "")

    def images(self, row: dict[str, Any]) -> list[ImageRef]:
        """Return the images of a row, even if its prompt cannot be filled in."""
        with suppress(RecordError):
            default = _DEFAULT_TEMPLATES.fill
            return images_of(self.turns(row) or read_turns(row, self.options, default(row)))
        return []

    def first_image(self, row: dict[str, Any], embedded: Mapping[str, bytes]) -> bytes | None:
        """Return the bytes of a row's first image; None if there is none on this machine."""
        images = self.images(row)
        return self.image_bytes(images[0], embedded) if images else None

    def image_bytes(self, image: ImageRef, embedded: Mapping[str, bytes]) -> bytes | None:
        """Return the bytes of an image; None if it is not on this machine.

        ``embedded`` contains the images inside the input row, by digest.
        """
        if image.digest is not None:
            return embedded.get(image.digest)
        if image.data is None and image.path is not None:
            with suppress(BadImageError):
                return self.folders.read(image.path, lambda _: None)
        return image.data


def caption_texts(row: Mapping[str, Any], field: str) -> list[str]:
    """Return the captions in a field as text; `samples` makes several."""
    value = row.get(field)
    return [caption_text(one) for one in (value if isinstance(value, list) else [value])]


def caption_text(value: Any) -> str:
    """Return a caption as text; an object becomes JSON."""
    return value if isinstance(value, str) else dumped(value).decode()


def parsed(line: bytes) -> dict[str, Any]:
    """Return a line of JSON as a row. Integers beyond 64 bits stay exact."""
    read = json.loads if _LONG_NUMBER.search(line) else orjson.loads  # orjson makes them floats
    row: dict[str, Any] = read(line)
    return row
