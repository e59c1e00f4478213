"""What the offline endpoint says about an image: measured facts in plain English sentences."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from captioner.endpoints.offline import measure
from captioner.endpoints.offline.ocr import TextReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# What vision-language models commonly accept. Pillow opens more than these, some by running other
# programs (EPS), and this is fed by the network.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "AVIF", "JPEG2000")
_MAX_PIXELS = 80_000_000

_NEUTRAL = frozenset({"beige", "black", "brown", "grey", "white"})
_MAX_TEXT = 600  # characters quoted in a caption


class UndecodableImageError(ValueError):
    """The bytes are not an image that can be decoded, or a far too large one."""


@dataclass(frozen=True, slots=True)
class Description:
    """A caption together with the size of the image it is about.

    Attributes:
        caption: Three or four English sentences.
        width: Width in pixels, as displayed.
        height: Height in pixels, as displayed.
    """

    caption: str
    width: int
    height: int


def describe(image: Image.Image, *, texts: Sequence[str] = ()) -> str:
    """Describe an image by what can be measured in it.

    Args:
        image: The image, in any mode, already turned the way it is displayed.
        texts: Lines of text read in the image, in reading order; none by default.

    Returns:
        Three or four English sentences: shape and size, main colours, light and sharpness, and the
        text where there is any.
    """
    rgb = measure.as_rgb(image)
    colours = measure.clusters(rgb)
    grey = all(math.hypot(lab[1], lab[2]) < 3 for _, lab in colours)
    width, height = image.size
    noun = "greyscale image" if grey else "image"
    sentences = [
        f"This is a {_orientation(width, height)} {noun}, {width} x {height} pixels in size.",
        _colour_sentence(measure.named_shares(colours)),
        f"It is {_light(colours)} and {_sharpness(rgb)}.",
    ]
    quoted = _quote(texts)
    if quoted:
        sentences.append(f'The text in it reads: "{quoted}".')
    return " ".join(sentences)


def _orientation(width: int, height: int) -> str:
    ratio = width / height
    if 0.95 <= ratio <= 1.05:
        return "square"
    return "landscape" if ratio > 1 else "portrait"


def _colour_sentence(shares: Sequence[tuple[str, float]]) -> str:
    name, share = shares[0]
    if share >= 0.9:
        return f"It is almost entirely {name}."
    names = [name]
    for other, part in shares[1:]:
        family = other.rpartition(" ")[2]
        neutral = family in _NEUTRAL
        # A little red or yellow is noticed and a little grey is not, nor a second shade of it.
        repeated = neutral and any(family in known for known in names)
        if len(names) < 3 and not repeated and part >= (0.1 if neutral else 0.02):
            names.append(other)
    if len(names) == 1:
        return f"Its main colour is {name}."
    if share >= 0.6:
        return f"It is mostly {name}, with some {' and '.join(names[1:])}."
    return f"Its main colours are {', '.join(names[:-1])} and {names[-1]}."


def _light(colours: Iterable[tuple[float, measure.Lab]]) -> str:
    shares = [(share, lab[0]) for share, lab in colours]
    mean = sum(share * lightness for share, lightness in shares)
    spread = math.sqrt(sum(share * (lightness - mean) ** 2 for share, lightness in shares))
    if mean < 30:
        return "dark"
    if mean > 72:
        return "bright"
    return "strong in contrast" if spread > 25 else "evenly lit"


def _sharpness(rgb: Image.Image) -> str:
    laplacian, spread = measure.detail(rgb)
    if spread < 4:
        return "plain"
    if laplacian < 60:
        return "soft"
    return "sharp" if laplacian >= 200 else "moderately sharp"


def _quote(texts: Sequence[str]) -> str:
    """Join lines into one quotation that fits into a sentence."""
    # Quotation marks of the image's own would end the sentence's quotation early.
    cleaned = (re.sub(r"\s+", " ", re.sub(r'["“”]', "'", text)).strip() for text in texts)
    joined = " / ".join(text for text in cleaned if text)
    if len(joined) <= _MAX_TEXT:
        return joined
    head = joined[: _MAX_TEXT + 1]
    whole_words = head.rpartition(" ")[0] or head[:_MAX_TEXT]
    return whole_words.rstrip(" /") + " …"


def open_image(data: bytes) -> Image.Image:
    """Decode an encoded image completely.

    Args:
        data: The file's bytes: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or similar.

    Returns:
        The image, or the first frame of an animation, turned the way its metadata asks.

    Raises:
        UndecodableImageError: If the bytes are no such image, are damaged, or hold more than
            80 million pixels.
    """
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height <= _MAX_PIXELS:
                image.load()
                return ImageOps.exif_transpose(image)
            pixels = f"{image.width} x {image.height} pixels"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pixels = "far more pixels"
    # Pillow's readers raise nearly anything on damaged files (OSError, SyntaxError, struct.error).
    except Exception as error:
        raise UndecodableImageError("The data is not an image that can be decoded.") from error
    raise UndecodableImageError(
        f"The image has {pixels}; at most {_MAX_PIXELS // 1_000_000} million are decoded."
    )


class Describer:
    """Captions encoded images, reading their text where RapidOCR is installed.

    Safe to use from several threads. The OCR models are loaded when the first image needs them.
    """

    def __init__(self) -> None:
        self._reader = TextReader()

    @property
    def reads_text(self) -> bool:
        """Whether text is read: the ``offline`` extra is installed and has not failed to load."""
        return self._reader.available

    def caption(self, data: bytes) -> str:
        """Caption one encoded image.

        Args:
            data: The bytes of an image file.

        Returns:
            Three or four English sentences.

        Raises:
            UndecodableImageError: If the bytes cannot be decoded as an image.
        """
        return self.examine(data).caption

    def examine(self, data: bytes) -> Description:
        """Caption one encoded image and report its size.

        Args:
            data: The bytes of an image file.

        Returns:
            The caption and the size of the image.

        Raises:
            UndecodableImageError: If the bytes cannot be decoded as an image.
        """
        image = open_image(data)
        caption = describe(image, texts=self._reader.read(measure.as_rgb(image)))
        return Description(caption, image.width, image.height)
