"""Deciding whether an image can be sent as it is, and which size it gets if not."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from captioner.core.errors import BadImageError
from captioner.core.types import UNCHANGED, ImageOverrides
from captioner.images.inspect import DoubtfulImageError, media_type_of, read_structure
from captioner.settings.model_sizes import rule_of, within
from captioner.settings.options import MAX_SIDE

if TYPE_CHECKING:
    from captioner.settings.options import ImageSettings

SENDABLE = frozenset({"image/jpeg", "image/png", "image/webp"})
"""Formats that practically every endpoint takes; all others become JPEG."""

MAX_ASPECT = 200
"""Largest ratio of the longer side to the shorter one; Qwen-VL refuses more."""

DECODE_ONLY = ImageOverrides(0.0)
"""Decode the image to verify it, and return no frames."""

MEMORY = 5 << 29
"""Bytes of address space of a decoder; most of the largest images take 2 GB with a background."""

READY = b"ready"
"""Message of a decoder process: it has started."""

HEAVY = b"heavy"
"""Message of a decoder process: it waits for permission to decode a large image."""


class Fitted(NamedTuple):
    """An image ready to be sent. Sides are in pixels.

    Attributes:
        time_s: When a frame of a video or an animated image is shown; None for other images.
    """

    media_type: str
    data: bytes
    width: int
    height: int
    time_s: float | None = None


class Plan(NamedTuple):
    """The size to which an image is scaled, and the size to which it is then padded, in pixels."""

    size: tuple[int, int]
    canvas: tuple[int, int]


Render = Callable[[bytes, ImageOverrides], tuple[Fitted, ...]]
"""Decodes an image and encodes its frames. Raises `BadImageError` if that is impossible."""


class FitOptions:
    """The requirements for images.

    Args:
        images: The options.
        detail: OpenAI's ``detail`` parameter; some size rules depend on it.
    """

    def __init__(self, images: ImageSettings, detail: str | None = None) -> None:
        self.images = images
        self.detail = detail
        self.plan = lru_cache(4_096)(self._plan)  # images of a data set have few sizes
        self._rule = rule_of(images.size_for) if images.size_for else None

    def bound(self, width: int, height: int) -> None:
        """Refuse an image of too many pixels.

        Raises:
            BadImageError: ``image_too_large``.
        """
        most = self.images.max_image_pixels
        if width * height > most:
            raise BadImageError(
                "image_too_large",
                f"the image has {width} x {height} pixels; the most is {most} (--max-image-pixels)",
            )

    def _plan(self, width: int, height: int, scale: float = 1.0) -> Plan:
        """Return what an image of this size becomes, at a scale of at most 1."""
        images = self.images
        size = self._rule.fit(width, height, self.detail) if self._rule else None
        side = images.longest_side or (MAX_SIDE if size is None else None)
        size = size or (width, height)
        if side is not None:
            size = within(*size, side)
        if images.max_pixels is not None and size[0] * size[1] > images.max_pixels:
            factor = math.sqrt(images.max_pixels / (size[0] * size[1]))
            size = max(1, int(size[0] * factor)), max(1, int(size[1] * factor))
        if scale < 1:
            size = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        longest = side or MAX_SIDE
        shortest = min(images.min_side, longest)
        if images.max_pixels is not None:  # it takes precedence over the shorter side
            shortest = min(shortest, max(1, images.max_pixels // max(size)))
        if max(size) > MAX_ASPECT * max(shortest, min(size)):
            size = within(*size, longest)  # models make no use of more pixels
        if (short := min(size)) < shortest and max(size) * shortest <= longest * short:
            size = round(size[0] * shortest / short), round(size[1] * shortest / short)
        least = max(shortest, math.ceil(max(size) / MAX_ASPECT))
        return Plan(size, (max(size[0], least), max(size[1], least)))


def fit(
    data: bytes, wanted: FitOptions, render: Render, image_overrides: ImageOverrides = UNCHANGED
) -> tuple[Fitted, ...]:
    """Return an image ready to be sent, or several frames of a moving one.

    An upright image of a sendable format and the right size is not decoded; only its metadata is
    cut out. Others are re-encoded. With ``image_overrides`` all are re-encoded, at its scale.

    Raises:
        BadImageError: ``image_corrupt``, ``image_unknown_type``, ``image_too_large`` or an error
            of ``render``.
    """
    images = wanted.images
    if image_overrides == UNCHANGED and images.verify == "off":
        media_type = media_type_of(data)
        if media_type in SENDABLE:
            return (Fitted(media_type, data, 0, 0),)
    try:
        found = read_structure(data)
    except DoubtfulImageError:
        found = None  # the decoder has the last word
    if found is None:
        return render(data, image_overrides)
    size = found.width, found.height
    wanted.bound(*size)
    if (
        image_overrides == UNCHANGED
        and found.media_type in SENDABLE
        and found.plain
        and found.orientation == 1
        and found.content
        and not (found.transparent and images.background != "none")
        and not (found.moving and images.frames_of(1)[0] > 1)
        and wanted.plan(*size) == (size, size)
        and base64_length(found.content) <= images.max_bytes
    ):
        if images.verify == "full":
            render(found.content, DECODE_ONLY)
        return (Fitted(found.media_type, found.content, *size),)
    return render(data, image_overrides)


def base64_length(data: bytes) -> int:
    """Return the length of data in base64, in characters."""
    return (len(data) + 2) // 3 * 4
