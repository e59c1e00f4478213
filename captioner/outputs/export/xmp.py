"""Captions for photo libraries: XMP files beside the images, or in copies of the images."""

from __future__ import annotations

import re
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from captioner.core.errors import BadImageError, OutputDamagedError
from captioner.core.regular import reading, writing
from captioner.core.types import ImageRef
from captioner.engine.existing import text_file
from captioner.images.embed import Embedding, embed
from captioner.images.metadata import MOST_XMP
from captioner.journal.disk import replacing
from captioner.outputs.export.tables import warn_count
from captioner.outputs.rows import caption_texts

if TYPE_CHECKING:
    from pathlib import Path

    from captioner.outputs.reader import OutputReader

_NAMES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
}
"""Usual prefixes; others are written as ns0, ns1 …, which means the same."""

_RDF, _DC = f"{{{_NAMES['rdf']}}}", f"{{{_NAMES['dc']}}}"
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BEGIN = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_END = b'\n<?xpacket end="w"?>'


def write_xmp(reader: OutputReader, target: Path, *, overwrite: bool) -> None:
    """Write an XMP file beside each image: ``photo.jpg.xmp``.

    Args:
        reader: The captions.
        target: The folder in which the images have the paths that the records name.
        overwrite: Put the captions into files that exist; what else is in them stays.
    """
    kept = left_out = 0
    for row in reader.rows():
        path = text_file(target, _paths(reader, row), _suffix(reader, row))
        if path is None:
            left_out += 1
            continue
        if path.exists() and not overwrite:
            kept += 1
            continue
        try:
            new = packet(_content(path), _said(reader, row))
            with replacing(path) as new_file, writing(new_file) as file:
                file.write(new)
        except (OSError, BadImageError, OutputDamagedError):
            left_out += 1
    warn_count(kept, "XMP file was kept", "XMP files were kept", "--overwrite adds the captions")
    _warn_left_out(left_out, "the image is not a separate file, or its XMP cannot be read")


def write_images(reader: OutputReader, target: Path, *, overwrite: bool) -> None:
    """Write copies of the images with the captions in XMP, EXIF and IPTC; the rest stays.

    IPTC only if the image has IPTC. EXIF and IPTC that cannot be changed stay as they are.

    Args:
        reader: The captions.
        target: The folder for the copies, under the paths that the records name.
        overwrite: Replace files that exist, but never an image by its own copy.
    """
    kept = left_out = incomplete = 0
    for row in reader.rows():
        paths = _paths(reader, row)
        named = PurePath((paths or [None])[0] or "/")
        place = text_file(target, paths, named.suffix)
        data = reader.contents.image_bytes(ImageRef(path=str(named)), {})
        if place is None or data is None or named.is_absolute() or ".." in named.parts:
            left_out += 1
            continue
        try:
            if place.exists() and (not overwrite or _content(place, len(data) + 1) == data):
                kept += 1
                continue
            said = _said(reader, row)
            new = Embedding(partial(packet, said=said), _NOT_XML.sub("", said[0]))
            copy = embed(data, new)
            with replacing(place) as new_file, writing(new_file) as file:
                file.write(copy)
            incomplete += new.incomplete
        except (OSError, BadImageError, OutputDamagedError):
            left_out += 1
    warn_count(kept, "file was kept", "files were kept", "--overwrite replaces copies")
    warn_count(
        incomplete,
        "copy has the caption in XMP, but not in EXIF or not in IPTC",
        "copies have the caption in XMP, but not in EXIF or not in IPTC",
        "what the image has there is damaged, too large or not in UTF-8, and was kept",
    )
    _warn_left_out(
        left_out,
        "only JPEG, PNG and WebP files inside the input get captions, and none that is damaged or "
        "whose XMP cannot be changed",
    )


def _content(path: Path, most: int = MOST_XMP) -> bytes:
    """Return the first bytes of a file, empty if it is missing."""
    if not path.exists():
        return b""
    with reading(path) as file:
        return file.read(most + 1)


def _warn_left_out(count: int, reason: str) -> None:
    warn_count(count, "caption has no file", "captions have no file", reason)


def _paths(reader: OutputReader, row: dict[str, Any]) -> list[str | None]:
    return [image.path for image in reader.contents.images(row)]


def _suffix(reader: OutputReader, row: dict[str, Any], more: str = ".xmp") -> str:
    """Return the suffix of a file for the image of a row: that of the image and another one."""
    paths = _paths(reader, row)
    return PurePath(paths[0]).suffix + more if paths and paths[0] else more


def _said(reader: OutputReader, row: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the description and the keywords that a caption is, which may be an object."""
    value = row.get(reader.fields[0])
    if not isinstance(value, dict):
        return caption_texts(row, reader.fields[0])[0], []
    texts = [one for one in value.values() if isinstance(one, str)]
    keywords = value.get("keywords")
    listed = keywords if isinstance(keywords, list) else []
    return (texts or [""])[0], [one for one in listed if isinstance(one, str)]


def packet(old: bytes, said: tuple[str, list[str]]) -> bytes:
    """Return an XMP packet with a description, and keywords added, in place of an old one.

    Args:
        old: The packet; empty if there is none.
        said: The description and the keywords.

    Raises:
        BadImageError: ``image_corrupt``: the old one cannot be read, or not be written again.
    """
    description, keywords = said
    for prefix, name in _NAMES.items():
        ET.register_namespace(prefix, name)
    root = _parsed(old)
    rdf = root if root.tag == f"{_RDF}RDF" else root.find(f"{_RDF}RDF")
    if rdf is None:
        rdf = ET.SubElement(root, f"{_RDF}RDF")
    subjects: list[str] = []
    for one in rdf.findall(f"{_RDF}Description"):
        one.attrib.pop(f"{_DC}description", None)
        for element in one.findall(f"{_DC}description"):
            one.remove(element)
        for element in one.findall(f"{_DC}subject") if keywords else ():
            subjects += [item.text or "" for item in element.iter(f"{_RDF}li")]
            one.remove(element)
    own = rdf.find(f"{_RDF}Description")
    if own is None:
        own = ET.SubElement(rdf, f"{_RDF}Description", {f"{_RDF}about": ""})
    language = {_LANGUAGE: "x-default"}
    several = ET.SubElement(ET.SubElement(own, f"{_DC}description"), f"{_RDF}Alt")
    ET.SubElement(several, f"{_RDF}li", language).text = _NOT_XML.sub("", description)
    if keywords:
        bag = ET.SubElement(ET.SubElement(own, f"{_DC}subject"), f"{_RDF}Bag")
        for word in dict.fromkeys([*subjects, *keywords]):
            ET.SubElement(bag, f"{_RDF}li").text = _NOT_XML.sub("", word)
    try:
        text: bytes = ET.tostring(root, "utf-8")
    except RecursionError:
        raise BadImageError("image_corrupt", "its XMP is nested too deeply") from None
    return _BEGIN + text + _END


def _parsed(old: bytes) -> ET.Element:
    if not (text := old.strip(b"\0 \r\n\t")):
        return ET.Element(f"{{{_NAMES['x']}}}xmpmeta")
    from defusedxml.ElementTree import fromstring

    if len(text) > MOST_XMP:
        raise BadImageError("image_corrupt", "its XMP is too large")
    try:
        root: ET.Element = fromstring(text, forbid_dtd=True)
    except Exception:  # noqa: BLE001 - of the parser, and of what defusedxml forbids
        raise BadImageError("image_corrupt", "its XMP cannot be read") from None
    return root
