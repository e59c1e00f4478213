"""Captions as trainers read them: LLaVA conversations, COCO captions, sidecar files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from captioner.core.errors import BadImageError
from captioner.core.keys import KeyTable, digest
from captioner.core.types import ImageRef
from captioner.engine.conversation import PLACEHOLDER
from captioner.images.archives import in_archive
from captioner.images.fit import read_structure
from captioner.journal.disk import replacing
from captioner.readers.rows import dumped

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import IO

    from captioner.outputs.reader import OutputReader


_QUESTIONS = frozenset({"prompt", "system_prompt", "ask", "preset", "prompt_field"})


def write_llava(book: OutputReader, target: Path) -> None:
    """Write LLaVA's conversations: what was asked as the human's turn, the caption as gpt's.

    System turns are left out, for LLaVA's own trainer knows none. Rows without an image in a
    file or at an address are left out, and counted.
    """

    def entries() -> Iterable[dict[str, Any]]:
        for number, row in enumerate(book.rows()):
            if (image := _place(book, row)) is not None:
                yield {
                    "id": str(row.get("id", number)),
                    "image": image,
                    "conversations": _conversation(book, row),
                }

    left_out = _Counting(entries(), book)
    with replacing(target) as partial, partial.open("wb") as file:
        _write_array(file, left_out)
    left_out.warn("LLaVA")
    if asked := sorted(_QUESTIONS.intersection(book.settings.get("accepted", ()))):
        book.warn(
            f"its questions are those of the last run: {', '.join(asked)} changed while captions "
            "were made (--accept-changes), and rows do not tell which of them were asked otherwise"
        )


class _Counting:
    """Counts what passes, to tell how many rows did not."""

    def __init__(self, entries: Iterable[Any], book: OutputReader) -> None:
        self._entries = entries
        self._book = book
        self._count = 0

    def __iter__(self) -> Any:
        for entry in self._entries:
            self._count += 1
            yield entry

    def warn(self, what: str) -> None:
        """Say how many rows were left out."""
        if left := sum(1 for _ in self._book.lines()) - self._count:
            self._book.warn(
                f"{left:,} captions are not in it: {what} names images by their files, and "
                "theirs are inside a table or a record"
            )


def _place(book: OutputReader, row: dict[str, Any]) -> str | list[str] | None:
    """Return where the images of a row are; None if one is in no file of its own."""
    places = [image.path or image.url for image in book.images(row)]
    if not places or None in places:
        return None
    found = [place for place in places if place is not None]
    return found[0] if len(found) == 1 else found


def _conversation(book: OutputReader, row: dict[str, Any]) -> list[dict[str, str]]:
    turns = [turn for turn in book.turns(row) if turn.role != "system"]
    found = [
        {
            "from": "human" if turn.role == "user" else "gpt",
            "value": "\n".join(
                PLACEHOLDER if isinstance(part, ImageRef) else part for part in turn.parts
            ),
        }
        for turn in turns
    ]
    asked = book.questions(row)
    if asked:
        marks = "".join(f"{PLACEHOLDER}\n" for _ in book.images(row))
        found = [{"from": "human", "value": marks + asked[0]}]
    found.append({"from": "gpt", "value": book.texts(row)[0]})
    for field, question in zip(book.fields[1:], asked[1:], strict=True):
        found.append({"from": "human", "value": question})
        found.append({"from": "gpt", "value": book.texts(row, field)[0]})
    return found


def write_coco(book: OutputReader, target: Path) -> None:
    """Write COCO captions: an image for each row, an annotation for each of its captions.

    Ids are those of the records where all are different whole numbers, else 1, 2, 3 …
    """
    ids = [row.get("id") for row in book.rows()]
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in ids)
    own = whole and len(set(ids)) == len(ids)

    def images() -> Iterable[dict[str, Any]]:
        for number, (row, held) in enumerate(book.rows_with_images(), 1):
            image: dict[str, Any] = {"id": row["id"] if own else number}
            place = _place(book, row)
            if isinstance(place, list):
                place = place[0]
            image["file_name"] = place or row.get("file_name") or f"{image['id']}"
            size = row.get("width"), row.get("height")
            if not all(isinstance(one, int) for one in size):
                size = _size(book, row, held)
            if all(size):
                image["width"], image["height"] = size
            yield image

    def annotations() -> Iterable[dict[str, Any]]:
        count = 0
        for number, (row, _) in enumerate(book.rows_with_images(), 1):
            for text in book.texts(row):
                count += 1
                image_id = row["id"] if own else number
                yield {"id": count, "image_id": image_id, "caption": text}

    with replacing(target) as partial, partial.open("wb") as file:
        file.write(b'{"info":{"description":"made by captioner"},"licenses":[],\n"images":')
        _write_array(file, images())
        file.write(b',\n"annotations":')
        _write_array(file, annotations())
        file.write(b"}\n")


def _size(book: OutputReader, row: dict[str, Any], held: dict[str, bytes]) -> tuple[int, int]:
    """Return width and height of a row's image; zeros where it cannot be read."""
    images = book.images(row)
    data = book.image_bytes(images[0], held) if images else None
    try:
        structure = read_structure(data) if data else None
    except BadImageError:
        structure = None
    if structure is None:
        return 0, 0
    turned = structure.orientation in range(5, 9)
    size = structure.width, structure.height
    return (size[1], size[0]) if turned else size


