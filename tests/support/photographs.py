"""Photographs that say something about themselves."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, PngImagePlugin

XMP = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" photoshop:City="Lyon"
 photoshop:Country="France"
 xmlns:ext="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<dc:title><rdf:Alt><rdf:li xml:lang="fr">Le pont</rdf:li>
 <rdf:li xml:lang="x-default">The bridge</rdf:li></rdf:Alt></dc:title>
<dc:subject><rdf:Bag><rdf:li>river</rdf:li><rdf:li>bridge</rdf:li></rdf:Bag></dc:subject>
<ext:PersonInImage><rdf:Bag><rdf:li>Ada Example</rdf:li></rdf:Bag></ext:PersonInImage>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def photograph(kind: str = "JPEG", xmp: str = XMP) -> bytes:
    """Return an image with EXIF and XMP."""
    image = Image.new("RGB", (64, 48), "teal")
    exif = image.getexif()
    exif[0x010F], exif[0x0110] = "Canon", "Canon EOS R5"
    if kind == "TIFF":  # Pillow writes no directory inside another one into it
        exif[700] = xmp.encode()
        image.save(out := io.BytesIO(), kind, exif=exif)
        return out.getvalue()
    exif[0x8769] = {0x9003: "2024:05:31 18:30:00", 0xA434: "RF 50mm F1.2"}
    exif[0x8825] = {1: "N", 2: (45.0, 45.0, 36.0), 3: "W", 4: (4.0, 51.0, 0.0), 6: 173.5}
    out = io.BytesIO()
    options: dict[str, Any] = {"xmp": xmp.encode()}
    if kind == "PNG":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    image.save(out, kind, exif=exif, **options)
    return out.getvalue()
