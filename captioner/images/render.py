"""Decoding and re-encoding images: upright, still, in sRGB and of the planned size."""

from __future__ import annotations

import contextlib
import io
import math
import struct
from array import array
from typing import TYPE_CHECKING, Any, cast

from PIL import (
    Image,
    ImageCms,
    ImageColor,
    ImageOps,
    PngImagePlugin,
    UnidentifiedImageError,
)

from captioner.core.errors import BadImageError
from captioner.core.ocr import read_text
from captioner.core.types import ImageOverrides
from captioner.images.fit import DECODE_ONLY, Fitted, base64_length
from captioner.images.icons import bounded_icon, merged_photoshop
from captioner.images.inspect import (
    Repaired,
    corrupt,
    media_type_of,
    repaired,
    video_format,
    webp_sizes,
)
from captioner.images.metadata import metadata_of
from captioner.images.raw import is_raw, raw_preview
from captioner.images.scenes import miniature, scene_changes
from captioner.images.unreadable import (
    check_kind,
    lacks_memory,
    needs_memory,
    unidentified,
)
from captioner.images.video import video_frames
from captioner.images.whole import prove_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from captioner.images.fit import FitOptions

HEAVY_PIXELS = 25_000_000
"""Larger images take so much memory that they are decoded one at a time."""

_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "TGA",
    "PSD", "DDS", "ICNS", "QOI", "PCX", "SGI", "HEIF",
)  # fmt: skip
"""Pillow's other decoders are not used: some start programs or open further files."""

_MOVING = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
_SAMPLE_FORMAT = 339  # a tag of TIFF
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
"""The transposition that reverses each EXIF orientation."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
Image.MAX_IMAGE_PIXELS = None  # --max-image-pixels is the limit
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20  # bytes; colour profiles count as text


def render(
    data: bytes,
    wanted: FitOptions,
    image_overrides: ImageOverrides,
    before_heavy: Callable[[], None] = lambda: None,
) -> tuple[Fitted, ...]:
    """Return the frames of an image, each ready to be sent.

    Args:
        data: The file.
        wanted: The requirements for the result.
        image_overrides: Changes to them for this image.
        before_heavy: Called once before an image is read that may take much memory.

    Raises:
        BadImageError: ``image_corrupt``, ``image_unknown_type``, ``image_too_large`` or
            ``image_needs_extra``.
    """
    bound = _Bound(wanted, before_heavy)
    source = Repaired(data)
    try:
        if video_format(data):
            return tuple(
                _frame(frame, wanted, image_overrides)._replace(time_s=time_s)
                for frame, time_s in video_frames(data, wanted, bound)
            )
        if is_raw(data):
            data = raw_preview(data, bound)
        source = repaired(data, bound.take_turn)
        with _open(_bounded(source.data, bound)) as image:
            bound(*image.size)
            prove_whole(source)
            check_kind(image, source.data)
            if image_overrides == DECODE_ONLY:
                image.load()
                return ()
            if image.format == "PSD":
                return (_frame(merged_photoshop(image, data), wanted, image_overrides),)
            return tuple(
                _frame(frame, wanted, image_overrides)._replace(time_s=time_s)
                for frame, time_s in _frames(image, wanted, bound)
            )
    except UnidentifiedImageError:
        raise source.doubt or unidentified(data) from None
    except BadImageError:
        raise
    except MemoryError:
        raise needs_memory() from None
    except Exception as error:  # noqa: BLE001 - decoders raise many kinds of errors on bad bytes
        if lacks_memory(data, bound.pixels):
            raise needs_memory() from None
        raise source.doubt or corrupt(str(error) or "it cannot be decoded") from None


def look(
    data: bytes,
    wanted: FitOptions,
    names: Sequence[str],
    before_heavy: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return what is known about an image besides its pixels.

    Args:
        data: The file.
        wanted: The requirements for images.
        names: ``exif`` for what `metadata_of` returns, ``ocr`` for the legible text.
        before_heavy: See `render`.

    Raises:
        BadImageError: See `render`; only for ``ocr``.
    """
    found: dict[str, Any] = {}
    if "exif" in names:
        found["exif"] = {}
        bound = _Bound(wanted, before_heavy)
        # `render` has the last word on a damaged image.
        with contextlib.suppress(Exception), _open(_bounded(data, bound)) as image:
            bound(*image.size)  # Pillow decodes a PNG to find its EXIF
            found["exif"] = metadata_of(image)
    if "ocr" in names:
        frame = render(data, wanted, ImageOverrides(reencode=True), before_heavy)[0]
        with _open(frame.data) as image:
            found["ocr"] = "\n".join(read_text(image.convert("RGB")))
    return found


