"""Tokens as the text encoders of image models count them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.core.extras import needed

if TYPE_CHECKING:
    from collections.abc import Callable


def clip_tokens() -> Callable[[str], int]:
    """Return a function that counts the tokens of a text for CLIP, without its two marks.

    Raises:
        SettingsError: The library is not installed.
    """
    encode = needed("instant_clip_tokenizer", "clip").Tokenizer().encode
    return lambda text: len(encode(text))
