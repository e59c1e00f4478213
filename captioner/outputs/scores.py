"""Captions against references: BLEU and chrF by sacrebleu, CIDEr-D by its paper."""

from __future__ import annotations

import math
import re
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.journal.companions import find_journal
from captioner.journal.disk import Files
from captioner.outputs.reader import OutputReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GRAMS = 4
SIGMA = 6.0
"""Of the penalty for another length, in words (Vedantam, Zitnick, Parikh 2015, section 5)."""

_WORD = re.compile(r"\w+", re.UNICODE)


class Scores(NamedTuple):
    """How near captions are to their references; all scores are of the whole set.

    Attributes:
        captions: Compared.
        unmatched: Captions for which there is no reference.
        bleu: BLEU-4, 0 to 100, with sacrebleu's own tokenizer and smoothing.
        chrf: chrF2, 0 to 100.
        cider: CIDEr-D, 0 to 10; words in lower case, without a stemmer.
        bleu_signature: What makes sacrebleu's figures comparable.
    """

    captions: int
    unmatched: int
    bleu: float
    chrf: float
    cider: float
    bleu_signature: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dictionary."""
        return self._asdict()


def score(
    output: Path, references: Path, *, warn: Callable[[str], None] = lambda _: None
) -> Scores:
    """Compare the captions of a run with references.

    Args:
        output: The captions.
        references: COCO captions, whose images are found by ``file_name`` or ``id``; or JSONL with
            ``id``, ``file_name`` or ``image``, and ``caption``, ``captions`` or ``references``.
        warn: Called with a sentence when something is worth knowing but no error.

    Raises:
        SettingsError: A file cannot be read, or no caption has a reference.
    """
    sacrebleu = needed("sacrebleu", "eval")
    known = read_references(references)
    texts: list[str] = []
    theirs: list[list[str]] = []
    unmatched = 0
    journal = find_journal(output, Files())
    with closing(OutputReader.open(journal, warn=warn)) as book:
        for row in book.rows():
            found = next((known[name] for name in _names(book, row) if name in known), None)
            if found is None:
                unmatched += 1
                continue
            texts.append(book.texts(row)[0])
            theirs.append(found)
    if not texts:
        raise SettingsError(
            f"references: none of them is of a caption in {output.name}; they are matched by id, "
            "file_name or the image's path"
        )
    most = max(map(len, theirs))
    columns = [[each[at] if at < len(each) else None for each in theirs] for at in range(most)]
    bleu = sacrebleu.BLEU()
    return Scores(
        len(texts),
        unmatched,
        round(bleu.corpus_score(texts, columns).score, 2),
        round(sacrebleu.CHRF().corpus_score(texts, columns).score, 2),
        round(cider_d(texts, theirs), 3),
        str(bleu.get_signature()),
    )


def _names(book: OutputReader, row: dict[str, Any]) -> list[str]:
    """Return what a row may be known by among references."""
    names = [f"id:{row['id']}"] if "id" in row else []
    if "file_name" in row:
        names.append(f"path:{row['file_name']}")
    for image in book.images(row):
        if place := image.path or image.url:
            names += [f"path:{place}", f"path:{Path(place).name}"]
    return names


def read_references(path: Path) -> dict[str, list[str]]:
    """Return references by what they are known by: ``id:…`` and ``path:…``.

    Raises:
        SettingsError: The file cannot be read, or holds none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"references: cannot read {path}: {error.strerror}") from None
    found: dict[str, list[str]] = {}
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value = None
    try:
        if isinstance(value, dict) and "annotations" in value:
            names = {one["id"]: one.get("file_name") for one in value.get("images", [])}
            for note in value["annotations"]:
                image_id = note["image_id"]
                _add(found, image_id, names.get(image_id), [note["caption"]])
        else:
            for line in data.splitlines():
                if line.strip():
                    row = orjson.loads(line)
                    said = row.get("references") or row.get("captions") or row["caption"]
                    image = row.get("file_name") or row.get("image")
                    image = image[0] if isinstance(image, list) else image
                    _add(found, row.get("id"), image, said if isinstance(said, list) else [said])
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SettingsError(
            f"references: {path.name} is neither COCO captions nor JSONL with captions: {error!r}"
        ) from None
    if not found:
        raise SettingsError(f"references: there are none in {path}")
    return found


def _add(found: dict[str, list[str]], key: Any, image: Any, texts: Sequence[Any]) -> None:
    said = [str(text) for text in texts]
    if key is not None:
        found.setdefault(f"id:{key}", []).extend(said)
    if isinstance(image, str):
        for name in dict.fromkeys((image, Path(image).name)):
            found.setdefault(f"path:{name}", []).extend(said)


def cider_d(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return CIDEr-D of a set: how far captions say what several people say (0 to 10).

    Runs of one to four words are weighted by how rare they are among all references, counts are
    clipped, and another length is penalised, as in the paper.
    """
    held = [[_grams(one) for one in several] for several in references]
    rare: Counter[tuple[str, ...]] = Counter()
    for several in held:
        rare.update({gram for grams in several for gram in grams})
    whole = math.log(max(len(held), 2))

    def weighted(grams: Counter[tuple[str, ...]], size: int) -> dict[tuple[str, ...], float]:
        return {
            gram: count * max(0.0, whole - math.log(max(1, rare[gram])))
            for gram, count in grams.items()
            if len(gram) == size
        }

    total = 0.0
    for text, several in zip(texts, held, strict=True):
        ours = _grams(text)
        length = sum(count for gram, count in ours.items() if len(gram) == 1)
        for theirs in several:
            other = sum(count for gram, count in theirs.items() if len(gram) == 1)
            penalty = math.exp(-((length - other) ** 2) / (2 * SIGMA**2))
            for size in range(1, GRAMS + 1):
                mine, yours = weighted(ours, size), weighted(theirs, size)
                norms = math.hypot(*mine.values()) * math.hypot(*yours.values())
                if norms:
                    shared = sum(min(mine[g], yours[g]) * yours[g] for g in mine.keys() & yours)
                    total += penalty * shared / norms / GRAMS / len(several)
    return 10 * total / len(texts)


def _grams(text: str) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return Counter(
        tuple(words[at : at + size])
        for size in range(1, GRAMS + 1)
        for at in range(len(words) - size + 1)
    )
