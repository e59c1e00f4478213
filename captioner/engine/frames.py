"""Turns in which a moving image stands once for each of its frames. Pure, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.core.types import EncodedImage, ImageRef, Turn
from captioner.engine.conversation import images_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def with_frames(
    turns: list[Turn], encoded: Mapping[int, list[EncodedImage]], *, timed: bool
) -> tuple[list[Turn], list[EncodedImage]]:
    """Return turns in which a moving image stands once for each frame, and all the images.

    Args:
        turns: The turns.
        encoded: The frames of each image by its ``id``.
        timed: Put the time of each frame before it.
    """
    images = [encoded[id(part)] for part in images_of(turns)]
    if timed or any(len(several) > 1 for several in images):
        turns = [
            Turn(
                turn.role,
                tuple(one for part in turn.parts for one in _parts(part, encoded, timed=timed)),
            )
            for turn in turns
        ]
    return turns, [image for several in images for image in several]


def _parts(
    part: str | ImageRef, encoded: Mapping[int, list[EncodedImage]], *, timed: bool
) -> Iterator[str | ImageRef]:
    """Yield what stands for a part of a turn: an image once for each of its frames."""
    if isinstance(part, str):
        yield part
        return
    for image in encoded[id(part)]:
        if timed and image.time_s is not None:
            yield f"Frame at {image.time_s:.1f} s:"
        yield part
