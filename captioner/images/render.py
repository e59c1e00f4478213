"""Decoding an image and encoding it anew: upright, still, sRGB, of the planned size."""

from __future__ import annotations

import io
import math
import struct
from array import array
from typing import TYPE_CHECKING, Any, cast

from PIL import Image, ImageCms, ImageColor, UnidentifiedImageError

from captioner.core.errors import BadImageError
from captioner.images.fit import DECODE_ONLY, Fitted, base64_length
from captioner.images.inspect.structure import corrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from captioner.core.types import ImageOverrides
    from captioner.images.fit import FitOptions

HEAVY_PIXELS = 25_000_000
"""Above it an image takes so much memory that no two are decoded at once."""

_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "TGA",
    "HEIF",
)  # fmt: skip
"""No other decoder is asked: some start programs, or open further files."""

_MOVING = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
_QUALITIES = (92, 85, 75, 60)
_SMALLER = 0.75

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BEGINNINGS = (b"BM", b"II*\0", b"MM\0*", b"\xff\x4f\xff\x51", b"\0\0\1\0")
_BOXES = (b"ftypavif", b"ftypavis", b"jP  \r\n\x87\n")
_NO_IMAGES = {
    b"%PDF": "a PDF",
    b"<svg": "an SVG drawing",
    b"<!do": "a web page",
    b"<htm": "a web page",
    b"<?xm": "XML, perhaps an SVG drawing",
    b"PK\3\4": "a zip archive",
    b"\x1f\x8b": "gzip",
    b"{": "JSON",
}

Image.MAX_IMAGE_PIXELS = None  # the bound is ours, and an option


def render(
    data: bytes,
    wanted: FitOptions,
    image_overrides: ImageOverrides,
    before_heavy: Callable[[], None] = lambda: None,
) -> tuple[Fitted, ...]:
    """Return the frames of an image that are wanted, each as it is to be sent.

    Args:
        data: The file.
        wanted: What it has to be like.
        image_overrides: How it is to be made otherwise.
        before_heavy: Called before a large image is decoded.

    Raises:
        BadImageError: ``image_corrupt``, ``image_unknown_type``, ``image_too_large`` or
            ``image_needs_extra``.
    """
    heavy = False

    def bound(width: int, height: int) -> None:
        nonlocal heavy
        wanted.bound(width, height)
        if width * height > HEAVY_PIXELS and not heavy:
            heavy = True
            before_heavy()

    try:
        if data[:4] == b"\0\0\1\0":
            bound(*_icon_size(data))  # opening it decodes it
        with _open(data) as image:
            bound(*image.size)
            if image_overrides == DECODE_ONLY:
                image.load()
                return ()
            return tuple(
                _frame(frame, wanted, image_overrides) for frame in _frames(image, wanted, bound)
            )
    except UnidentifiedImageError:
        raise _no_image(data) from None
    except BadImageError:
        raise
    except MemoryError:
        raise BadImageError(
            "image_too_large", "decoding the image takes more memory than a decoder may have"
        ) from None
    except Exception as error:  # noqa: BLE001 - decoders raise whatever they like on bad bytes
        raise corrupt(str(error) or "it cannot be decoded") from None


def _open(data: bytes) -> Image.Image:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise BadImageError(
                "image_needs_extra", "the image is HEIC; pip install 'captioner[heif]' reads it"
            ) from None
        register_heif_opener(thumbnails=False)
    return Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if _known(name)])


def _known(name: str) -> bool:
    return name != "HEIF" or name in Image.OPEN


