"""Measurements of an image that need nothing but Pillow: colours, brightness, sharpness."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from PIL import Image, ImageFilter, ImageStat

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Lab = tuple[float, float, float]

# Names everybody uses, several tints for a name where one point cannot stand for all of it.
_PALETTE: Mapping[str, tuple[str, ...]] = {
    "black": ("#000000", "#121212"),
    "dark grey": ("#404040",),
    "grey": ("#808080",),
    "light grey": ("#c0c0c0",),
    "white": ("#ffffff", "#f2f2f2"),
    "red": ("#ff0000", "#d81e1e", "#b02020"),
    "dark red": ("#800000", "#5a1212"),
    "pink": ("#ffb6c1", "#ff69b4", "#e08a9b"),
    "orange": ("#ff8c00", "#e8702a"),
    "brown": ("#8b4513", "#6b4226", "#96694a"),
    "dark brown": ("#3d2314", "#2a1a10"),
    "beige": ("#f5e6c8", "#d2b48c", "#c8b090"),
    "yellow": ("#ffff00", "#ffd700", "#f0d860"),
    "olive": ("#808000", "#6b6b2a", "#333300"),
    "green": ("#00a000", "#228b22", "#4f9a4f"),
    "light green": ("#00ff00", "#90ee90", "#a8d8a0"),
    "dark green": ("#004000", "#1e3a1e"),
    "teal": ("#008080", "#1f6468", "#003838"),
    "turquoise": ("#00ffff", "#40e0d0"),
    "light blue": ("#add8e6", "#87ceeb", "#9db8d9"),
    "blue": ("#0000ff", "#1e66d0", "#4a78b0", "#4747b3"),
    "dark blue": ("#000080", "#14213d", "#2a3a5e", "#101850", "#1c2c80"),
    "purple": ("#800080", "#6a3d9a", "#54306b", "#8000ff", "#5a00b3", "#330033"),
    "lilac": ("#c8a2c8", "#b09ad0"),
    "magenta": ("#ff00ff", "#d020a0"),
}

# Side of the copies measured, in pixels: small enough to be quick, and the same for every image,
# so that a number means the same for a thumbnail and for a camera's full frame.
_COLOUR_SIDE = 128
_DETAIL_SIDE = 512
_CLUSTERS = 32


def to_lab(red: int, green: int, blue: int) -> Lab:
    """Convert an sRGB colour to CIELAB under the D65 white point.

    Args:
        red: Red, 0 to 255.
        green: Green, 0 to 255.
        blue: Blue, 0 to 255.

    Returns:
        Lightness (0 to 100), a* (green to red) and b* (blue to yellow).
    """

    def linear(channel: int) -> float:
        value = channel / 255
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    def response(value: float) -> float:
        return math.cbrt(value) if value > 216 / 24389 else (24389 / 27 * value + 16) / 116

    r, g, b = linear(red), linear(green), linear(blue)
    x = response((0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047)
    y = response(0.2126729 * r + 0.7151522 * g + 0.0721750 * b)
    z = response((0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _from_hex(code: str) -> Lab:
    red, green, blue = bytes.fromhex(code[1:])
    return to_lab(red, green, blue)


_NAMED: tuple[tuple[str, Lab], ...] = tuple(
    (name, _from_hex(code)) for name, codes in _PALETTE.items() for code in codes
)


def name_colour(lab: Lab) -> str:
    """Name a colour by the nearest colour of the palette.

    Args:
        lab: The colour in CIELAB.

    Returns:
        A plain English colour name, such as ``dark blue``.
    """
    return min(_NAMED, key=lambda named: math.dist(named[1], lab))[0]


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert any image to 8-bit RGB, with transparency laid over white.

    Args:
        image: An image of any Pillow mode.

    Returns:
        An RGB image of the same size.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value * (255 / 65535)).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        # Such images carry no range of their own: the brightest pixel is taken for white.
        high = image.getextrema()[1]
        scale = 255 / high if isinstance(high, int | float) and high > 0 else 1.0
        return image.point(lambda value: value * scale + 0).convert("L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(layer)
        return canvas.convert("RGB")
    return image.convert("RGB")


def clusters(image: Image.Image) -> list[tuple[float, Lab]]:
    """Reduce an RGB image to a few representative colours.

    Args:
        image: An RGB image.

    Returns:
        Pairs of the share of the image (0 to 1) and the colour in CIELAB, in no order.
    """
    # Sampled, not averaged: a blend of yellow and black along an edge is neither.
    copy = image.resize((_COLOUR_SIDE, _COLOUR_SIDE), Image.Resampling.NEAREST)
    reduced = copy.quantize(_CLUSTERS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    total = _COLOUR_SIDE * _COLOUR_SIDE
    palette = reduced.getpalette("RGB") or []
    found = []
    for index, count in enumerate(reduced.histogram()):
        if count:
            red, green, blue = palette[3 * index : 3 * index + 3]
            found.append((count / total, to_lab(red, green, blue)))
    return found


def named_shares(colours: Iterable[tuple[float, Lab]]) -> list[tuple[str, float]]:
    """Add up the shares of the colours that have the same name.

    Args:
        colours: Pairs of share and CIELAB colour, as `clusters` returns.

    Returns:
        Pairs of colour name and share (0 to 1), the largest share first.
    """
    shares: dict[str, float] = {}
    for share, lab in colours:
        name = name_colour(lab)
        shares[name] = shares.get(name, 0.0) + share
    return sorted(shares.items(), key=lambda item: -item[1])


def detail(image: Image.Image) -> tuple[float, float]:
    """Measure fine detail on a grey copy at most 512 pixels on a side.

    Args:
        image: An RGB image.

    Returns:
        The variance of the Laplacian, and the variance of the grey values themselves, both in
        squared grey levels. The first is small for a blurred image and for a plain one; the second
        tells the two apart.
    """
    grey = image.convert("L")
    grey.thumbnail((_DETAIL_SIDE, _DETAIL_SIDE), Image.Resampling.BOX)
    spread = ImageStat.Stat(grey).var[0]
    if min(grey.size) < 3:
        return 0.0, spread
    # Halved and centred on 128 because Pillow keeps the result in 8 bits.
    kernel = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=2, offset=128)
    edges = grey.filter(kernel)
    # The filter leaves the outermost pixels as they were.
    inner = edges.crop((1, 1, edges.width - 1, edges.height - 1))
    return 4 * ImageStat.Stat(inner).var[0], spread
