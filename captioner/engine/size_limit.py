"""The image sizes that an endpoint rejected and accepted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from captioner.core.errors import ImageRejectedError
    from captioner.core.types import PreparedRecord


TOKENS_PER_IMAGE = 4_096
PIXELS_PER_TOKEN = 196
"""The most tokens that any known model makes of an image: a patch of 14 x 14 pixels is one, and
small images are enlarged."""


def most_tokens(prepared: PreparedRecord) -> float:
    """Return the most tokens that the images of a record can have."""
    images = max(1, len(prepared.questions[0]) // 2)  # two pieces of JSON for each
    return prepared.pixels / PIXELS_PER_TOKEN + images * TOKENS_PER_IMAGE


class SizeLimit:
    """The image sizes that the endpoint rejected and accepted, for the records that follow.

    A record is made smaller before it is sent only if it has at least as many pixels, or bytes, as
    a record that was rejected.
    """

    def __init__(self) -> None:
        self._pixels = math.inf
        self._bytes = math.inf
        self._scale = 0.0

    @property
    def known(self) -> bool:
        """Whether a record was rejected for its size."""
        return min(self._pixels, self._bytes) < math.inf

    def rejected(self, prepared: PreparedRecord, error: ImageRejectedError) -> None:
        """Note that a record was rejected for its size."""
        if error.code == "too_large":
            self._pixels = min(self._pixels, prepared.pixels or math.inf)
        else:
            self._bytes = min(self._bytes, _size(prepared))

    def accepted(self, scale: float) -> None:
        """Note that a record was accepted at a scale."""
        if scale < 1:
            self._scale = max(self._scale, scale) if self._scale else scale

    def scale_for(self, prepared: PreparedRecord) -> float:
        """Return the scale to start with, 0 to send the images as configured."""
        if not self._scale or not prepared.pixels:
            return 0.0
        large = prepared.pixels >= self._pixels or _size(prepared) >= self._bytes
        return self._scale if large else 0.0


def _size(prepared: PreparedRecord) -> int:
    return sum(map(len, prepared.questions[0]))
