"""Statistics of captions: lengths, repetition, refusals, languages, words."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections import Counter
from functools import lru_cache
from itertools import accumulate, islice
from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64_digest

from captioner.core.keys import KeyTable, digest
from captioner.engine.caption_checks import looks_refused

if TYPE_CHECKING:
    from collections.abc import Iterable

SAMPLE = 20_000
"""Random captions that are compared for near-duplicates."""

LANGUAGE_SAMPLE = 2_000
OPENING_WORDS = 4
NEAR_BITS = 3
"""Near-duplicates have 64-bit fingerprints that differ in at most this many bits."""

MOST_COUNTED = 200_000
"""Openings and words that are counted at once; beyond twice as many the rarest are dropped."""

CLASSES = 24
"""Bars of a histogram."""

_WORD = re.compile(r"\w+", re.UNICODE)
_MOST_WORDS = 60_000
_LANES = [
    b"".join((byte >> bit & 1).to_bytes(2, "big") for bit in range(7, -1, -1))
    for byte in range(256)
]
"""The bits of a byte, each in two bytes."""

_EACH_LANE = int.from_bytes(64 * b"\0\1", "big")
_HIGHEST = (1 << 15) - 1
_AS_DIGIT = 128 * b"0" + 128 * b"1"
"""The highest bit of a byte as a digit."""


class Quality(NamedTuple):
    """Statistics of captions. Counts are of captions unless stated.

    Attributes:
        chars: Characters of a caption: minimum, median, mean, 95th percentile, maximum.
        words: Words of a caption: the same values.
        histogram: Upper bound of each class of characters, and its count.
        duplicates: Captions that repeat an earlier one word for word.
        near_duplicates: Captions of the sample that nearly repeat another one.
        openings: The most frequent first words and their counts.
        refusals: Captions that read like a refusal.
        languages: Captions of a sample by ISO 639-1 code; empty without the library.
        vocabulary: Distinct words, in lower case.
        top_words: The most frequent words of five or more letters and their counts.
    """

    captions: int
    chars: dict[str, float]
    words: dict[str, float]
    histogram: list[tuple[float, int]]
    duplicates: int
    near_duplicates: int
    sample: int
    openings: list[tuple[str, int]]
    refusals: int
    languages: dict[str, int]
    vocabulary: int
    top_words: list[tuple[str, int]]


def caption_statistics(captions: Iterable[str]) -> Quality:
    """Return statistics of captions. Memory is bounded for any number of them."""
    chance = random.Random(0)  # noqa: S311 - chooses a sample
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
        if key in seen:
            duplicates += 1
        else:
            seen.add(key)
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
        _summary(lengths),
        _summary(word_counts),
        histogram(lengths),
        duplicates,
        _near_duplicates(sample),
        len(sample),
        [(text, count) for text, count in openings.most_common(10) if count > 1],
        refusals,
        _languages(sample[:LANGUAGE_SAMPLE]),
        len(words),
        [one for one in words.most_common(200) if len(one[0]) >= 5][:20],
    )


def histogram(counts: Counter[int] | Counter[float]) -> list[tuple[float, int]]:
    """Return classes of equal width for counted values: each class's upper bound and count.

    Integer values get integer bounds.
    """
    if not counts:
        return []
    highest = max(counts)
    width = highest // CLASSES + 1 if isinstance(highest, int) else (highest or 1) / CLASSES
    found: Counter[int] = Counter()
    for value, count in counts.items():
        found[min(CLASSES - 1, int(value / width))] += count
    return [(round((number + 1) * width, 3), found[number]) for number in range(max(found) + 1)]


def _summary(counts: Counter[int]) -> dict[str, float]:
    if not counts:
        return {"min": 0, "median": 0, "mean": 0.0, "p95": 0, "max": 0}
    values = sorted(counts)
    at_most = list(accumulate(counts[value] for value in values))
    total = at_most[-1]
    return {
        "min": values[0],
        "median": values[bisect_left(at_most, 0.5 * total)],
        "mean": round(sum(value * count for value, count in counts.items()) / total, 1),
        "p95": values[bisect_left(at_most, 0.95 * total)],
        "max": values[-1],
    }


def _near_duplicates(sample: list[str]) -> int:
    """Return how many texts nearly repeat an earlier one.

    This is SimHash (Charikar 2002) over pairs of words: texts that share nearly all pairs have
    fingerprints that differ in few bits. Only fingerprints that share 16 bits are compared.
    """
    bands: list[dict[int, list[int]]] = [{} for _ in range(4)]
    near = 0
    for text in dict.fromkeys(sample):  # exact duplicates are counted elsewhere
        fingerprint = simhash(text)
        parts = [
            band.setdefault(fingerprint >> 16 * number & 0xFFFF, [])
            for number, band in enumerate(bands)
        ]
        candidates = {other for part in parts for other in part[-50:]}
        near += any((fingerprint ^ other).bit_count() <= NEAR_BITS for other in candidates)
        for part in parts:
            part.append(fingerprint)
    return near


def opening_of(text: str) -> str:
    """Return the first words of a text, in lower case."""
    words = islice(_WORD.finditer(text.lower()), OPENING_WORDS)
    return " ".join(word[0] for word in words)


def simhash(text: str) -> int:
    """Return the 64-bit fingerprint of a text; similar texts differ in few bits."""
    words = _WORD.findall(text.lower())[:_MOST_WORDS]
    pairs = words[1:] or words
    counts = sum(map(_bits_of_pair, words, pairs))
    # Lanes with more than half of the pairs get their highest bit, by one addition for all.
    high = (counts + (_HIGHEST - len(pairs) // 2) * _EACH_LANE).to_bytes(128, "big")[::2]
    return int(high.translate(_AS_DIGIT), 2)


@lru_cache(1 << 16)
def _bits_of_pair(word: str, following: str) -> int:
    """Return the bits of a hash in lanes of two bytes, so that one addition counts all bits."""
    hashed = xxh3_64_digest(f"{word} {following}".encode(errors="replace"))
    return int.from_bytes(b"".join([_LANES[byte] for byte in hashed]), "big")


def _languages(sample: list[str]) -> dict[str, int]:
    try:
        import py3langid
    except ImportError:
        return {}
    return dict(Counter(py3langid.classify(text)[0] for text in sample if text).most_common())
