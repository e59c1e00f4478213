"""The structure of a GIF: GIF89a, appendix A."""

from __future__ import annotations

import struct

from captioner.images.inspect.structure import Structure, doubtful, long_walk


def read_gif(data: bytes, most: int) -> Structure:
    """Read the blocks up to the second frame. A GIF is never plain: it is re-encoded.

    Raises:
        LongWalkError: There are more than ``most``.
        DoubtfulImageError: There is no image.
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _color_table(flags)
    frames = 0
    while frames < 2:
        kind = data[at : at + 1]
        if kind == b"!":  # an extension
            at, most = _sub_blocks(data, at + 2, most)
        elif kind == b",":  # a frame
            at, most = _sub_blocks(data, at + 10 + _color_table(data[at + 9]) + 1, most)
            frames += 1
        else:  # the end; behind the first frame, damage counts as the end too
            break
    if not (width and height and frames):
        raise doubtful("the GIF holds no image")
    return Structure("image/gif", width, height, plain=False, moving=frames > 1)


def _color_table(flags: int) -> int:
    """Return the length of a colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _sub_blocks(data: bytes, at: int, most: int) -> tuple[int, int]:
    """Return where a sequence of sub-blocks ends, and how many may follow."""
    while size := data[at]:
        at += size + 1
        most -= 1
        if most < 0:
            raise long_walk()
    return at + 1, most - 1
