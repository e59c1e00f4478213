"""Making a picture fit to be sent: upright, still, RGB, not too large. Only when it needs to be."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

from captioner.errors import BadImageError
from captioner.images.structure import corrupt, read_structure
from captioner.records import Remake

if TYPE_CHECKING:
    from PIL import Image

SENDABLE = frozenset({"image/jpeg", "image/png", "image/webp"})
"""What practically every endpoint takes; anything else becomes a JPEG."""

MAX_PIXELS = 178_956_970
"""Pixels above which a picture is refused before it is decoded: Pillow's own limit."""

AS_IS = Remake()

_JPEG_QUALITY = 92
_SAME_INKS = frozenset({"RGB", "RGBA", "P"})
"""Modes whose colour profile still holds when the picture has become RGB."""

_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What undoes each EXIF orientation, by the names of Pillow's `Transpose`."""


class Fitted(NamedTuple):
    """A picture as it is to be sent. Sides are in pixels."""

    media_type: str
    data: bytes
    width: int
    height: int


def fit(data: bytes, max_side: int, remake: Remake = AS_IS) -> Fitted:
    """Return a picture as it is to be sent.

    A sendable, upright picture that is small enough passes through untouched after a structural
    check. Others are decoded: the first frame, EXIF orientation applied, transparency on white,
    made smaller to ``max_side`` pixels on the longer side, and sent as JPEG. With a ``remake``
    all are, and made smaller by its factor.

    Raises:
        BadImageError: ``image_corrupt``, ``image_unknown_type`` or ``image_too_large``.
    """
    structure = read_structure(data)
    if structure is not None:
        _bound_pixels(structure.width, structure.height)
        if (
            remake == AS_IS
            and structure.media_type in SENDABLE
            and structure.plain
            and structure.orientation == 1
            and max(structure.width, structure.height) <= max_side
        ):
            return Fitted(structure.media_type, data, structure.width, structure.height)
    return _redraw(data, max_side, remake.scale)


def _redraw(data: bytes, max_side: int, factor: float) -> Fitted:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            _bound_pixels(width, height)
            photograph = image.format == "JPEG"
            size = image.size
            if (scale := min(1.0, max_side / max(size)) * factor) < 1:
                size = max(1, round(width * scale)), max(1, round(height * scale))
                image.draft(None, size)  # a JPEG is decoded at 1/2, 1/4 or 1/8 where it can be
            image.seek(0)
            image.load()  # a TIFF is turned upright by that, and says so
            orientation = image.getexif().get(0x0112, 1)
            profile = image.info.get("icc_profile") if image.mode in _SAME_INKS else None
            drawn = _on_white(image)
            if drawn.size != size:
                drawn = drawn.resize(size, Image.Resampling.LANCZOS)
            if orientation in _UPRIGHT:
                drawn = drawn.transpose(Image.Transpose[_UPRIGHT[orientation]])
            drawn.info.clear()  # comments and the like are not ours to send
            out = io.BytesIO()
            drawn.save(
                out,
                "JPEG",
                quality=_JPEG_QUALITY,
                subsampling=2 if photograph else 0,
                icc_profile=profile,
            )
            return Fitted("image/jpeg", out.getvalue(), *drawn.size)
    except UnidentifiedImageError:
        raise BadImageError(
            "image_unknown_type", "the file is not an image of a known type"
        ) from None
    except Image.DecompressionBombError:
        raise BadImageError("image_too_large", "the image has far too many pixels") from None
    except BadImageError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise whatever they like on bad bytes
        raise corrupt(str(error) or "it cannot be decoded") from None


def _on_white(image: Image.Image) -> Image.Image:
    """Return the picture as RGB, transparent parts white, 16-bit grey scaled to 8."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        white = Image.new("RGBA", above.size, "white")
        return Image.alpha_composite(white, above).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _bound_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImageError(
            "image_too_large",
            f"the image has {width} x {height} pixels; the most is {MAX_PIXELS:,}",
        )