class _Bound:
    """Refuses images of too many pixels, and waits before large ones; called with the sides.

    Args:
        wanted: The requirements, with the limit.
        before_heavy: Called once, before an image is read that may take much memory.

    Attributes:
        pixels: Those of the last image.
    """

    def __init__(self, wanted: FitOptions, before_heavy: Callable[[], None]) -> None:
        self._wanted = wanted
        self._before_heavy = before_heavy
        self._has_turn = False
        self.pixels = 0

    def __call__(self, width: int, height: int) -> None:
        self._wanted.bound(width, height)
        self.pixels = width * height
        if width * height > HEAVY_PIXELS:
            self.take_turn()

    def take_turn(self) -> None:
        """Wait until no other decoder reads an image that may take much memory."""
        if not self._has_turn:
            self._has_turn = True
            self._before_heavy()


def _bounded(data: bytes, bound: Callable[[int, int], None]) -> bytes:
    """Return a file as Pillow opens it, its size bound if opening takes memory for the image."""
    if media_type_of(data) == "image/webp":
        for size in webp_sizes(data):
            bound(*size)
    return bounded_icon(data, bound)


def _open(data: bytes) -> Image.Image:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise BadImageError(
                "image_needs_extra", "the image is HEIC; pip install pillow-heif reads it"
            ) from None
        register_heif_opener(thumbnails=False)
    formats = [name for name in _FORMATS if name != "HEIF" or name in Image.OPEN]
    return Image.open(io.BytesIO(data), formats=formats)


def _frames(
    image: Any, wanted: FitOptions, bound: Callable[[int, int], None]
) -> Iterator[tuple[Image.Image, float | None]]:
    """Yield the first frame, or the wanted ones of an animated image with their times in seconds.

    Frames are spread evenly, the first and the last among them, or are those at scene changes.
    """
    most, by_scene = wanted.images.frames_of(1)
    count = 1
    if most > 1 and image.format in _MOVING:
        count = int(getattr(image, "n_frames", 1))
    if count == 1:
        yield image, None
        return
    chosen = min(most, count)
    if by_scene:
        frames = ((at, miniature(image)) for at, _ in _each(image, count, bound))
        places = scene_changes(frames, chosen)
    else:
        places = [round(n * (count - 1) / (chosen - 1)) for n in range(chosen)]
    wished = set(places)
    for at, time_s in _each(image, places[-1] + 1, bound):
        if at in wished:
            yield image, time_s


def _each(image: Any, count: int, bound: Callable[[int, int], None]) -> Iterator[tuple[int, float]]:
    """Move an animated image from frame to frame; yield their numbers and times in seconds."""
    time_s = 0.0
    for at in range(count):
        image.seek(at)
        bound(*image.size)  # a later frame may be larger
        image.load()
        shown_s = image.info.get("duration", 0) / 1000
        yield at, time_s
        time_s += shown_s


def _frame(image: Image.Image, wanted: FitOptions, image_overrides: ImageOverrides) -> Fitted:
    is_jpeg = image.format == "JPEG"
    if image_overrides.crop is not None:
        image = _cropped(image, image_overrides.crop)
    plan = wanted.plan(*image.size, image_overrides.scale)
    if max(plan.size) < max(image.size):
        image.draft(None, plan.size)  # a JPEG can be decoded at 1/2, 1/4 or 1/8
    image.load()  # turns a TIFF upright
    if image.format in ("TIFF", "ICNS"):
        plan = wanted.plan(*image.size, image_overrides.scale)
    background = wanted.images.background
    orientation = 1
    with contextlib.suppress(SyntaxError, ValueError, OSError, struct.error):  # damaged EXIF
        orientation = image.getexif().get(0x0112, 1)
    profile = image.info.get("icc_profile")
    image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if background != "none":
            opaque = Image.new("RGB", image.size, ImageColor.getrgb(background)[:3])
            opaque.paste(image, mask=image.getchannel("A"))
            image = opaque
    elif image.mode not in ("RGB", "L", "CMYK", "LAB"):
        image = image.convert("RGB")
    if image.size != plan.size:
        image = image.resize(plan.size, Image.Resampling.LANCZOS)
    image = _in_srgb(image, profile)
    if plan.canvas != plan.size:
        image = _padded(image, plan.canvas, background)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    image.info.clear()  # comments and other metadata are not sent
    return _encode(image, wanted.images.max_bytes, subsampling=2 if is_jpeg else 0)


