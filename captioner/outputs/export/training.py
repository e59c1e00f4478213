"""Captions in the formats of trainers: LLaVA conversations, COCO captions, sidecar files."""

from __future__ import annotations

import itertools
import logging
import os
from typing import TYPE_CHECKING, Any

from captioner.core.errors import BadImageError
from captioner.core.jsonbytes import json_array
from captioner.core.keys import KeyTable, digest
from captioner.core.media import is_video
from captioner.core.regular import writing
from captioner.core.types import ImageRef
from captioner.engine.conversation import PLACEHOLDER
from captioner.engine.existing import text_file
from captioner.images.inspect import read_structure
from captioner.journal.disk import Files, replacing
from captioner.journal.finalize import write_array
from captioner.outputs.export.tables import LEFT_OUT, warn_count
from captioner.outputs.rows import caption_texts
from captioner.readers.rows import dumped

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from captioner.outputs.reader import OutputReader

logger = logging.getLogger(__name__)

_QUESTIONS = frozenset({"prompt", "system_prompt", "ask", "preset", "prompt_field"})


def write_llava(reader: OutputReader, target: Path) -> None:
    """Write LLaVA conversations: the prompt as the human's turn, the caption as gpt's.

    System turns are left out because LLaVA's trainer does not support them. Rows whose images
    have no path or URL are left out too.
    """
    left_out = 0

    def entries() -> Iterable[bytes]:
        nonlocal left_out
        for number, row in enumerate(reader.rows()):
            paths = _image_paths(reader, row)
            left_out += not paths
            if paths:
                entry = {
                    "id": str(row.get("id", number)),
                    "video" if all(map(is_video, paths)) else "image": paths[0]
                    if len(paths) == 1
                    else paths,
                    "conversations": _conversation(reader, row),
                }
                yield dumped(entry)

    write_array(entries(), target, Files())
    reason = "LLaVA names images by path or URL, and these images are inside a table or a record"
    warn_count(left_out, *LEFT_OUT, reason)
    changed = sorted(_QUESTIONS.intersection(reader.settings.get("accepted", ())))
    if changed and not reader.made.settings:  # an earlier version wrote the output
        logger.warning(
            "the questions are those of the last run: %s changed between runs "
            "(--accept-changes), and rows do not record which question they answer",
            ", ".join(changed),
        )


def _image_paths(reader: OutputReader, row: dict[str, Any]) -> list[str]:
    """Return the paths or URLs of a row's images; empty if one image has neither."""
    paths = [image.path or image.url for image in reader.contents.images(row)]
    found = [path for path in paths if path is not None]
    return found if len(found) == len(paths) else []


def _conversation(reader: OutputReader, row: dict[str, Any]) -> list[dict[str, str]]:
    questions = reader.contents.questions(row)
    if questions:
        marks = f"{PLACEHOLDER}\n" * len(reader.contents.images(row))
        turns = [_turn("human", marks + questions[0])]
    else:
        turns = [
            _turn(
                "human" if turn.role == "user" else "gpt",
                "\n".join(PLACEHOLDER if isinstance(one, ImageRef) else one for one in turn.parts),
            )
            for turn in reader.contents.turns(row)
            if turn.role != "system"
        ]
    turns.append(_turn("gpt", reader.first_caption(row)))
    for field, question in zip(reader.fields[1:], questions[1:], strict=True):
        turns += [_turn("human", question), _turn("gpt", caption_texts(row, field)[0])]
    return turns


