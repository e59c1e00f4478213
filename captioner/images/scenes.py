"""Choosing the frames at which a moving image changes most."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, TypeVar

from PIL import Image, ImageChops, ImageStat

if TYPE_CHECKING:
    from collections.abc import Iterable

SIDE = 32
"""Side in pixels of the small images that are compared."""

_Place = TypeVar("_Place", int, float)


def miniature(image: Image.Image) -> Image.Image:
    """Return a small version of a frame, to be compared with others."""
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)


def scene_changes(frames: Iterable[tuple[_Place, Image.Image]], count: int) -> list[_Place]:
    """Return the places of the first frame and of those that differ most from the one before.

    Args:
        frames: Place and small version of each frame, in order.
        count: Most places to return, the first included.
    """
    first: list[_Place] = []
    strongest: list[tuple[float, _Place]] = []  # a heap; of equal changes the earlier one counts
    before: Image.Image | None = None
    for place, small in frames:
        if before is None:
            first.append(place)
        elif change := sum(ImageStat.Stat(ImageChops.difference(before, small)).mean):
            heapq.heappush(strongest, (change, -place))
            if len(strongest) >= count:
                heapq.heappop(strongest)
        before = small
    return first + sorted(-place for _, place in strongest)
