"""The options of captions."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from captioner.core.errors import SettingsError
from captioner.core.row import EXTRAS
from captioner.settings.options.definition import OptionGroup, option
from captioner.settings.validation import flag_name, text_of, words

CODES = (
    "truncated", "refused", "looping", "too_short", "too_long", "no_image_seen", "garbage",
    "unknown_finish",
)  # fmt: skip
"""Faults of captions that ``--accept`` takes."""

SHAPE = (
    "caption_template", "prefix", "suffix", "replace", "replace_re", "forbid", "max_clip_tokens",
    "max_t5_tokens", "t5_tokenizer", "tags", "tag_blacklist",
)  # fmt: skip
"""Options of captions that change the text of a caption."""


@dataclass(frozen=True, slots=True)
class CaptionSettings(OptionGroup):
    """Captions."""

    accept: tuple[str, ...] = option(
        "Faults of captions to accept and flag in a field caption_flag: "
        f"{', '.join(CODES[:-1])} or {CODES[-1]}. Separate several by commas.",
        (),
    )
    min_length: int = option("Minimum characters of a caption.", 1)
    max_length: int | None = option("Maximum characters of a caption.")
    caption_template: str | None = option(
        "Text around each caption, or @FILE, such as 'ohwx man, {{ caption }}'. It may also name "
        "what --prompt may."
    )
    prefix: str | None = option(
        "Text before each caption that does not begin with it, such as 'ohwx man, '."
    )
    suffix: str | None = option("Text after each caption that does not end with it.")
    replace: tuple[str, ...] = option(
        "OLD=NEW: replace a text in captions. Repeat the flag for several.", ()
    )
    replace_re: tuple[str, ...] = option(
        "PATTERN=NEW: replace a regular expression in captions. \\1 in NEW is its first group; \\= "
        "in PATTERN is the sign =. Repeat the flag for several.",
        (),
    )
    forbid: tuple[str, ...] = option(
        "Words that captions must not have, such as 'image of', or @FILE with a line for each. A "
        "caption with one is requested again, and then its sentence is cut. Repeat the flag for "
        "several.",
        (),
    )
    max_clip_tokens: int | None = option(
        "Maximum CLIP tokens of a caption with all that is put around it, such as 75. A longer one "
        "is requested again, and then cut after a sentence."
    )
    max_t5_tokens: int | None = option(
        "The same for T5, such as 255, with the mark of the end. It needs --t5-tokenizer."
    )
    t5_tokenizer: str | None = option(
        "The tokenizer.json of the T5 model for --max-t5-tokens, from its folder or repository."
    )
    tags: Literal["given", "sorted"] | None = option(
        "Captions are lists of tags: write them in lower case, with spaces for underscores, once "
        "each. The order is as given, or sorted by name.",
        alone=("given", "ORDER"),
    )
    tag_blacklist: tuple[str, ...] = option(
        "Tags to leave out, separated by commas, or @FILE with a line for each. It implies --tags.",
        (),
    )
    with_: tuple[str, ...] = option(
        "Fields to add to each row beside the caption: usage, finish_reason, model, attempts, "
        "latency (seconds), raw (the caption before --prefix and the like), prompt (what was "
        "asked), image_digest (BLAKE2b-128 of the file), settings (a digest of model, prompts and "
        "options) or doubt (0 to 1, by logprobs and --samples), as caption_usage and so on. "
        "Separate several by commas.",
        (),
    )

    def _check(self) -> None:
        self.pairs("replace")
        self.pairs("replace_re")
        object.__setattr__(self, "accept", words(self.accept))
        object.__setattr__(self, "with_", tuple(dict.fromkeys(words(self.with_))))
        for name, values, known in (("accept", self.accept, CODES), ("with", self.with_, EXTRAS)):
            if wrong := next((value for value in values if value not in known), None):
                raise SettingsError(f"{name}: {wrong!r} is not one of {', '.join(known)}")

    def pairs(self, name: Literal["replace", "replace_re"]) -> list[tuple[str, str]]:
        """Return what is replaced and by what, for one of the two options.

        Raises:
            SettingsError: A value is not ``OLD=NEW``.
        """
        found = []
        for given in getattr(self, name):
            pair = re.fullmatch(
                r"((?:[^=\\]|\\.)+)=(.*)" if name == "replace_re" else r"([^=]+)=(.*)",
                given,
                re.DOTALL,
            )
            if pair is None:
                raise SettingsError(f"{flag_name(name)}: {given[:40]!r} is not OLD=NEW")
            found.append((pair[1], pair[2]))
        return found

    @property
    def shape(self) -> dict[str, Any]:
        """The options that give captions their shape, by name, apart from those not given."""
        return {name: value for name in SHAPE if (value := getattr(self, name)) not in (None, ())}

    def resolved(self) -> Self:
        """Return the same settings with the texts of ``@FILE`` in place.

        Raises:
            SettingsError: A file cannot be read.
        """
        template = self.caption_template
        return replace(
            self,
            caption_template=text_of("caption_template", template) if template else template,
            forbid=_lines("forbid", self.forbid),
            tag_blacklist=_lines("tag_blacklist", self.tag_blacklist, ","),
        )


def _lines(option: str, values: tuple[str, ...], between: str = "\n") -> tuple[str, ...]:
    """Return the texts of an option, one for each line of ``@FILE``."""
    texts = (text_of(option, value).replace(between, "\n") for value in values)
    return tuple(line.strip() for text in texts for line in text.split("\n") if line.strip())
