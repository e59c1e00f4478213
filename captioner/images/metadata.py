"""What an image file says about itself in EXIF, IPTC and XMP. Runs in the decoder process."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, IptcImagePlugin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from xml.etree.ElementTree import Element

    from PIL import Image

MOST_XMP = 1 << 20
"""Bytes of an XMP packet that is read."""

MOST_TEXT = 10_000
MOST_TEXTS = 1_000
"""Most characters of a text, and most keywords and people."""

_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_DC = "{http://purl.org/dc/elements/1.1/}"
_PHOTOSHOP = "{http://ns.adobe.com/photoshop/1.0/}"
_PEOPLE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}PersonInImage"
_XMP = {
    "title": (f"{_DC}title",),
    "description": (f"{_DC}description",),
    "keywords": (f"{_DC}subject",),
    "people": (_PEOPLE,),
    "place": (f"{_PHOTOSHOP}City", f"{_PHOTOSHOP}State", f"{_PHOTOSHOP}Country"),
    "date": (f"{_PHOTOSHOP}DateCreated", "{http://ns.adobe.com/exif/1.0/}DateTimeOriginal"),
    "lens": ("{http://ns.adobe.com/exif/1.0/aux/}Lens",),
}
"""Properties of XMP for each value."""

_IPTC = {
    "title": ((2, 5),),
    "description": ((2, 120),),
    "keywords": ((2, 25),),
    "place": ((2, 90), (2, 95), (2, 101)),
}
"""Data sets of IPTC for each value."""

_LISTS = frozenset({"keywords", "people"})
_DATE = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)(?:[ T](\d\d:\d\d(?::\d\d)?))?")


def metadata_of(image: Image.Image) -> dict[str, Any]:
    """Return what an open image says about itself; what is damaged is left out.

    Returns:
        Texts ``date`` (as ``2024-05-31 18:30:00``), ``camera``, ``lens``, ``title``,
        ``description`` and ``place``, lists of texts ``keywords`` and ``people``, and numbers
        ``latitude``, ``longitude`` (degrees, north and east positive) and ``altitude`` (metres).
        Those that the file lacks are missing.
    """
    found: dict[str, Any] = {}
    for read in (_from_xmp, _from_iptc, _from_exif):
        with contextlib.suppress(Exception):  # parsers raise many kinds of errors on bad bytes
            for name, value in read(image).items():
                found.setdefault(name, value)
    return found


def _from_exif(image: Image.Image) -> dict[str, Any]:
    exif = image.getexif()
    more: dict[int, Any] = {}
    with contextlib.suppress(Exception):
        more = exif.get_ifd(ExifTags.IFD.Exif)
    base = ExifTags.Base
    make, model = _text(exif.get(base.Make)), _text(exif.get(base.Model))
    found: dict[str, Any] = {
        "date": _date(_text(more.get(base.DateTimeOriginal)) or _text(exif.get(base.DateTime))),
        "camera": model if model.lower().startswith(make.lower()) else f"{make} {model}".strip(),
        "lens": _text(more.get(base.LensModel)),
        "title": _text(exif.get(base.XPTitle), "utf-16-le"),
        "description": _text(_undecoded(exif.get(base.ImageDescription))),
        "keywords": _texts(_text(exif.get(base.XPKeywords), "utf-16-le").split(";")),
    }
    with contextlib.suppress(Exception):
        found |= _position(exif.get_ifd(ExifTags.IFD.GPSInfo))
    return {name: value for name, value in found.items() if value not in ("", [])}


def _position(gps: dict[int, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, most, at, side, negative in (
        ("latitude", 90, ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef, "S"),
        ("longitude", 180, ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef, "W"),
    ):
        if at in gps:
            degrees, minutes, seconds = map(float, gps[at])
            value = degrees + minutes / 60 + seconds / 3600
            if not 0 <= value <= most:  # NaN, too
                return {}
            found[name] = round(-value if _text(gps.get(side)).upper() == negative else value, 6)
    if ExifTags.GPS.GPSAltitude in gps:
        height = float(gps[ExifTags.GPS.GPSAltitude])
        if abs(height) < 100_000:
            below = gps.get(ExifTags.GPS.GPSAltitudeRef) in (1, b"\1")
            found["altitude"] = round(-height if below else height, 1)
    return found


def _from_iptc(image: Any) -> dict[str, Any]:
    values = IptcImagePlugin.getiptcinfo(image) or {}
    found: dict[str, list[str]] = {}
    for name, keys in _IPTC.items():
        several = [values.get(key, []) for key in keys]
        flat = [one for each in several for one in (each if isinstance(each, list) else [each])]
        found[name] = [_text(one) for one in flat]
    return _chosen(found)


def _from_xmp(image: Image.Image) -> dict[str, Any]:
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    packet = packet.encode() if isinstance(packet, str) else packet
    if not packet or len(packet) > MOST_XMP:
        return {}
    from defusedxml.ElementTree import fromstring

    root = fromstring(packet.strip(b"\0 \n"), forbid_dtd=True)
    properties: dict[str, list[str]] = {}
    for description in root.iter(f"{_RDF}Description"):
        for name, value in (*description.attrib.items(), *_elements(description)):
            properties.setdefault(name, []).append(_text(value))
    found = _chosen(
        {name: [text for key in keys for text in properties.get(key, [])]
         for name, keys in _XMP.items()}
    )  # fmt: skip
    if "date" in found:
        found["date"] = _date(found["date"])
    return {name: value for name, value in found.items() if value}


def _elements(description: Element) -> Iterator[tuple[str, str]]:
    """Yield the properties that are elements, once for each value; the default language first."""
    for one in description:
        items = list(one.iter(f"{_RDF}li"))
        items.sort(key=lambda item: "x-default" not in item.attrib.values())
        for item in items or [one]:
            yield one.tag, item.text or ""


def _chosen(found: dict[str, list[str]]) -> dict[str, Any]:
    """Return lists as they are, the parts of a place joined, and of other values the first."""
    chosen: dict[str, Any] = {}
    for name, several in found.items():
        if texts := _texts(several):
            chosen[name] = (
                texts if name in _LISTS else ", ".join(texts) if name == "place" else texts[0]
            )
    return chosen


def _texts(several: Iterable[str]) -> list[str]:
    """Return texts without empty and repeated ones."""
    return list(dict.fromkeys(filter(None, (one.strip() for one in several))))[:MOST_TEXTS]


def _text(value: Any, encoding: str = "utf-8") -> str:
    """Return a value as text in one line; empty if it is none."""
    if isinstance(value, tuple):
        value = bytes(value)
    if isinstance(value, bytes):
        try:
            value = value.decode(encoding)
        except UnicodeDecodeError:
            value = value.decode("latin-1")
    text = value if isinstance(value, str) else ""
    return " ".join(text[:MOST_TEXT].replace("\0", " ").split())


def _undecoded(value: Any) -> Any:
    """Return text of EXIF as bytes: programs write UTF-8, Pillow reads Latin-1."""
    return value.encode("latin-1", "replace") if isinstance(value, str) else value


def _date(text: str) -> str:
    """Return a date and time as ``2024-05-31 18:30:00``; empty if it is none."""
    found = _DATE.match(text)
    if found is None or found[1] == "0000":
        return ""
    day = "-".join(found.group(1, 2, 3))
    return f"{day} {found[4]}" if found[4] else day
