"""Making an image fit to be sent: what passes as it is, and what size the others get."""

from __future__ import annotations

import math
from collections.abc import Callable  # noqa: TC003 - in a table that is made when imported
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

from captioner.core.errors import BadImageError
from captioner.core.types import UNCHANGED, ImageOverrides
from captioner.images.inspect.gif import read_gif
from captioner.images.inspect.jpeg import read_jpeg
from captioner.images.inspect.png import read_png
from captioner.images.inspect.structure import Structure, corrupt
from captioner.images.inspect.webp import read_webp
from captioner.settings.model_sizes import Rule, rule_of, within
from captioner.settings.options import MAX_SIDE

if TYPE_CHECKING:
    from captioner.settings.options import ImageSettings

SENDABLE = frozenset({"image/jpeg", "image/png", "image/webp"})
"""What practically every endpoint takes; anything else becomes a JPEG."""

MAX_ASPECT = 200
"""Longer side by shorter one; Qwen-VL refuses more."""

DECODE_ONLY = ImageOverrides(0.0)
"""Asks whether an image can be decoded, and for nothing else."""

READY = b"ready"
"""What a decoder says when it has started."""

HEAVY = b"heavy"
"""What a decoder says before it decodes a large image; it goes on when it is told to."""


class Fitted(NamedTuple):
    """An image as it is to be sent. Sides are in pixels."""

    media_type: str
    data: bytes
    width: int
    height: int


class Plan(NamedTuple):
    """The sides an image is brought to, and those of what it is padded to, in pixels."""

    size: tuple[int, int]
    canvas: tuple[int, int]


class Render(Protocol):
    """Decodes an image and encodes it anew, each frame that is wanted."""

    def __call__(self, data: bytes, image_overrides: ImageOverrides, /) -> tuple[Fitted, ...]:
        """Return the frames.

        Raises:
            BadImageError: It cannot be decoded, or not within its bounds.
        """
        ...


class FitOptions:
    """What images have to be like.

    Args:
        images: The options.
        detail: OpenAI's word for how closely the model looks; sizes depend on it there.
    """

    def __init__(self, images: ImageSettings, detail: str | None = None) -> None:
        self.images = images
        self.detail = detail
        self.plan = lru_cache(4_096)(self._plan)  # images of a data set have few sizes
        self._rule: Rule | None = rule_of(images.size_for) if images.size_for else None

    def bound(self, width: int, height: int) -> None:
        """Refuse an image of too many pixels.

        Raises:
            BadImageError: ``image_too_large``.
        """
        most = self.images.max_image_pixels
        if width * height > most:
            raise BadImageError(
                "image_too_large",
                f"the image has {width:,} x {height:,} pixels; the most is {most:,} "
                "(--max-image-pixels)",
            )

    def _plan(self, width: int, height: int, scale: float = 1.0) -> Plan:
        """Return what an image of this size becomes; all rules are the same on either side."""
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
        if images.max_pixels is not None:  # it goes before the shorter side
            shortest = min(shortest, max(1, images.max_pixels // max(size)))
        if max(size) > MAX_ASPECT * max(shortest, min(size)):
            size = within(*size, longest)  # no model has use for more of it
        if (short := min(size)) < shortest and max(size) * shortest <= longest * short:
            size = round(size[0] * shortest / short), round(size[1] * shortest / short)
        least = max(shortest, math.ceil(max(size) / MAX_ASPECT))
        return Plan(size, (max(size[0], least), max(size[1], least)))


_READERS: dict[str, Callable[[bytes], Structure]] = {
    "image/jpeg": read_jpeg,
    "image/png": read_png,
    "image/gif": read_gif,
    "image/webp": read_webp,
}


def media_type_of(data: bytes) -> str:
    """Return the media type of a JPEG, PNG, GIF or WebP by its first bytes; empty for others."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if data.startswith(b"RIFF") and data[8:12] == b"WEBP" else ""


def read_structure(data: bytes) -> Structure | None:
    """Return a JPEG's, PNG's, GIF's or WebP's structure; None for any other kind.

    Raises:
        BadImageError: The file is of one of these kinds but broken; ``image_corrupt``.
    """
    read = _READERS.get(media_type_of(data))
    if read is None:
        return None
    try:
        return read(data)
    except BadImageError:
        raise
    except Exception:  # noqa: BLE001 - reading past the end takes many forms
        raise corrupt("it ends too early") from None


def fit(
    data: bytes, wanted: FitOptions, render: Render, image_overrides: ImageOverrides = UNCHANGED
) -> tuple[Fitted, ...]:
    """Return an image as it is to be sent, or several frames of a moving one.

    A sendable, upright image of the right size passes without being decoded, its metadata cut
    out. Others are rendered. With a ``image_overrides`` all are, and made smaller by its factor.

    Raises:
        BadImageError: ``image_corrupt``, ``image_unknown_type``, ``image_too_large`` or one of
            those that ``render`` raises.
    """
    images = wanted.images
    if (
        images.verify == "off"
        and image_overrides == UNCHANGED
        and (kind := media_type_of(data)) in SENDABLE
    ):
        return (Fitted(kind, data, 0, 0),)
    structure = read_structure(data)
    if structure is None:
        return render(data, image_overrides)
    size = structure.width, structure.height
    wanted.bound(*size)
    if (
        image_overrides == UNCHANGED
        and structure.media_type in SENDABLE
        and structure.plain
        and structure.orientation == 1
        and structure.parts
        and not (structure.transparent and images.background != "none")
        and not (structure.moving and images.frames > 1)
        and wanted.plan(*size) == (size, size)
    ):
        kept = b"".join(structure.parts)
        if base64_length(kept) <= images.max_bytes:
            if images.verify == "full":
                render(kept, DECODE_ONLY)
            return (Fitted(structure.media_type, kept, *size),)
    return render(data, image_overrides)


def base64_length(data: bytes) -> int:
    """Return the length of data in base64, in characters."""
    return (len(data) + 2) // 3 * 4
