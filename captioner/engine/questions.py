"""What is asked of a record, and what its row needs besides the answers."""

from __future__ import annotations

import re
from bisect import bisect
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import BadRecordError, SettingsError, WouldBlockError
from captioner.core.keys import digest
from captioner.core.ocr import ocr_available
from captioner.core.types import ImageRef, Notes, Turn
from captioner.engine.conversation import read_turns
from captioner.engine.existing import TextFiles
from captioner.engine.stage_plan import named_of_records, plans_of
from captioner.engine.template_context import NAMES, RecordContext, text_in
from captioner.engine.templates import CaptionTemplate, Filled, Templates, Texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.core.types import InputRecord
    from captioner.engine.reservation import Reservation
    from captioner.engine.template_context import Look
    from captioner.images.files import ImageFolders
    from captioner.settings.settings import Settings


class Questions:
    """What is asked of records.

    Args:
        settings: The settings, with texts read from their files.
        folders: Where image files are.
        look: Reads what templates name of an image.

    Attributes:
        plain: The questions, not filled in.
        vary: The questions or the rows depend on more than the turns of the record.
        may_keep: Text files that the run would write are kept if they are not empty.

    Raises:
        SettingsError: A template is wrong, or a library is not installed.
    """

    def __init__(self, settings: Settings, folders: ImageFolders, look: Look) -> None:
        self._settings = settings
        self._folders = folders
        self._look = look
        prompt, strict = settings.prompt, settings.prompt.missing == "fail"
        mix = prompt.mix()
        self._weights = list(accumulate(weight for weight, _ in mix))
        self._templates = Templates(
            prompt.system_prompt,
            prompt.prompt,
            settings.questions,
            [text for _, text in mix],
            strict=strict,
        )
        self._keys = settings.record_keys
        self._in_folder = prompt.prompt_file_in_folder
        around = settings.captions.caption_template
        _check_fields(self._templates.all_texts + ((around,) if around else ()), settings)
        self._around = CaptionTemplate(around, strict=strict) if around else None
        named = self._around.names if self._around else frozenset()
        self._staged = named_of_records(plans_of(settings))
        self._names = self._templates.names | ((named | self._staged) & NAMES)
        if "ocr" in self._names and not ocr_available():
            raise SettingsError("prompt: {{ ocr }} needs pip install rapidocr onnxruntime numpy")
        named |= self._staged
        self._noted = settings.joins or "prompt" in settings.extras or bool(named)
        self._text_files: TextFiles | None = None
        if settings.writes_text_files and settings.output is not None:
            self._text_files = TextFiles(settings.output, f".{settings.run.output_format}")
        self.plain: Texts = self._templates.texts
        self.vary = self._templates.any or self._noted
        keeps = settings.existing_files in ("skip", "error")
        self.may_keep = self._text_files is not None and keeps

    def kept(self, images: list[ImageRef], reservation: Reservation) -> str:
        """Return the text of the file that the run would write for a record; empty if none.

        Raises:
            BadRecordError: ``existing_caption``: it has one, and ``--existing`` is ``error``.
            WouldBlockError: Reading it would take a while.
        """
        if not reservation.waits:
            raise WouldBlockError
        text = self._text_files.text(images) if self._text_files else ""
        if text and self._settings.existing_files == "error":
            raise BadRecordError(
                "existing_caption",
                "the text file of the image is not empty (--existing skip or replace)",
            )
        return text

    def filled(
        self,
        record: InputRecord,
        fields: dict[str, Any],
        images: list[ImageRef],
        reservation: Reservation,
        loaded: dict[str, bytes],
    ) -> tuple[list[Turn], tuple[str, ...], Notes | None]:
        """Return turns, the questions that replace the record's, and the notes.

        All templates are filled in. What is read of the first image is added to ``loaded``.

        Raises:
            RecordError: A template cannot be filled in.
            WouldBlockError: That would take a while.
        """
        image = images[0] if images else ImageRef()

        def read() -> bytes | None:
            if image.path is not None and image.path not in loaded:
                loaded[image.path] = self._folders.read(image.path, reservation.reserve)
            return image.data or loaded.get(image.path or image.url or image.digest or "")

        settings = self._settings
        if not reservation.waits and (self._names or settings.joins or self._in_folder):
            raise WouldBlockError
        field = settings.fields[0]
        context = RecordContext(fields, image, self._names, self._folders, field, read, self._look)
        own = self._of_folder(image) if self._in_folder else ""
        chosen = self._choice(record) if self._weights else None
        texts = Filled(self._templates, fields, context, chosen, own)
        turns = read_turns(fields, settings.records, texts)
        if not self._noted:
            return turns, texts.questions, None
        asked = "\n".join(part for part in turns[-1].parts if isinstance(part, str))
        old = self._old(fields, images) if settings.joins else ()
        values = self._around.values(fields, context) if self._around is not None else {}
        known = {}
        if self._staged:
            found = {**context.values, **fields, "record": fields}
            known = {name: found[name] for name in self._staged if name in found}
        _check_depth([values, known])
        return turns, texts.questions, Notes(texts.questions or (asked,), old, values, known)

    def _choice(self, record: InputRecord) -> int:
        """Return which question of the mix a record gets: the same each time."""
        key = self._keys.of_record(record)
        number = digest(f"prompt {self._settings.records.seed} ".encode() + key)
        share = int.from_bytes(number, "big") / 2 ** (8 * len(number))
        return min(bisect(self._weights, share * self._weights[-1]), len(self._weights) - 1)

    def _of_folder(self, image: ImageRef) -> str:
        """Return the question in the file of the folder of an image; empty if there is none.

        Raises:
            BadRecordError: ``bad_sidecar``: the file cannot be read.
        """
        if image.path is None or self._in_folder is None:
            return ""
        content = self._folders.nearest(image.path, self._in_folder)
        return str(text_in(self._in_folder, content)) if content else ""

    def _old(self, fields: dict[str, Any], images: list[ImageRef]) -> tuple[str, ...]:
        """Return the captions that new ones are joined to, one for each question.

        Raises:
            BadRecordError: ``existing_caption``: one is not text.
        """
        found = [fields.get(name) or "" for name in self._settings.fields]
        if not any(found) and self._text_files is not None:
            found[0] = self._text_files.text(images)
        for value in found:
            if not isinstance(value, str):
                raise BadRecordError(
                    "existing_caption", "the old caption is not text, so that none can be joined"
                )
        return tuple(map(str.strip, found))


def _check_depth(values: list[dict[str, Any]]) -> None:
    """Refuse values that are nested so deeply that they cannot be written with what is around them.

    Raises:
        BadRecordError: ``record_too_large``.
    """
    try:
        orjson.dumps([[[[[[[[values]]]]]]]])
    except TypeError:
        raise BadRecordError(
            "record_too_large", "what a template names of the record is nested too deeply"
        ) from None


def _check_fields(texts: Sequence[str], settings: Settings) -> None:
    """Refuse templates that name a field which captioner writes beside the caption.

    Such a field is no part of a record's identity: records that differ in it alone are equal.
    """
    own = [name for name in settings.field_family if name not in settings.fields]
    named = re.compile(rf"\{{[{{%][^}}]*\b({'|'.join(map(re.escape, own))})\b")
    for text in texts:
        if found := named.search(text):
            raise SettingsError(
                f"prompt: the template names the field {found[1]!r}, which captioner writes "
                "itself; choose another --output-field, or rename the field"
            )
