"""Captions compared with references: BLEU and chrF by sacrebleu, and CIDEr-D."""

from __future__ import annotations

import math
import re
from collections import Counter
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.journal.companions import find_journal
from captioner.journal.disk import Files
from captioner.outputs.reader import OutputReader
from captioner.outputs.stored import local_copy

if TYPE_CHECKING:
    from collections.abc import Sequence

GRAMS = 4
SIGMA = 6.0
"""Width of the length penalty in words (Vedantam, Zitnick, Parikh 2015, section 5)."""

_WORD = re.compile(r"\w+", re.UNICODE)


class Scores(NamedTuple):
    """Similarity of captions to their references, over the whole set.

    Attributes:
        unmatched: Captions without a reference.
        bleu: BLEU-4, 0 to 100, with sacrebleu's own tokenizer and smoothing.
        chrf: chrF2, 0 to 100.
        cider: CIDEr-D, 0 to 10; words in lower case, without a stemmer.
        bleu_signature: sacrebleu's signature, which makes scores comparable.
    """

    captions: int
    unmatched: int
    bleu: float
    chrf: float
    cider: float
    bleu_signature: str

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as a JSON-ready dictionary."""
        return self._asdict()


def score(output: Path, references: Path) -> Scores:
    """Compare the captions of an output with references.

    Args:
        output: The output. One in an object store is copied for the time.
        references: COCO captions, matched by ``file_name`` or ``id``; or JSONL with ``id``,
            ``file_name`` or ``image``, and ``caption``, ``captions`` or ``references``.

    Raises:
        SettingsError: A file cannot be read, or no caption has a reference.
    """
    sacrebleu = needed("sacrebleu")
    known = read_references(references)
    texts: list[str] = []
    matched: list[list[str]] = []
    captions = 0
    with (
        local_copy(output) as copy,
        closing(OutputReader(find_journal(copy, Files()))) as reader,
    ):
        for row in reader.rows():
            captions += 1
            if found := next(filter(None, map(known.get, _names(reader, row))), None):
                texts.append(reader.first_caption(row))
                matched.append(found)
    if not texts:
        raise SettingsError(
            f"references: none of them matches a caption in {output.name}; they are matched by id, "
            "file_name or image path"
        )
    columns = list(zip_longest(*matched))
    bleu = sacrebleu.BLEU()
    return Scores(
        len(texts),
        captions - len(texts),
        round(bleu.corpus_score(texts, columns).score, 2),
        round(sacrebleu.CHRF().corpus_score(texts, columns).score, 2),
        round(cider_d(texts, matched), 3),
        str(bleu.get_signature()),
    )


def _names(reader: OutputReader, row: dict[str, Any]) -> list[str]:
    """Return the names under which references may list a row."""
    names = [f"id:{row['id']}"] if "id" in row else []
    names += [f"path:{row['file_name']}"] if "file_name" in row else []
    for image in reader.contents.images(row):
        if place := image.path or image.url:
            names += [f"path:{place}", f"path:{Path(place).name}"]
    return names


def read_references(path: Path) -> dict[str, list[str]]:
    """Return references by name: ``id:…`` or ``path:…``.

    Raises:
        SettingsError: The file cannot be read or contains no references.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"references: cannot read {path}: {error.strerror}") from None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value = None
    found: dict[str, list[str]] = {}
    try:
        if isinstance(value, dict) and "annotations" in value:
            names = {one["id"]: one.get("file_name") for one in value.get("images", [])}
            for annotation in value["annotations"]:
                image_id = annotation["image_id"]
                _add(found, image_id, names.get(image_id), [annotation["caption"]])
        else:
            for row in map(orjson.loads, filter(bytes.strip, data.splitlines())):
                texts = row.get("references") or row.get("captions") or row["caption"]
                image = row.get("file_name") or row.get("image")
                image = image[0] if isinstance(image, list) else image
                _add(found, row.get("id"), image, texts if isinstance(texts, list) else [texts])
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SettingsError(
            f"references: {path.name} is neither COCO captions nor JSONL with captions: {error!r}"
        ) from None
    if not found:
        raise SettingsError(f"references: {path} contains none")
    return found


def _add(found: dict[str, list[str]], key: Any, image: Any, texts: Sequence[Any]) -> None:
    names = [] if key is None else [f"id:{key}"]
    if isinstance(image, str):
        names += [f"path:{name}" for name in dict.fromkeys((image, Path(image).name))]
    for name in names:
        found.setdefault(name, []).extend(map(str, texts))


def cider_d(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the CIDEr-D score of a set, 0 to 10.

    N-grams of one to four words are weighted by how rare they are among all references, counts
    are clipped, and a difference in length is penalised, as in the paper.
    """
    counted = [[_grams(one) for one in several] for several in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for several in counted:
        frequency.update({gram for grams in several for gram in grams})
    log_documents = math.log(max(len(counted), 2))

    def weighted(grams: Counter[tuple[str, ...]], size: int) -> dict[tuple[str, ...], float]:
        return {
            gram: count * max(0.0, log_documents - math.log(max(1, frequency[gram])))
            for gram, count in grams.items()
            if len(gram) == size
        }

    def length(grams: Counter[tuple[str, ...]]) -> int:
        return sum(count for gram, count in grams.items() if len(gram) == 1)

    total = 0.0
    for text, several in zip(texts, counted, strict=True):
        ours = _grams(text)
        for theirs in several:
            penalty = math.exp(-((length(ours) - length(theirs)) ** 2) / (2 * SIGMA**2))
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