def _write_array(file: IO[bytes], entries: Iterable[Any]) -> None:
    between = b"[\n"
    for entry in entries:
        file.write(between + dumped(entry))
        between = b",\n"
    file.write(b"[]" if between == b"[\n" else b"\n]")


def write_sidecars(book: OutputReader, target: Path, *, suffix: str, overwrite: bool) -> None:
    """Write each caption beside its image: one line, under the image's name.

    Args:
        book: The captions.
        target: The folder in which images have the paths that the records name.
        suffix: ``.txt`` or ``.caption``.
        overwrite: Replace files that hold something else.
    """
    kept = homeless = clashing = 0
    written = KeyTable(offsets=False)
    for row in book.rows():
        place = _place(book, row)
        line = " ".join(book.texts(row)[0].split())
        if not isinstance(place, str) or "://" in place or in_archive(place) or not line:
            homeless += 1
            continue
        path = (target / place).with_suffix(suffix)  # an absolute path stays where it is
        if written.find(key := digest(os.fsencode(path))) is not None:
            clashing += 1
            continue
        written.add(key)
        try:
            kept += not _write_sidecar(path, line + "\n", overwrite=overwrite)
        except OSError:
            homeless += 1  # a name that is too long, say
    _remove_rejected(book, target, written, suffix=suffix, overwrite=overwrite)
    if kept:
        book.warn(
            f"{kept:,} files with another text are there already and were kept; --overwrite "
            "replaces them"
        )
    if clashing:
        book.warn(
            f"{clashing:,} captions are not in files: another image or record has the same name "
            "but for its ending, and was first"
        )
    if homeless:
        book.warn(f"{homeless:,} captions have no image in a file of its own to lie beside")


def _remove_rejected(
    book: OutputReader, target: Path, written: KeyTable, *, suffix: str, overwrite: bool
) -> None:
    """Remove what an export wrote before it was rejected: a trainer would read it."""
    left = 0
    for row in book.rejected():
        place = _place(book, row)
        if not isinstance(place, str) or "://" in place or in_archive(place):
            continue
        path = (target / place).with_suffix(suffix)
        if written.find(digest(os.fsencode(path))) is None and path.is_file():
            was = " ".join(book.texts(row)[0].split()) + "\n"
            if overwrite or path.read_text("utf-8", errors="replace") == was:
                path.unlink()
            else:
                left += 1
    if left:
        book.warn(
            f"{left:,} files of rejected captions hold another text and were left; --overwrite "
            "removes them"
        )


def _write_sidecar(path: Path, text: str, *, overwrite: bool) -> bool:
    """Write one file, unless another text is there; tell whether it is as it should be."""
    if path.exists():
        if path.is_file() and path.read_text("utf-8", errors="replace") == text:
            return True
        if not overwrite or not path.is_file():
            return False
    with replacing(path) as partial:
        partial.write_text(text, "utf-8")
    return True


def write_txt(book: OutputReader, target: Path, *, overwrite: bool = False) -> None:
    """Write ``.txt`` sidecars."""
    write_sidecars(book, target, suffix=".txt", overwrite=overwrite)


def write_caption(book: OutputReader, target: Path, *, overwrite: bool = False) -> None:
    """Write ``.caption`` sidecars, which kohya's trainer looks for first."""
    write_sidecars(book, target, suffix=".caption", overwrite=overwrite)
