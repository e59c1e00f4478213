"""Two outputs side by side: which caption of a record is better, voted blindly."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from captioner.core.errors import CaptionerError
from captioner.core.humanize import counted
from captioner.journal.companions import votes_path
from captioner.journal.reviews import Review, fingerprint
from captioner.journal.votes import Better, Vote, Votes, better_of
from captioner.outputs.rows import caption_text, parsed
from captioner.outputs.viewer.pairs import Pair, Pairs, place_of
from captioner.outputs.viewer.room import Room

if TYPE_CHECKING:
    from collections.abc import Mapping

    from captioner.outputs.viewer.store import ViewerStore

LONGEST_S = 0.5
"""Seconds of one look for the next pair."""

_CHANGED = "these captions have changed; load the page again"
_DEVIATIONS = 1.959964
"""Standard deviations on both sides that hold 95 % of a normal distribution."""


class Side(NamedTuple):
    """The captions of one output in a pair."""

    row: dict[str, Any]
    captions: dict[str, Any]
    of: str


class Comparison:
    """The votes between two outputs. Thread-safe.

    Args:
        first: The first output; the votes are beside it.
        second: The second output.

    Attributes:
        pairs: The rows that are compared.
    """

    def __init__(self, first: ViewerStore, second: ViewerStore) -> None:
        self.pairs = Pairs(first, second)
        self._stores = first, second
        self._votes = Votes(votes_path(first.output))
        self._lock = threading.Lock()
        self._equal: set[int] = set()  # places of pairs with equal captions
        self._hidden: set[int] = set()  # and of those that cannot be shown
        self._valid: dict[tuple[bytes, str, str], bool] = {}  # votes about the present captions
        self._version = self.pairs.version

    def next(self, place: int) -> dict[str, Any]:
        """Return the next pair without a vote, from a place on.

        Returns:
            The pair, or None at the end; where to look on, if the time was over before; and counts.
        """
        with self._lock:
            self._votes.refresh()
            self._tally()
            until = time.monotonic() + LONGEST_S
            shown, at = None, place
            while (pair := self.pairs.at(at)) is not None and time.monotonic() < until:
                at = pair.place + 1
                if (shown := self._shown(pair)) is not None:
                    break
            more = f"{at:x}" if pair is not None and shown is None else None
            return {"pair": shown, "more": more, **self._counts()}

    def _shown(self, pair: Pair) -> dict[str, Any] | None:
        """Return what the page shows of a pair; None if there is nothing to vote about."""
        try:
            key, first, second = self._read(pair)
            if self._votes.has(key, first.of, second.of):
                return None
            named = len(first.captions) > 1
            texts = [
                [
                    f"{name}: {caption_text(value)}" if named else caption_text(value)
                    for name, value in side.captions.items()
                ]
                for side in (first, second)
            ]
            if texts[0] == texts[1]:
                self._equal.add(pair.place)
                return None
            image = self._stores[0].display("rows", [pair.first])[0]["images"][:1]
            shown = {
                "place": f"{pair.place:x}",
                "next": f"{pair.place + 1:x}",
                "number": pair.first,
                "generation": self._stores[0].rows.generation,
                "image": image[0] if image else None,
                "captions": texts[::-1] if _is_swapped(key) else texts,
                "first": first.of,
                "second": second.of,
            }
            Room().show(shown)
        except (CaptionerError, LookupError, ValueError, TypeError, AttributeError):
            self._hidden.add(pair.place)
            return None
        return shown

    def _read(self, pair: Pair | None) -> tuple[bytes, Side, Side]:
        """Return the key and both sides of a pair.

        Raises:
            LookupError: A row is gone, or the outputs have no caption field in common.
            ValueError: A row cannot be read.
        """
        if pair is None:
            raise LookupError
        sides = []
        key = b""
        names = self._fields()
        for which, number in enumerate(pair[1:]):
            store = self._stores[which]
            line = store.rows.read(number, 1)[0]
            Room().read(line)
            row = parsed(line)
            if which == 0:
                key = store.reader.keys.of_output(line) or b""
            of = fingerprint(row, store.reader.fields)
            sides.append(Side(row, {both[0]: row[both[which]] for both in names}, of))
        return key, sides[0], sides[1]

    def _fields(self) -> list[tuple[str, str]]:
        """Return the caption fields that are compared, as they are called in each output."""
        first, second = (store.reader.fields for store in self._stores)
        both = [(name, name) for name in first if name in second]
        return both or [(first[0], second[0])]

    def vote(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Save a vote for ``left``, ``right``, ``equal`` or ``none``.

        Raises:
            ValueError: The vote is invalid, or the captions have changed.
            OSError: The disk refused.
        """
        with self._lock:
            try:
                key, first, second = self._read(self.pairs.at(int(given["place"], 16)))
            except LookupError:
                raise ValueError(_CHANGED) from None
            if (given.get("first"), given.get("second")) != (first.of, second.of):
                raise ValueError(_CHANGED)
            said = given.get("better")
            if said in ("left", "right"):
                said = "second" if (said == "right") != _is_swapped(key) else "first"
            self._votes.add(Vote(key, first.of, second.of, better_of(said)))
            return self._counts()

    def result(self) -> dict[str, Any]:
        """Return which output is better by the votes, with a sentence that says so."""
        with self._lock:
            self._votes.refresh()
            tally = self._tally()
            first, second = self._names()
            return {
                "first": first,
                "second": second,
                "votes": {one: tally[one] for one in get_args(Better) if one != "none"},
                "summary": summary(first, second, tally),
            }

    def adopt(self) -> dict[str, int]:
        """Review the first output by the votes: the second one's better captions become edits.

        Captions with a review, and captions of another type, stay as they are.

        Returns:
            The number of records by verdict.

        Raises:
            OSError: The disk refused.
        """
        store = self._stores[0]
        store.reviews.refresh()
        reviews = []
        with self._lock:
            self._tally()
            for vote in self._votes:
                if not self._valid[vote[:3]] or store.reviews.get(vote.key, vote.first):
                    continue
                _, first, second = self._read(self.pairs.at(place_of(vote.key)))
                own = first.captions
                better = dict(zip(own, second.captions.values(), strict=True))
                if vote.better != "second":
                    reviews.append(Review(vote.key, vote.first, "accepted", {}))
                elif all(type(own[name]) is type(better[name]) for name in own):
                    reviews.append(Review(vote.key, vote.first, "edited", better))
        if reviews:
            store.editor.save(reviews)
        return dict(Counter(review.verdict for review in reviews))

    def stop(self) -> None:
        """End what is being read soon."""
        self._stores[1].stop()

    def close(self) -> None:
        """Close the files of the second output."""
        self._stores[1].close()

    def _names(self) -> tuple[str, str]:
        paths = [store.output for store in self._stores]
        if paths[0].name == paths[1].name:
            return str(paths[0]), str(paths[1])
        return paths[0].name, paths[1].name

    def _tally(self) -> Counter[Better]:
        """Return the votes about the present captions, by decision."""
        if self._version != self.pairs.version:
            self._version = self.pairs.version
            self._valid.clear()
            self._equal.clear()
            self._hidden.clear()
        for vote in self._votes:
            if vote[:3] not in self._valid:
                self._valid[vote[:3]] = self._applies(vote)
        return Counter(vote.better for vote in self._votes if self._valid[vote[:3]])

    def _applies(self, vote: Vote) -> bool:
        try:
            key, first, second = self._read(self.pairs.at(place_of(vote.key)))
        except (CaptionerError, LookupError, ValueError, TypeError, AttributeError):
            return False
        return (key, first.of, second.of) == vote[:3]

    def _counts(self) -> dict[str, Any]:
        pairs, voted = len(self.pairs), self._tally().total()
        return {
            "pairs": pairs,
            "voted": voted,
            "equal": len(self._equal),
            "hidden": len(self._hidden),
            "left": max(0, pairs - voted - len(self._equal) - len(self._hidden)),
            "by_image": self.pairs.by_image,
        }


def _is_swapped(key: bytes) -> bool:
    """Return whether the second output is on the left: at random, and always for a record."""
    return bool(key[-1] & 1)


def wilson(wins: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson's score."""
    share, spread = wins / total, _DEVIATIONS**2 / total
    middle = share + spread / 2
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4)
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def summary(first: str, second: str, tally: Mapping[Better, int]) -> str:
    """Return what the votes say about two outputs."""
    wins, losses, equal = tally["second"], tally["first"], tally["equal"]
    ties = f" {counted(equal, 'pair')} equally good." if equal else ""
    if not wins + losses:
        return f"No pair is decided yet.{ties}"
    name = second
    if losses > wins:
        name, wins, losses = first, losses, wins
    low, high = wilson(wins, wins + losses)
    found = (
        f"{name} is better in {wins} of {counted(wins + losses, 'decided pair')}: "
        f"{100 * wins / (wins + losses):.0f} %, "
        f"95 % interval {100 * low:.0f} to {100 * high:.0f} % (Wilson's score)."
    )
    clear = "" if low > 0.5 else " The interval includes 50 %: no difference is shown yet."
    return found + ties + clear