def _icon_size(data: bytes) -> tuple[int, int]:
    """Return the size of an icon's largest image, as that says itself."""
    (count,) = struct.unpack_from("<H", data, 4)
    sizes = [(1, 1)]
    for entry in range(6, 6 + 16 * count, 16):
        (at,) = struct.unpack_from("<I", data, entry + 12)
        if data[at : at + 8] == b"\x89PNG\r\n\x1a\n":
            sizes.append(struct.unpack_from(">II", data, at + 16))
        else:
            width, height = struct.unpack_from("<ii", data, at + 4)
            sizes.append((abs(width), abs(height) // 2))  # its mask stands below it
    return max(sizes, key=lambda size: size[0] * size[1])


def _frames(
    image: Any, wanted: FitOptions, bound: Callable[[int, int], None]
) -> Iterator[Image.Image]:
    """Yield the first frame, or as many as are wanted, spread evenly over an animated image."""
    count = 1
    if wanted.images.frames > 1 and image.format in _MOVING:
        count = int(getattr(image, "n_frames", 1))
    chosen = min(wanted.images.frames, count)
    at = 0
    for number in range(chosen):
        frame = round(number * (count - 1) / (chosen - 1)) if count > 1 else 0
        while at < frame:
            at += 1
            image.seek(at)
            bound(*image.size)  # a later frame may be larger
        yield image


def _frame(image: Image.Image, wanted: FitOptions, image_overrides: ImageOverrides) -> Fitted:
    photograph = image.format == "JPEG"
    plan = wanted.plan(*image.size, image_overrides.scale)
    if max(plan.size) < max(image.size):
        image.draft(None, plan.size)  # a JPEG is decoded at 1/2, 1/4 or 1/8 where it can be
    image.load()  # a TIFF is turned upright by that, and says so
    if image.format == "TIFF":
        plan = wanted.plan(*image.size, image_overrides.scale)
    background = wanted.images.background
    orientation = image.getexif().get(0x0112, 1)
    profile = image.info.get("icc_profile")
    rendered = _eight_bits(image)
    if rendered.has_transparency_data:
        rendered = rendered.convert("RGBA")
        if background != "none":
            rendered = _on(background, rendered)
    elif rendered.mode not in ("RGB", "L", "CMYK", "LAB"):
        rendered = rendered.convert("RGB")
    if rendered.size != plan.size:
        rendered = rendered.resize(plan.size, Image.Resampling.LANCZOS)
    rendered = _in_srgb(rendered, profile)
    if plan.canvas != plan.size:
        rendered = _padded(rendered, plan.canvas, background)
    if orientation in _UPRIGHT:
        rendered = rendered.transpose(_UPRIGHT[orientation])
    rendered.info.clear()  # comments and the like are not ours to send
    return _encode(rendered, wanted.images.max_bytes, 2 if photograph else 0)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of more bits a channel with eight: 16 are all used, floats are stretched."""
    if image.mode.startswith("I"):
        image.info.pop("transparency", None)  # it is said in more bits than are left
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode not in ("I", "F"):
        return image
    low, high = _extrema(image)
    if image.mode == "I" and low >= 0 and high <= 65_535:
        low, high = 0, 65_535 if high > 255 else 255
    elif low >= 0 and high <= 1:
        low, high = 0, 1
    elif low >= 0 and high <= 255:
        low, high = 0, 255
    scale = 255 / (high - low) if high > low else 0.0
    return image.convert("F").point(lambda value: value * scale - low * scale).convert("L")


def _extrema(image: Image.Image) -> tuple[float, float]:
    """Return the least and the greatest finite grey of an image."""
    low, high = cast("tuple[float, float]", image.getextrema())
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    values = [value for value in array("f", image.tobytes()) if math.isfinite(value)]
    if not values:
        raise corrupt("it holds no numbers")
    return min(values), max(values)


def _on(background: str, image: Image.Image) -> Image.Image:
    """Return a transparent image on a background."""
    under = Image.new("RGB", image.size, ImageColor.getrgb(background)[:3])
    under.paste(image, mask=image.getchannel("A"))
    return under


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image in the colours of sRGB, by its profile where it has one that works."""
    alpha = image.mode == "RGBA"
    if image.mode == "LAB":
        source: Any = ImageCms.createProfile("LAB")
    elif profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        except (ImageCms.PyCMSError, OSError):
            source = None
    else:
        source = None
    if source is not None:
        try:
            converted = ImageCms.profileToProfile(
                image.convert("RGB") if alpha else image,
                source,
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except ImageCms.PyCMSError:  # it is for another kind of image, or broken
            converted = None
        if converted is not None:
            if alpha:
                converted.putalpha(image.getchannel("A"))
            return converted
    return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")


def _padded(image: Image.Image, canvas: tuple[int, int], background: str) -> Image.Image:
    """Return an image in the middle of a larger one."""
    fill = ImageColor.getrgb("white" if background == "none" else background)[:3]
    larger = Image.new(image.mode, canvas, (*fill, 255)[: len(image.mode)])
    place = (canvas[0] - image.width) // 2, (canvas[1] - image.height) // 2
    larger.paste(image, place)
    return larger


def _encode(image: Image.Image, most: int, subsampling: int) -> Fitted:
    """Return an image as JPEG, or as PNG where it is transparent, within a number of bytes.

    Raises:
        BadImageError: ``image_too_large``: even a tiny one would not do.
    """
    while True:
        for quality in _QUALITIES:
            out = io.BytesIO()
            if image.mode == "RGBA":
                image.save(out, "PNG")
            else:
                image.save(out, "JPEG", quality=quality, subsampling=subsampling)
            data = out.getvalue()
            if base64_length(data) <= most:
                kind = "image/png" if image.mode == "RGBA" else "image/jpeg"
                return Fitted(kind, data, *image.size)
            if image.mode == "RGBA":
                break
        if max(image.size) < 2:
            raise BadImageError(
                "image_too_large", f"no image fits into {most:,} bytes (--max-bytes)"
            )
        smaller = max(1, int(image.width * _SMALLER)), max(1, int(image.height * _SMALLER))
        image = image.resize(smaller, Image.Resampling.LANCZOS)


def _no_image(data: bytes) -> BadImageError:
    """Return the error for what is no image, saying what it is where that is plain to see."""
    if data.startswith(_BEGINNINGS) or data[4:12] in _BOXES:
        return corrupt("its headers cannot be read")
    head = data[:200].lstrip().lower()
    for begin, what in _NO_IMAGES.items():
        if head.startswith(begin.lower()):
            return BadImageError("image_unknown_type", f"the file is no image but {what}")
    return BadImageError("image_unknown_type", "the file is not an image of a known type")
