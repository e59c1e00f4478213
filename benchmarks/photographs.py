"""Images for measurements: the detail and weight of photographs, made from a seed."""

from __future__ import annotations

import io
import random
from typing import Any

from PIL import Image


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return soft shapes under the grain of a sensor."""
    rng = random.Random(seed)
    small = Image.new("RGB", (width // 32 + 2, height // 32 + 2))
    small.putdata([tuple(rng.randbytes(3)) for _ in range(small.width * small.height)])
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    grain = Image.effect_noise((width, height), 12).convert("RGB")
    return Image.blend(image, grain, 0.15)


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
