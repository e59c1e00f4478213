"""Describing an image in plain English from what Pillow can measure."""

from __future__ import annotations

import colorsys
import functools
import io
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from PIL import Image, ImageFilter, ImageOps, ImageStat

from captioner.core.ocr import read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

# The formats that vision-language models accept. Pillow opens more, some by running other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_MAX_PIXELS = 80_000_000
_MAX_TEXT = 600  # characters quoted in a caption

# The upper end of each hue in degrees, and its name.
_HUES = (
    (11, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (195, "turquoise"),
    (255, "blue"), (290, "purple"), (340, "pink"), (360, "red"),
)  # fmt: skip
_NEUTRAL = frozenset({"beige", "black", "brown", "grey", "white"})


class RequestError(ValueError):
    """The request cannot be answered. `code` is that of the protocol, if there is one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


def describe_file(data: bytes) -> tuple[str, tuple[int, int]]:
    """Return the caption and the size of an encoded image. Thread-safe.

    Raises:
        RequestError: The bytes are not an image or have more than 80 million pixels.
    """
    rgb = _as_rgb(_open_image(data))
    return describe(rgb, texts=read_text(rgb)), rgb.size


def describe(image: Image.Image, *, texts: Sequence[str] = ()) -> str:
    """Return three sentences about an image, and a fourth if there is text in it."""
    rgb = _as_rgb(image)
    ratio = rgb.width / rgb.height
    shape = "square" if 0.95 <= ratio <= 1.05 else "landscape" if ratio > 1 else "portrait"
    sentences = [
        f"This is a {shape} image, {rgb.width} x {rgb.height} pixels in size.",
        _colour_sentence(rgb),
        _light_sentence(rgb.convert("L")),
    ]
    # The quotation must not end at a quotation mark inside it.
    quotable = (text.strip().translate(str.maketrans('"“”', "'''")) for text in texts)
    if text := " / ".join(filter(None, quotable)):
        quoted = textwrap.shorten(text, _MAX_TEXT, placeholder=" …")
        sentences.append(f'The text in it reads: "{quoted}".')
    return " ".join(sentences)


def _open_image(data: bytes) -> Image.Image:
    """Decode the first frame of an image and apply its EXIF rotation."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height <= _MAX_PIXELS:
                return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pass
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others
        reason = "The data is not an image that can be decoded."
        raise RequestError(reason, "invalid_image") from error
    raise RequestError("The image has more than 80 million pixels.", "invalid_image")


def _as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB, with white behind transparent parts."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # The brightest pixel counts as white where the mode has no fixed range.
        high = 65535 if image.mode.startswith("I;16") else image.getextrema()[1]
        scale = 255 / high if isinstance(high, int | float) and high > 0 else 1.0
        return image.point(lambda value: value * scale + 0).convert("L").convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


@functools.cache
def name_colour(rgb: tuple[int, int, int]) -> str:
    """Return a plain English name of a colour."""
    red, green, blue = rgb
    hue, light, saturation = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    chroma = (max(red, green, blue) - min(red, green, blue)) / 255
    name = next(name for end, name in _HUES if hue * 360 <= end)
    if light < 0.08 or (light < 0.15 and chroma < 0.08):
        return "black"
    if name in ("orange", "yellow") and light > 0.6 and 0.07 < chroma < 0.35:
        return "beige"
    if chroma < 0.12:
        grades = ((0.33, "dark grey"), (0.62, "grey"), (0.9, "light grey"), (1, "white"))
        return next(grade for end, grade in grades if light <= end)
    if name == "red" and light > 0.7:
        return "pink"
    if name == "orange" and (light < 0.4 or saturation < 0.5):
        name = "brown"
    return f"{'dark ' if light < 0.25 else 'light ' if light > 0.7 else ''}{name}"


def _colour_sentence(rgb: Image.Image) -> str:
    # Sampled, not averaged: a blend of yellow and black along an edge is neither.
    small = rgb.resize((128, 128), Image.Resampling.NEAREST)
    small = small.quantize(32, dither=Image.Dither.NONE).convert("RGB")
    counts = Counter(map(name_colour, zip(*[iter(small.tobytes())] * 3, strict=True)))
    (name, count), *others = counts.most_common()
    if count >= 0.9 * counts.total():
        return f"It is almost entirely {name}."
    names = [name]
    for other, part in others:
        family = other.rpartition(" ")[2]
        # A little red is noticed. A little grey, or another shade of a named colour, is not.
        enough = (0.1 if family in _NEUTRAL else 0.02) * counts.total()
        if part >= enough and not any(family in known for known in names):
            names.append(other)
    if len(names) == 1:
        return f"Its main colour is {name}."
    return f"Its main colours are {', '.join(names[:3][:-1])} and {names[:3][-1]}."


def _light_sentence(grey: Image.Image) -> str:
    grey.thumbnail((512, 512), Image.Resampling.BOX)  # so that sharpness does not depend on size
    mean, spread = ImageStat.Stat(grey).mean[0], ImageStat.Stat(grey).stddev[0]
    light = "strong in contrast" if spread > 60 else "evenly lit"
    if not 70 <= mean <= 176:
        light = "dark" if mean < 70 else "bright"
    if spread < 2 or min(grey.size) < 3:
        return f"It is {light} and plain."
    # The variance of the Laplacian, halved and centred on 128 to fit into 8 bits.
    kernel = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=2, offset=128)
    edges = ImageOps.crop(grey.filter(kernel), 1)
    detail = 4 * ImageStat.Stat(edges).var[0]
    sharpness = "soft" if detail < 60 else "moderately sharp" if detail < 200 else "sharp"
    return f"It is {light} and {sharpness}."
