"""The options of images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from captioner.core.errors import SettingsError
from captioner.settings.options.definition import OptionGroup, option, tuning

MAX_SIDE = 2_048
"""Longer side of an image if neither an option nor the model's rule sets one."""

_FRAMES = re.compile(r"(scene:)?0*([1-9]\d{0,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ImageSettings(OptionGroup):
    """Images."""

    max_side: int | None = option("See --resize.")
    max_pixels: int | None = option("Pixels above which an image is made smaller.")
    min_side: int = tuning(
        "Shorter side in pixels below which an image is made larger or, if very long, padded.", 28
    )
    size_for: str | None = option("See --resize.")
    max_bytes: int = option(
        "Maximum base64 characters of an image. A larger one is compressed further.",
        10_000_000,
        unit="bytes",
    )
    background: str = option(
        "Colour under transparent parts, by name or as #rrggbb. With none, transparency is kept.",
        "white",
    )
    frames: int | str | None = option(
        "Frames of a video or an animated image to send: N evenly spaced, or scene:N, the first "
        "and those at the strongest changes. Default: 8 of a video, 1 of an image."
    )
    frame_times: bool = option(
        "Say before each frame of a video or an animated image when it is shown.", default=False
    )
    verify: Literal["structure", "full", "off"] = option(
        "Check of images that are sent unchanged; full decodes each.", "structure"
    )
    pass_urls: bool = option(
        "Send http(s) image URLs to the endpoint instead of fetching them.", default=False
    )
    allow_private_urls: bool = option(
        "Fetch images also from private, loopback and link-local addresses.", default=False
    )
    fetch_concurrency: int = tuning("Maximum images fetched at once.", 32)
    fetch_timeout: float = tuning(
        "Seconds to fetch one image, retries included.", 60.0, unit="seconds"
    )
    image_timeout: float = tuning("Seconds to decode one image.", 30.0, unit="seconds")
    max_image_bytes: int = tuning("Maximum size of an image file.", 256 << 20, unit="bytes")
    max_video_bytes: int = tuning("Maximum size of a video file.", 512 << 20, unit="bytes")
    max_image_pixels: int = tuning("Maximum pixels of an image that is decoded.", 178_956_970)
    memory: int = tuning(
        "Memory for prepared images, independent of the concurrency.", 256 << 20, unit="bytes"
    )

    def _check(self) -> None:
        if self.size_for is not None:
            from captioner.settings.model_sizes import FAMILIES, rule_of

            if rule_of(self.size_for) is None:
                raise SettingsError(
                    f"resize: no rule is known for {self.size_for!r}; rules exist for {FAMILIES}"
                )
        if self.background not in ("white", "none"):
            from PIL import ImageColor

            try:
                ImageColor.getrgb(self.background)
            except ValueError:
                raise SettingsError(f"background: {self.background!r} is not a colour") from None
        count, by_scene = self.frames_of(1)
        if self.frames is not None and not by_scene:
            object.__setattr__(self, "frames", count)

    def frames_of(self, default: int) -> tuple[int, bool]:
        """Return the number of frames to send, and whether the strongest changes are wanted.

        Args:
            default: The number if no option sets it.

        Raises:
            SettingsError: ``frames`` is neither a number nor ``scene:`` and a number.
        """
        found = _FRAMES.fullmatch(str(default if self.frames is None else self.frames))
        if found is None:
            raise SettingsError(f"frames: {self.frames!r} is neither N nor scene:N, such as 8")
        return int(found[2]), found[1] is not None

    @property
    def longest_side(self) -> int | None:
        """Longer side in pixels above which an image is made smaller; None: the model's rule."""
        return self.max_side or (MAX_SIDE if self.size_for is None else None)
