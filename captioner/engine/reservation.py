"""The memory that one record holds."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from captioner.core.errors import BadRecordError, WouldBlockError

if TYPE_CHECKING:
    from captioner.core.memory import MemoryBudget
    from captioner.core.types import EncodedImage

SLACK = 4_096
"""Bytes that a record may reserve more than it needs; returning fewer costs more than it gives."""


class Mode(Enum):
    """How a reservation gets memory."""

    WAIT = auto()
    """Wait until there is room."""
    TRY = auto()
    """Take it if there is room, else raise `WouldBlockError`."""
    FORCE = auto()
    """Take it without waiting: others may wait for this record."""
    NOTHING = auto()
    """Take nothing: the memory is reserved already."""


class Reservation:
    """The memory that one record holds.

    Args:
        memory: The budget.
        mode: How to get memory.
        size: Bytes that the record holds already.
    """

    def __init__(self, memory: MemoryBudget, mode: Mode, size: int = 0) -> None:
        self._memory = memory
        self._mode = mode
        self.size = size
        self._kept = 0
        self.waits = mode is not Mode.TRY

    def reserve(self, size: int) -> None:
        """Reserve memory for an image as a file and in base64; may block.

        The first image of a record may be larger than the budget.

        Raises:
            BadRecordError: ``record_too_large``: the images before it leave too little of it.
        """
        size += size // 3
        if self._kept:
            self._check(size)
        if self._mode is Mode.NOTHING:
            return
        if self._mode is Mode.TRY:
            if not self._memory.try_reserve(size):
                raise WouldBlockError
        else:
            # A record that holds memory must not wait for others that do the same.
            self._memory.reserve(size, wait=self._mode is Mode.WAIT and not self.size)
        self.size += size

    def keep(self, encoded: list[EncodedImage]) -> None:
        """Count an image that is kept in base64 while the next one is read.

        Raises:
            BadRecordError: ``record_too_large``.
        """
        self._kept += sum(len(image.base64) for image in encoded)
        self._check(0)

    def _check(self, more: int) -> None:
        if self._kept + more > self._memory.total:
            raise BadRecordError(
                "record_too_large",
                "the images of the record take more memory than all records may together: "
                f"{self._memory.total} bytes (--memory)",
            )

    def settle(self, size: int) -> None:
        """Adjust the reservation to the bytes that are really held."""
        if self._mode is not Mode.NOTHING and not 0 <= self.size - size < SLACK:
            self._memory.change(size - self.size)
            self.size = size

    def cancel(self) -> None:
        """Release everything."""
        if self.size:
            self._memory.release(self.size)
            self.size = 0
