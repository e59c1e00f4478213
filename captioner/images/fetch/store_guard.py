"""Whose fault errors of object stores are: one record's, or the store's."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from captioner.core.errors import StoreGaveOutError
from captioner.core.humanize import sentence
from captioner.core.retry import waits

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from captioner.images.fetch.object_stores import StoreFaultError

STOP_FIRST = 10
STOP_LATER = 25
"""Errors of the same kind in a row, before the first object and after it, that stop the run."""

ATTEMPTS = 3
"""Attempts to read an object. A store that forbids it is asked once."""

LONGEST_PAUSE_S = 4.0


class StoreGuard:
    """Stops a run whose object stores give nothing, and leaves its records pending.

    A record whose object cannot be read waits until another object shows that the stores work:
    then the error is the record's own. Use it as a context manager around the fetch of one record.

    Args:
        stop_after: Errors alike in a row that stop the run; None is `STOP_FIRST` before the first
            object and `STOP_LATER` after it.
    """

    def __init__(self, stop_after: int | None) -> None:
        self._stop_after = stop_after
        self._works = False
        self._row: Counter[str] = Counter()
        self._busy = 0  # records that are being fetched
        self._held: list[asyncio.Future[None]] = []

    def __enter__(self) -> Self:
        """Note that the fetch of a record begins."""
        self._busy += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Note that it has ended."""
        self._busy -= 1
        self._release_if_idle()

    def answered(self, *, found: bool) -> None:
        """Note that a store gave an object, or said that there is none."""
        self._works |= found
        self._row.clear()
        self._release()

    async def try_again(self, fault: StoreFaultError, attempts: int) -> bool:
        """Return whether to read an object again; False if the record is to blame.

        Args:
            fault: The error.
            attempts: Attempts so far.

        Raises:
            StoreGaveOutError: Too many errors of this kind came in a row.
        """
        self._row[fault.kind] += 1
        limit = self._stop_after or (STOP_LATER if self._works else STOP_FIRST)
        if self._row[fault.kind] >= limit or self._row.total() >= 2 * limit:
            raise StoreGaveOutError(
                f"The object store gave no image for {self._row.total()} requests in a row. "
                f"{sentence(f'The last error: {fault.message}')} Check its address, the "
                "credentials and the network, then run the same command again. --stop-after N "
                "allows more."
            )
        if attempts < ATTEMPTS and fault.code != "image_unreadable":
            pauses = waits(LONGEST_PAUSE_S)
            for _ in range(attempts):
                pause = next(pauses)
            await asyncio.sleep(pause)
            return True
        decided = asyncio.get_running_loop().create_future()
        self._held.append(decided)
        self._release_if_idle()
        try:
            await decided
        finally:
            if decided in self._held:
                self._held.remove(decided)
        return False

    def _release_if_idle(self) -> None:
        """Blame the records that wait if no fetch is left that could show that the stores work."""
        if len(self._held) >= self._busy:
            self._release()

    def _release(self) -> None:
        held, self._held = self._held, []
        for decided in held:
            if not decided.done():
                decided.set_result(None)
