"""Changes of many captions at once, and undoing of changes. Every change is a review."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.journal.reviews import Review, Verdict, fingerprint
from captioner.outputs.rows import parsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from captioner.outputs.viewer.store import ViewerStore

MOST_EDITED = 50_000
"""Captions that are changed at once."""

SHOWN = 100
"""Changes that a preview shows."""

LONGEST_S = 20.0
MOST_UNDONE = 100_000
"""Reviews that are kept to be undone."""


class Edit(NamedTuple):
    r"""A change of text.

    Attributes:
        find: What is replaced, a text or a pattern of RE2; empty replaces nothing.
        is_pattern: Whether it is a pattern; ``\1`` in the replacement is its first group.
        prefix: Put before each caption that does not begin with it.
        suffix: Put after each caption that does not end with it.
    """

    find: str = ""
    replacement: str = ""
    is_pattern: bool = False
    prefix: str = ""
    suffix: str = ""

    def function(self) -> Callable[[str], str]:
        """Return the change as a function of a text.

        Raises:
            ValueError: The pattern is invalid.
        """
        replaced = self._replacing()

        def change(text: str) -> str:
            text = replaced(text).strip()
            if text and not text.startswith(self.prefix):
                text = self.prefix + text
            return text if not text or text.endswith(self.suffix) else text + self.suffix

        return change

    def _replacing(self) -> Callable[[str], str]:
        if not self.find:
            return str
        if not self.is_pattern:
            return lambda text: text.replace(self.find, self.replacement)
        try:
            import re2
        except ImportError:
            raise ValueError("patterns need google-re2, which this Python does not have") from None
        options = re2.Options()
        options.log_errors = False
        try:
            pattern = re2.compile(self.find, options)
        except re2.error as error:
            reason = error.args[0].decode(errors="replace")
            raise ValueError(f"the pattern is invalid: {reason}") from None

        def replaced(text: str) -> str:
            try:
                return str(pattern.sub(self.replacement, text))
            except (IndexError, UnicodeDecodeError):
                raise ValueError(
                    "the replacement is invalid: it names a group that the pattern does not have"
                ) from None

        return replaced


class Editor:
    """Changes captions of a store. Thread-safe."""

    def __init__(self, store: ViewerStore) -> None:
        self._store = store
        self._undo: deque[list[Review]] = deque()
        self._lock = threading.Lock()

    def edit(self, numbers: list[int], edit: Edit, *, apply: bool) -> dict[str, Any]:
        """Change captions, or show what would change.

        Rejected captions, and those that are no text, stay as they are.

        Returns:
            The number of changed captions, and the first of them before and after.

        Raises:
            ValueError: There are too many captions, it takes too long, or the edit is invalid.
            OSError: The disk refused.
        """
        if len(numbers) > MOST_EDITED:
            raise ValueError(f"at most {MOST_EDITED} captions can be changed at once; select fewer")
        change = edit.function()
        until = time.monotonic() + LONGEST_S
        changes: list[dict[str, Any]] = []
        reviews = []
        for number, row, before in self._reviewed(numbers):
            if time.monotonic() > until:
                raise ValueError(f"it takes more than {LONGEST_S:g} s; select fewer captions")
            captions = dict(before.captions)
            for name in self._store.reader.fields:
                text = before.edited(row).get(name)
                after = change(text) if isinstance(text, str) else ""
                if after and after != text:
                    captions[name] = after
                    changes.append({"number": number, "before": text, "after": after})
            if captions != before.captions:
                reviews.append(before._replace(verdict="edited", captions=captions))
        if apply and reviews:
            self.save(reviews)
        return {"captions": len(changes), "records": len(reviews), "changes": changes[:SHOWN]}

    def judge(self, numbers: list[int], verdict: Verdict) -> int:
        """Accept or reject rows, or take their reviews back; return how many changed."""
        if len(numbers) > MOST_EDITED:
            raise ValueError(f"at most {MOST_EDITED} captions can be reviewed at once")
        reviews = []
        for _, _, before in self._reviewed(numbers, rejected=True):
            kept = before.captions if verdict in ("accepted", "edited") else {}
            said: Verdict = "edited" if kept else verdict
            if said != before.verdict:
                reviews.append(before._replace(verdict=said, captions=kept))
        if reviews:
            self.save(reviews)
        return len(reviews)

    def _reviewed(
        self, numbers: list[int], *, rejected: bool = False
    ) -> Iterator[tuple[int, dict[str, Any], Review]]:
        """Yield rows with their reviews; one without a review has the verdict ``none``."""
        reader = self._store.reader
        for number in numbers:
            for line in self._store.rows.read(number, 1):
                try:
                    row, key = parsed(line), reader.keys.of_output(line)
                except ValueError:
                    continue
                if key is None:
                    continue
                of = fingerprint(row, reader.fields)
                found = self._store.reviews.of(key, row, reader.fields)
                if rejected or found is None or found.verdict != "rejected":
                    yield number, row, found or Review(key, of, "none", {})

    def save(self, reviews: list[Review]) -> None:
        """Save reviews as one step, which can be undone.

        Raises:
            OSError: The disk refused.
        """
        with self._lock:
            known = self._store.reviews
            before = [
                known.get(one.key, one.of) or Review(one.key, one.of, "none", {}) for one in reviews
            ]
            known.add(*reviews)
            self._undo.append(before)
            while sum(map(len, self._undo)) > MOST_UNDONE and len(self._undo) > 1:
                self._undo.popleft()

    def undo(self) -> int:
        """Undo the last step; return the number of its reviews, 0 if there is none."""
        with self._lock:
            if not self._undo:
                return 0
            self._store.reviews.add(*self._undo[-1])
            return len(self._undo.pop())

    def __len__(self) -> int:
        """Return the number of steps that can be undone."""
        return len(self._undo)
