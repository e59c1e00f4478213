"""Tokens as the text encoders of image models count them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.core.errors import SettingsError
from captioner.core.extras import needed

if TYPE_CHECKING:
    from collections.abc import Callable


def clip_tokens() -> Callable[[str], int]:
    """Return a function that counts the tokens of a text for CLIP, without its two marks.

    Raises:
        SettingsError: The library is not installed.
    """
    encode = needed("instant_clip_tokenizer", "instant-clip-tokenizer").Tokenizer().encode
    return lambda text: len(encode(text))


def t5_tokens(path: str | None) -> Callable[[str], int]:
    """Return a function that counts the tokens of a text for T5, with the mark of its end.

    Args:
        path: The ``tokenizer.json`` of the model, for no library ships its vocabulary.

    Raises:
        SettingsError: The library is not installed, or the file cannot be read.
    """
    if path is None:
        raise SettingsError(
            "max-t5-tokens: name the tokenizer.json of the T5 model with --t5-tokenizer"
        )
    try:
        tokenizer = needed("tokenizers").Tokenizer.from_file(path)
    except SettingsError:
        raise
    except Exception as error:  # noqa: BLE001 - the library raises nothing more specific
        reason = " ".join(str(error).split())[:200]
        raise SettingsError(f"t5-tokenizer: cannot read {path}: {reason}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text).ids)
