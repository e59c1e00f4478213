"""What captions are like as a whole: lengths, repetition, refusals, languages, words."""

from __future__ import annotations

import random
import re
from collections import Counter
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.core.keys import KeyTable, digest
from captioner.engine.caption_checks import looks_refused

if TYPE_CHECKING:
    from collections.abc import Iterable

SAMPLE = 20_000
"""Captions that are compared with one another and whose languages are told; chosen at random."""

OPENING_WORDS = 4
NEAR_BITS = 3
"""Bits of 64 in which two captions' fingerprints may differ, and still be near-duplicates."""

MOST_COUNTED = 200_000
"""Openings and words that are counted at once; the rarest are forgotten beyond."""

_WORD = re.compile(r"\w+", re.UNICODE)


class Quality(NamedTuple):
    """What was found. Counts are of captions unless named otherwise.

    Attributes:
        captions: Looked at.
        chars: Characters: least, median, mean, 95th percentile, most.
        words: Words of a caption, likewise.
        histogram: Upper bound of each class of characters, and how many are in it.
        duplicates: Those that stand somewhere above word for word.
        near_duplicates: Of the sample, those that nearly do.
        sample: How many were in it.
        openings: First words, and how many begin with them; the most frequent ones.
        refusals: Those that read like a refusal.
        languages: Of the sample, by ISO 639-1 code; empty where the library is not installed.
        vocabulary: Different words, in lower case.
        top_words: Words of five letters and more, and how often they stand; the most frequent.
    """

    captions: int
    chars: dict[str, float]
    words: dict[str, float]
    histogram: list[tuple[int, int]]
    duplicates: int
    near_duplicates: int
    sample: int
    openings: list[tuple[str, int]]
    refusals: int
    languages: dict[str, int]
    vocabulary: int
    top_words: list[tuple[str, int]]

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dictionary."""
        return self._asdict()


def look_at(captions: Iterable[str], *, seed: int = 0) -> Quality:
    """Return what captions are like; memory is bounded, whatever their number."""
    chance = random.Random(seed)  # noqa: S311 - of a sample
    lengths: Counter[int] = Counter()
    word_counts: Counter[int] = Counter()
    openings: Counter[str] = Counter()
    words: Counter[str] = Counter()
    seen = KeyTable(offsets=False)
    sample: list[str] = []
    total = duplicates = refusals = 0
    for text in captions:
        total += 1
        found = _WORD.findall(text.lower())
        lengths[len(text)] += 1
        word_counts[len(found)] += 1
        openings[" ".join(found[:OPENING_WORDS])] += 1
        words.update(found)
        refusals += looks_refused(text)
        key = digest(text.encode(errors="replace"))
        if seen.find(key) is None:
            seen.add(key)
        else:
            duplicates += 1
        if len(sample) < SAMPLE:
            sample.append(text)
        elif (at := chance.randrange(total)) < SAMPLE:
            sample[at] = text
        for counter in (openings, words):
            if len(counter) > 2 * MOST_COUNTED:
                for rare, _ in counter.most_common()[MOST_COUNTED:]:
                    del counter[rare]
    return Quality(
        total,
        _spread(lengths),
        _spread(word_counts),
        _histogram(lengths),
        duplicates,
        _near_duplicates(sample),
        len(sample),
        [(text, count) for text, count in openings.most_common(10) if count > 1],
        refusals,
        _languages(sample[:2_000]),
        len(words),
        [one for one in words.most_common(200) if len(one[0]) >= 5][:20],
    )


def _spread(counts: Counter[int]) -> dict[str, float]:
    total = counts.total()
    if not total:
        return {"min": 0, "median": 0, "mean": 0.0, "p95": 0, "max": 0}
    ordered = sorted(counts)

    def at(share: float) -> int:
        behind = 0
        for value in ordered:
            behind += counts[value]
            if behind >= share * total:
                return value
        return ordered[-1]

    mean = sum(value * count for value, count in counts.items()) / total
    return {
        "min": ordered[0],
        "median": at(0.5),
        "mean": round(mean, 1),
        "p95": at(0.95),
        "max": ordered[-1],
    }


def _histogram(counts: Counter[int], classes: int = 24) -> list[tuple[int, int]]:
    """Return how many values are in each of some classes, each with its upper bound."""
    if not counts:
        return []
    width = max(1, -(-(max(counts) + 1) // classes))
    found = [0] * -(-(max(counts) + 1) // width)
    for value, count in counts.items():
        found[value // width] += count
    return [((number + 1) * width, count) for number, count in enumerate(found)]


def _near_duplicates(sample: list[str]) -> int:
    """Return how many of some texts have another one before them that is nearly the same.

    By SimHash (Charikar 2002) over runs of two words: texts that share nearly all of them have
    fingerprints that differ in few bits.
    """
    bands: list[dict[int, list[int]]] = [{} for _ in range(4)]
    near = 0
    exact: set[str] = set()
    for text in sample:
        if text in exact:
            continue  # those are counted as duplicates
        exact.add(text)
        print_ = _fingerprint(text)
        candidates = {
            other
            for number, band in enumerate(bands)
            for other in band.get(print_ >> 16 * number & 0xFFFF, ())[-50:]
        }
        near += any((print_ ^ other).bit_count() <= NEAR_BITS for other in candidates)
        for number, band in enumerate(bands):
            band.setdefault(print_ >> 16 * number & 0xFFFF, []).append(print_)
    return near


def _fingerprint(text: str) -> int:
    words = _WORD.findall(text.lower())
    weights = [0] * 64
    for pair in zip(words, words[1:] or words, strict=False):
        bits = int.from_bytes(blake2b(" ".join(pair).encode(), digest_size=8).digest(), "big")
        for bit in range(64):
            weights[bit] += 1 if bits >> bit & 1 else -1
    return sum(1 << bit for bit in range(64) if weights[bit] > 0)


def _languages(sample: list[str]) -> dict[str, int]:
    try:
        import py3langid
    except ImportError:
        return {}
    return dict(Counter(py3langid.classify(text)[0] for text in sample if text).most_common())
