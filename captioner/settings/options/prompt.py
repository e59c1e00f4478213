"""The options of the prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, Self

from captioner.core.errors import SettingsError
from captioner.settings.options.definition import OptionGroup, common, option
from captioner.settings.presets import PRESETS, PresetName
from captioner.settings.validation import flag_name, text_of

DEFAULT_SYSTEM_PROMPT = (
    "You are an image caption generator. Your task is to write a concise and informative caption "
    "of the given image content."
)
DEFAULT_PROMPT = "Describe the content of this image in detail."

_WEIGHT = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class PromptSettings(OptionGroup):
    """Prompt."""

    system_prompt: str = common(
        "System prompt, or @FILE. A system turn in the record replaces it.", DEFAULT_SYSTEM_PROMPT
    )
    prompt: str = common(
        "Question for records without one, or @FILE. {{ field }} inserts a field of the record as "
        "in Jinja templates, {{ sidecar }} the text file beside the image.",
        DEFAULT_PROMPT,
    )
    prompt_mix: tuple[str, ...] = option(
        "WEIGHT=QUESTION or WEIGHT=@FILE: a question for records without one, instead of --prompt. "
        "Repeat the flag for several: each record gets one by chance, as often as the weights say "
        "and the same each time (--seed). In a TOML file write tables [[prompt]].",
        (),
    )
    prompt_file_in_folder: str | None = option(
        "Name of a text file, such as prompt.txt, with the question for the images in its folder "
        "and below. The nearest one inside the input counts; it is not a template."
    )
    missing: Literal["empty", "fail"] = option(
        "What to do if the record or its image lacks what a template names: fail (the record "
        "fails) or empty (the text there is empty).",
        "fail",
    )
    max_tokens: int | None = common("Maximum tokens of a caption. Default: the endpoint's.")
    temperature: float | None = common("Sampling temperature. Default: the endpoint's.", zero=True)
    detail: Literal["auto", "low", "high"] | None = option(
        "Image detail that endpoints such as OpenAI's offer: auto, low or high."
    )
    thinking: Literal["auto", "on", "off"] = option(
        "Thinking of the model before it answers. auto switches it off when a model thinks until "
        "its tokens are used up.",
        "auto",
    )
    preset: PresetName | None = common(  # noqa: RUF009 - a Literal by another name
        "Ready-made prompt: caption, dense, alt-text, understanding, search, recaption, "
        "tags-to-prose or photo-library. It replaces the record's question. caption asks for a "
        "short and a detailed caption, understanding for scene, objects and text, search for "
        "keywords. The last three use the old caption, the tags beside the image, and its EXIF."
    )
    schema: str | None = option(
        "File with a JSON Schema that responses must follow. The caption is an object; only with "
        "--accept truncated may it be the beginning of one, as text."
    )
    ask: tuple[str, ...] = option(
        "NAME=QUESTION: replace the record's question and write the response to field NAME. "
        "Repeat the flag for several questions; each is a separate request.",
        (),
    )
    samples: int = option(
        "Responses to each question. With more than one, the caption is a list.", 1
    )
    pick: Literal["best", "longest", "merge", "judge"] | None = option(
        "One caption of several --samples, 3 if not given: best (that which agrees most with the "
        "others), longest, merge (one more request puts together what is true in them) or judge "
        "(one more request chooses)."
    )
    stages: str | None = option(
        "Ask in stages, of which later ones see earlier answers. The value is a TOML file with "
        "[[stage]] tables, or detailed, ocr-grounded, alt-text-checked, region, merge, translate "
        "or tags-prose; see captioner docs stages."
    )
    fallback: tuple[str, ...] = option(
        "Model to ask for records that end as refused, filtered, looping, schema or no_image_seen, "
        "before they fail. Repeat the flag for several, in order. For another endpoint write the "
        'JSON object of its options: \'{"model": "m", "base-url": "http://…/v1"}\'.',
        (),
    )

    def _check(self) -> None:
        if self.preset is not None and (self.schema is not None or self.ask):
            raise SettingsError("preset: it cannot be combined with --schema or --ask")
        names = [name for name, _ in self.questions()]
        if len(set(names)) < len(names):
            raise SettingsError("ask: two questions have the same name")
        if not self.prompt.strip():
            raise SettingsError("prompt: must not be empty")
        if self.prompt_file_in_folder is not None and not re.fullmatch(
            r"[^/\\\0]*[^/\\\0.][^/\\\0]*", self.prompt_file_in_folder
        ):
            raise SettingsError("prompt-file-in-folder: give the name of a file, without a folder")
        for name in ("prompt_mix", "prompt_file_in_folder"):
            if getattr(self, name) and (self.preset or self.ask):
                raise SettingsError(
                    f"{flag_name(name)}: it cannot be combined with --preset or --ask, which "
                    "replace all questions"
                )
        if self.mix() and self.prompt != DEFAULT_PROMPT:
            raise SettingsError("prompt-mix: it takes the place of --prompt; give one of them")

    def questions(self) -> list[tuple[str, str]]:
        """Return names and texts of the questions that replace the record's.

        Raises:
            SettingsError: A question has no name or no text.
        """
        found = []
        for given in self.ask:
            name, _, question = given.partition("=")
            if not (name.strip() and question.strip()):
                raise SettingsError(f"ask: {given[:40]!r} is not NAME=QUESTION")
            found.append((name.strip(), question.strip()))
        return found

    def mix(self) -> list[tuple[float, str]]:
        """Return weights and texts of the questions of which each record gets one.

        Raises:
            SettingsError: One has no weight or no text.
        """
        found = []
        for given in self.prompt_mix:
            weight, _, question = given.partition("=")
            if not (re.fullmatch(_WEIGHT, weight.strip()) and float(weight) and question.strip()):
                raise SettingsError(f"prompt-mix: {given[:40]!r} is not WEIGHT=QUESTION")
            found.append((float(weight), question.strip()))
        return found

    def resolved(self) -> Self:
        """Return the same settings with the texts of ``@FILE`` and of the preset in place.

        Raises:
            SettingsError: A file cannot be read.
        """
        system_prompt, prompt = self.system_prompt, self.prompt
        if self.preset is not None:
            preset = PRESETS[self.preset]
            prompt = preset.prompt
            if system_prompt == DEFAULT_SYSTEM_PROMPT:
                system_prompt = preset.system_prompt
        schema = self.schema
        return replace(
            self,
            system_prompt=text_of("system_prompt", system_prompt),
            prompt=text_of("prompt", prompt),
            ask=tuple(f"{name}={text_of('ask', text)}" for name, text in self.questions()),
            prompt_mix=tuple(
                f"{weight}={text_of('prompt_mix', text)}" for weight, text in self.mix()
            ),
            schema=text_of("schema", f"@{schema}") if schema and schema[0] != "{" else schema,
        )