def _cropped(image: Image.Image, crop: Sequence[float]) -> Image.Image:
    """Return a part of an image, upright; see `ImageOverrides`.

    Raises:
        BadImageError: ``bad_box``: none of the box is in the image.
    """
    image = ImageOps.exif_transpose(image)
    width, height = image.size if max(crop) <= 1 else (1, 1)
    left, top, right, bottom = crop
    box = (
        max(0, math.floor(left * width)),
        max(0, math.floor(top * height)),
        min(image.width, math.ceil(right * width)),
        min(image.height, math.ceil(bottom * height)),
    )
    if box[0] >= box[2] or box[1] >= box[3]:
        numbers = ", ".join(f"{number:g}" for number in crop)
        raise BadImageError(
            "bad_box",
            f"no part of the box ({numbers}) is in the image of {image.width} x {image.height} "
            "pixels; a box is left, top, right, bottom",
        )
    return image.crop(box)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image with 8 bits a channel: 16 bits are scaled, floats are stretched."""
    if image.mode.startswith("I"):
        image.info.pop("transparency", None)  # a value of more than 8 bits
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode not in ("I", "F"):
        return image
    low, high = _extrema(image)
    if low < 0 and _is_unsigned(image):
        image = Image.frombytes("F", image.size, image.tobytes(), "raw", "F;32N")
        low, high = _extrema(image)
    if image.mode == "I" and low >= 0 and high <= 65_535:
        low, high = 0, 65_535 if high > 255 else 255
    elif low >= 0 and high <= 255:
        low, high = 0, 1 if high <= 1 else 255
    scale = 255 / (high - low) if high > low else 0.0
    return image.convert("F").point(lambda value: value * scale - low * scale).convert("L")


def _is_unsigned(image: Any) -> bool:
    """Return whether a TIFF has unsigned integers; Pillow reads those of 32 bits as signed ones."""
    return bool(image.format == "TIFF" and image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == 1)


def _extrema(image: Image.Image) -> tuple[float, float]:
    """Return the least and the greatest finite value of a grey image."""
    low, high = cast("tuple[float, float]", image.getextrema())
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    values = [value for value in array("f", image.tobytes()) if math.isfinite(value)]
    if not values:
        raise corrupt("it holds no numbers")
    return min(values), max(values)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image in sRGB colours; a profile that is invalid for the image is ignored."""
    source: Any = None
    with contextlib.suppress(ImageCms.PyCMSError, OSError):
        if image.mode == "LAB":
            source = ImageCms.createProfile("LAB")
        elif profile:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source is not None:
            converted: Any = ImageCms.profileToProfile(
                image.convert("RGB") if image.mode == "RGBA" else image,
                source,
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
            if image.mode == "RGBA":
                converted.putalpha(image.getchannel("A"))
            return cast("Image.Image", converted)
    return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")


def _padded(image: Image.Image, canvas: tuple[int, int], background: str) -> Image.Image:
    """Return an image in the middle of a larger one."""
    fill = ImageColor.getrgb("white" if background == "none" else background)[:3]
    larger = Image.new(image.mode, canvas, (*fill, 255)[: len(image.mode)])
    larger.paste(image, ((canvas[0] - image.width) // 2, (canvas[1] - image.height) // 2))
    return larger


def _encode(image: Image.Image, max_bytes: int, *, subsampling: int) -> Fitted:
    """Return an image as JPEG, or PNG if it is transparent, that fits into a number of bytes."""
    kind = "PNG" if image.mode == "RGBA" else "JPEG"
    choices: list[dict[str, int]] = [{}]
    if kind == "JPEG":
        choices = [{"quality": quality, "subsampling": subsampling} for quality in _QUALITIES]
    while True:
        for options in choices:
            out = io.BytesIO()
            image.save(out, kind, **options)
            data = out.getvalue()
            if base64_length(data) <= max_bytes:
                return Fitted(f"image/{kind.lower()}", data, *image.size)
        if max(image.size) < 2:
            raise BadImageError(
                "image_too_large", f"no image fits into {max_bytes} bytes (--max-bytes)"
            )
        smaller = max(1, int(image.width * _SMALLER)), max(1, int(image.height * _SMALLER))
        image = image.resize(smaller, Image.Resampling.LANCZOS)
