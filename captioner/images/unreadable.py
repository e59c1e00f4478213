"""Messages about files that cannot be decoded, or not correctly."""

from __future__ import annotations

from typing import Any

from captioner.core.errors import BadImageError
from captioner.images.fit import MEMORY
from captioner.images.inspect import bits_a_channel, corrupt, is_jpeg2000
from captioner.images.raw import has_directory

_BEGINNINGS = (b"BM", b"II*\0", b"MM\0*", b"II+\0", b"\xff\x4f\xff\x51", b"\0\0\1\0")
_BOXES = (b"ftypavif", b"ftypavis", b"jP  \r\n\x87\n")
_LFS = b"version https://git-lfs.github.com/spec/"
_OTHER_FILES = {
    b"%pdf": "a PDF",
    b"<svg": "an SVG drawing",
    b"<!do": "a web page",
    b"<htm": "a web page",
    b"<?xm": "XML, perhaps an SVG drawing",
    b"pk\3\4": "a zip archive",
    b"\x1f\x8b": "gzip",
    b"{": "JSON",
    _LFS: "a Git LFS pointer; run `git lfs pull`",
}
"""First bytes in lower case."""

_OTHER_IMAGES = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"II\xbc": "JPEG XR",
    b"MM\0+": "a big-endian BigTIFF",
    b"v/1\1": "OpenEXR",
    b"#?R": "Radiance HDR",
    b"SIMPLE  =": "FITS",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
}
_UNUSUAL = {b"8BPS": "Photoshop file", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
"""First bytes of images of which only the usual kinds are read."""

_JPEG2000_MEMORY = 19
"""Bytes that a decoder needs for a pixel of a JPEG 2000; it does not say that it lacks memory."""

_BITS, _PLANES = 258, 284  # tags of TIFF
_SEPARATE = 2  # channels


def check_kind(image: Any, data: bytes) -> None:
    """Refuse an image of more than 8 bits that Pillow shows black or in false colours.

    Args:
        image: The opened image.
        data: The file.

    Raises:
        BadImageError: ``image_unknown_type``.
    """
    if _is_misread(image, data):
        raise _unusual(str(image.format))


def _is_misread(image: Any, data: bytes) -> bool:
    if len(image.getbands()) == 1:
        return False
    if image.format == "TIFF":
        tags = image.tag_v2
        is_separate = tags.get(_PLANES) == _SEPARATE and image.tile[0][0] == "raw"
        return bool(is_separate) and max(tags.get(_BITS, (1,))) > 8
    return bool(image.format == "JPEG2000") and bits_a_channel(data) > 8


def lacks_memory(data: bytes, pixels: int) -> bool:
    """Return whether decoding failed for lack of memory, where the decoder does not say so."""
    return is_jpeg2000(data) and pixels * _JPEG2000_MEMORY > MEMORY


def needs_memory() -> BadImageError:
    """Return the error for an image that needs more memory than a decoder has."""
    return BadImageError(
        "image_too_large",
        f"decoding the image takes more than the {MEMORY >> 20} MiB of memory that a decoder has; "
        "make it smaller",
    )


def _unusual(what: str) -> BadImageError:
    return BadImageError(
        "image_unknown_type",
        f"the {what} is of a kind that cannot be read; save it with 8 bits a channel",
    )


def unidentified(data: bytes) -> BadImageError:
    """Return the error for a file that Pillow does not recognise."""
    for begin, what in _OTHER_IMAGES.items():
        if data.startswith(begin):
            return BadImageError(
                "image_unknown_type",
                f"the image is {what}, which cannot be read; save it as PNG or JPEG",
            )
    for begin, what in _UNUSUAL.items():
        if data.startswith(begin) and (what != "TIFF" or has_directory(data)):
            return _unusual(what)
    if data.startswith(_BEGINNINGS) or data[4:12] in _BOXES:
        return corrupt("its headers cannot be read")
    head = data[:200].lstrip().lower()
    for begin, what in _OTHER_FILES.items():
        if head.startswith(begin):
            return BadImageError("image_unknown_type", f"the file is not an image but {what}")
    return BadImageError("image_unknown_type", "the file is not an image of a known type")
