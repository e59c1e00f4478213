"""The structure of a GIF; GIF89a, appendix A."""

from __future__ import annotations

import struct

from captioner.images.inspect.structure import Structure, corrupt


def read_gif(data: bytes) -> Structure:
    """Walk the blocks up to the second frame. A GIF is never plain: it is rendered.

    Raises:
        BadImageError: ``image_corrupt``.
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _table(flags)
    frames = 0
    while frames < 2 and (kind := data[at : at + 1]) not in (b";", b""):
        if kind == b"!":
            at = _blocks(data, at + 2)
        elif kind == b",":
            at = _blocks(data, at + 10 + _table(data[at + 9]) + 1)
            frames += 1
        elif frames:  # what follows the first frame may be anything
            break
        else:
            raise corrupt("the GIF holds no image")
    if not (width and height and frames):
        raise corrupt("the GIF holds no image")
    return Structure("image/gif", width, height, plain=False, moving=frames > 1)


def _table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _blocks(data: bytes, at: int) -> int:
    while size := data[at]:
        at += size + 1
    return at + 1