def _turn(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


def write_coco(reader: OutputReader, target: Path) -> None:
    """Write COCO captions: an image for each row and an annotation for each of its captions.

    Ids are those of the records if these are distinct integers, else 1, 2, 3 …
    """
    ids = [row.get("id") for row in reader.rows()]
    keep_ids = all(type(one) is int for one in ids) and len(set(ids)) == len(ids)

    def images() -> Iterable[bytes]:
        for number, (row, embedded) in enumerate(reader.rows_with_images(), 1):
            image: dict[str, Any] = {"id": row["id"] if keep_ids else number}
            paths = _image_paths(reader, row)
            image["file_name"] = paths[0] if paths else row.get("file_name") or f"{image['id']}"
            size = row.get("width"), row.get("height")
            if not all(isinstance(one, int) for one in size):
                size = _size(reader, row, embedded)
            if all(size):
                image["width"], image["height"] = size
            yield dumped(image)

    def annotations() -> Iterable[bytes]:
        count = itertools.count(1)
        for number, (row, _) in enumerate(reader.rows_with_images(), 1):
            image_id = row["id"] if keep_ids else number
            for text in caption_texts(row, reader.fields[0]):
                yield dumped({"id": next(count), "image_id": image_id, "caption": text})

    with replacing(target) as partial, writing(partial) as file:
        file.write(b'{"info":{"description":"made by captioner"},"licenses":[],\n"images":')
        file.writelines(json_array(images()))
        file.write(b',\n"annotations":')
        file.writelines(json_array(annotations()))
        file.write(b"}\n")


def _size(reader: OutputReader, row: dict[str, Any], embedded: dict[str, bytes]) -> tuple[int, int]:
    """Return width and height of a row's first image; zeros if it cannot be read."""
    data = reader.contents.first_image(row, embedded)
    try:
        structure = read_structure(data) if data else None
    except BadImageError:
        structure = None
    if structure is None:
        return 0, 0
    size = structure.width, structure.height
    return size[::-1] if structure.orientation in range(5, 9) else size


def write_sidecars(reader: OutputReader, target: Path, *, suffix: str, overwrite: bool) -> None:
    """Write each caption as one line into a file beside its image.

    Args:
        reader: The captions.
        target: The folder in which the images have the paths that the records name.
        suffix: ``.txt``, or ``.caption``, which kohya's trainer prefers.
        overwrite: Replace files with other text.
    """
    kept = without_file = same_name = 0
    written = KeyTable(offsets=False)
    for row in reader.rows():
        path, text = _sidecar(reader, row, target, suffix)
        if path is None or text == "\n":
            without_file += 1
            continue
        if (key := digest(os.fsencode(path))) in written:
            same_name += 1
            continue
        written.add(key)
        try:
            kept += not _write_sidecar(path, text, overwrite=overwrite)
        except OSError:
            without_file += 1  # for example, the name is too long
    _remove_rejected(reader, target, written, suffix=suffix, overwrite=overwrite)
    kept_files = ("file with another text was kept", "files with another text were kept")
    warn_count(kept, *kept_files, "--overwrite replaces them")
    no_file = ("caption has no file", "captions have no file")
    warn_count(same_name, *no_file, "an earlier image has the same name, apart from its extension")
    warn_count(without_file, *no_file, "the image is not a separate file")


def _sidecar(
    reader: OutputReader, row: dict[str, Any], target: Path, suffix: str
) -> tuple[Path | None, str]:
    """Return the path and text of a row's sidecar; the path is None without an image file."""
    text = " ".join(reader.first_caption(row).split()) + "\n"
    return text_file(target, _image_paths(reader, row), suffix), text


def _remove_rejected(
    reader: OutputReader, target: Path, written: KeyTable, *, suffix: str, overwrite: bool
) -> None:
    """Remove sidecars of captions that were rejected after an earlier export."""
    kept = 0
    for row in reader.rejected():
        path, text = _sidecar(reader, row, target, suffix)
        if path is None or not path.is_file() or digest(os.fsencode(path)) in written:
            continue
        if overwrite or path.read_text("utf-8", errors="replace") == text:
            path.unlink()
        else:
            kept += 1
    files = ("file of a rejected caption was kept", "files of rejected captions were kept")
    warn_count(kept, *files, "another text is in the file; --overwrite removes it")


def _write_sidecar(path: Path, text: str, *, overwrite: bool) -> bool:
    """Write a file unless it has other text; return whether it now has this text.

    Other blanks make no other text.
    """
    if path.exists():
        old = path.read_text("utf-8", errors="replace").split() if path.is_file() else None
        if old == text.split():
            return True
        if old is None or (old and not overwrite):
            return False
    with replacing(path) as partial, writing(partial) as file:
        file.write(text.encode())
    return True
