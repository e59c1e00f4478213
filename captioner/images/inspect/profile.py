"""Recognition of ICC profiles (ICC.1:2022) that mean sRGB."""

from __future__ import annotations

import struct

_COLORANTS = {
    b"rXYZ": (0.436, 0.222, 0.014),
    b"gXYZ": (0.385, 0.717, 0.097),
    b"bXYZ": (0.143, 0.061, 0.714),
}
"""The primaries of sRGB, adapted to D50."""

_TOLERANCE = 0.01


def is_srgb(profile: bytes) -> bool:
    """Return whether colours of this profile look right when they are shown as sRGB.

    Profiles of the same colours have many names, so the primaries are compared. A grey profile
    needs a tone curve like that of sRGB. A profile that is empty or unreadable has no effect,
    so the answer is true.
    """
    try:
        space = profile[16:20]
        (count,) = struct.unpack_from(">I", profile, 128)
        tags = {}
        for entry in range(132, 132 + 12 * min(count, 100), 12):
            name, offset, size = struct.unpack_from(">4sII", profile, entry)
            tags[name] = profile[offset : offset + size]
        if space == b"GRAY":
            return _is_srgb_curve(tags.get(b"kTRC", b""))
        if space != b"RGB " or not _is_srgb_curve(tags.get(b"rTRC", b"")):
            return False
        for name, wanted in _COLORANTS.items():
            found = struct.unpack_from(">3i", tags.get(name, b""), 8)
            if any(abs(a / 65536 - b) > _TOLERANCE for a, b in zip(found, wanted, strict=True)):
                return False
    except struct.error:
        return True
    return True


def _is_srgb_curve(curve: bytes) -> bool:
    """Return whether a tone curve is close to that of sRGB: a gamma near 2.2, or a table."""
    if curve.startswith(b"curv"):
        (count,) = struct.unpack_from(">I", curve, 8)
        if count <= 1:
            gamma = struct.unpack_from(">H", curve, 12)[0] / 256 if count else 1.0
            return bool(2.0 <= gamma <= 2.4)
        (middle,) = struct.unpack_from(">H", curve, 12 + 2 * (count // 2))
        return bool(0.18 <= middle / 65535 <= 0.25)
    if curve.startswith(b"para"):
        kind, _, gamma = struct.unpack_from(">HHi", curve, 8)
        return bool(kind in (0, 3) and 2.0 <= gamma / 65536 <= 2.5)
    return False
