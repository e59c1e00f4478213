"""The options. Each is defined once: flags, variables, TOML keys and keywords derive from here.

Option names are unique across the groups, so users never name a group. The module is long because
it holds all options: to add or find one, this is the only place.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path  # noqa: TC003 - evaluated by get_type_hints
from typing import Any, Literal, Self

from captioner.core.errors import SettingsError
from captioner.core.row import EXTRAS
from captioner.core.where import Where
from captioner.settings.presets import PRESETS, PresetName
from captioner.settings.validation import (
    check_url,
    flag_name,
    text_of,
    words,
)


def _option(text: str, default: Any = None, **metadata: Any) -> Any:
    """Define an option.

    Args:
        text: The description in `--help`, in the documentation and in a written TOML file.
        default: The default value.
        **metadata: ``common``: `--help` shows the option. ``tuning``: it also belongs to the
            TOML table ``[tuning]``. ``unit``: bytes, seconds or hours. ``zero``: 0 is allowed.
            ``alone``: the value that the flag has without one.
    """
    return field(default=default, metadata={"help": text, **metadata})


_common = partial(_option, common=True)
_tuning = partial(_option, tuning=True)


DEFAULT_SYSTEM_PROMPT = (
    "You are an image caption generator. Your task is to write a concise and informative caption "
    "of the given image content."
)
DEFAULT_PROMPT = "Describe the content of this image in detail."


InputFormat = Literal[
    "jsonl", "json", "csv", "tsv", "parquet", "arrow", "images", "webdataset", "img2dataset",
    "imagefolder", "llava", "coco", "hf", "ms",
]  # fmt: skip

OutputFormat = Literal[
    "jsonl", "json", "csv", "tsv", "parquet", "webdataset", "imagefolder", "coco", "llava", "txt",
    "caption", "sqlite", "xmp", "images", "dataset",
]  # fmt: skip

CODES = (
    "truncated", "refused", "looping", "too_short", "too_long", "no_image_seen", "garbage",
    "unknown_finish",
)  # fmt: skip
"""Faults of captions that ``--accept`` takes."""

MAX_SIDE = 2_048
"""Longer side of an image if neither an option nor the model's rule sets one."""

IMAGE_FIELDS = ("image", "images", "video", "videos")
CONVERSATION_FIELDS = ("conversation", "conversations", "messages")


class _Group:
    """Options whose values are checked when they are made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """Check the numbers, then the other values."""
        for option in fields(self):  # type: ignore[arg-type]  # each group is a dataclass
            value = getattr(self, option.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            zero = option.metadata.get("zero", False)
            if not (value >= 0 if zero else value > 0):  # NaN, too
                wanted = "must not be negative" if zero else "must be more than 0"
                raise SettingsError(f"{flag_name(option.name)}: {wanted}")
        self._check()

    def _check(self) -> None:
        """Refuse other invalid values."""


CSV_SAFE = (
    "In CSV and TSV, begin text that a spreadsheet would run as a formula (=, +, -, @) with an "
    "apostrophe."
)


@dataclass(frozen=True, slots=True)
class EndpointSettings(_Group):
    """Endpoint."""

    base_url: tuple[str, ...] = _common(
        "Base URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1. Repeat the "
        "flag to spread the work over several endpoints. Also read from OPENAI_BASE_URL.",
        (),
    )
    model: str | None = _common(
        "Model name. Default: the model that the endpoint serves, if it is one."
    )
    api_key_env: tuple[str, ...] = _common(
        "Environment variable that holds the API key. Repeat the flag for several "
        "keys: one for each base URL, or all for a single one. Default: the first of "
        "CAPTIONER_API_KEY, OPENAI_API_KEY and DF_API_KEY that is set. Local servers need no key.",
        (),
    )
    header: tuple[str, ...] = _option(
        "Header of every request, as 'Name: value'. Repeat the flag for several.", ()
    )
    extra_body: str | None = _option(
        "JSON object of further fields of every request, such as '{\"seed\": 7}'."
    )
    stream: bool = _option(
        "Stream the responses, for gateways that close idle connections. An early end is an error.",
        default=False,
    )
    offline: bool = _common(
        "Use the built-in describer: no endpoint, no key. It names "
        "sizes, colours and legible text. It is not a vision-language model.",
        default=False,
    )
    serve: str | None = _common(
        "Start a model server on this machine for the run. The value is MODEL, or vllm:MODEL, "
        "sglang:MODEL, llamacpp:MODEL, ollama:MODEL or transformers:MODEL. MODEL is one of "
        "captioner models, a name on the hub, a folder or a GGUF file."
    )
    serve_args: str = _option(
        "Arguments for the server of --serve, as one text: --serve-args='--max-model-len 8192'. "
        "They replace those of captioner.",
        "",
    )
    replicas: int | None = _option(
        "Servers that --serve starts. Default: one for each GPU, or each group of GPUs that "
        "--serve-args asks for."
    )
    timeout: float = _option("Seconds that one request may take.", 300.0, unit="seconds")
    max_outage: float | None = _option(
        "Seconds that an endpoint may give no caption before the run ends with exit code 7. "
        "Default: before the first caption 60, or longer if the endpoint says how long to wait or "
        "that it loads its model; after it no limit.",
        unit="seconds",
    )
    rpm: float | None = _common(
        "Requests per minute. Default: the endpoint's limit, if it reports one."
    )
    tpm: float | None = _common(
        "Tokens per minute, input and output. Default: the endpoint's limit, if it reports one."
    )
    courtesy: float = _tuning(
        "How long to wait before more requests are tried after some were refused, relative to the "
        "usual 1 to 32 s.",
        1.0,
    )
    weight: float = _tuning(
        "Share of the work relative to other endpoints, in an [[endpoint]] table of a TOML file.",
        1.0,
    )

    def _check(self) -> None:
        object.__setattr__(self, "base_url", words(self.base_url))
        object.__setattr__(self, "api_key_env", words(self.api_key_env))
        for line in self.header:
            name, _, value = line.partition(":")
            if not (re.fullmatch(_FIELD_NAME, name.strip(), re.ASCII) and value.strip()):
                raise SettingsError("header: every header must be 'Name: value'")
            if not (value.isascii() and value.strip().isprintable()):
                raise SettingsError(f"header: the value of {name.strip()} cannot be sent")
        self.extra_fields()
        if self.serve is not None and (self.offline or not self.serve.strip()):
            raise SettingsError("serve: name a model, and leave --offline out")
        try:
            shlex.split(self.serve_args)
        except ValueError as error:
            raise SettingsError(f"serve-args: {error}") from None
        if not all(re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) for name in self.api_key_env):
            raise SettingsError(
                "api-key-env: give the name of an environment variable that holds the key, not the "
                "key itself"
            )
        if len(self.api_key_env) > 1 and len(self.base_url) not in (1, len(self.api_key_env)):
            raise SettingsError("api-key-env: give one key, or one for each base URL")
        for url in self.base_url:
            check_url("base_url", url)

    def extra_fields(self) -> dict[str, Any]:
        """Return the fields of ``extra_body``.

        Raises:
            SettingsError: It is not a JSON object, or sets a field that has its own option.
        """
        if self.extra_body is None:
            return {}
        import json

        try:
            extra = json.loads(text_of("extra_body", self.extra_body))
        except ValueError as error:
            raise SettingsError(f"extra-body: not valid JSON: {error}") from None
        if not isinstance(extra, dict):
            raise SettingsError("extra-body: must be a JSON object")
        for name, flag in _NOT_EXTRA.items():
            if name in extra:
                raise SettingsError(f"extra-body: set {name!r} with {flag}")
        return extra


@dataclass(frozen=True, slots=True)
class PromptSettings(_Group):
    """Prompt."""

    system_prompt: str = _common(
        "System prompt, or @FILE. A system turn in the record replaces it.", DEFAULT_SYSTEM_PROMPT
    )
    prompt: str = _common(
        "Question for records without one, or @FILE. {{ field }} inserts a field of the record as "
        "in Jinja templates, {{ sidecar }} the text file beside the image.",
        DEFAULT_PROMPT,
    )
    prompt_mix: tuple[str, ...] = _option(
        "WEIGHT=QUESTION or WEIGHT=@FILE: a question for records without one, instead of --prompt. "
        "Repeat the flag for several: each record gets one by chance, as often as the weights say "
        "and the same each time (--seed). In a TOML file write tables [[prompt]].",
        (),
    )
    prompt_file_in_folder: str | None = _option(
        "Name of a text file, such as prompt.txt, with the question for the images in its folder "
        "and below. The nearest one inside the input counts; it is no template."
    )
    missing: Literal["empty", "fail"] = _option(
        "What to do if the record or its image lacks what a template names: fail (the record "
        "fails) or empty (the text there is empty).",
        "fail",
    )
    max_tokens: int | None = _common("Maximum tokens of a caption. Default: the endpoint's.")
    temperature: float | None = _common("Sampling temperature. Default: the endpoint's.", zero=True)
    detail: Literal["auto", "low", "high"] | None = _option(
        "Image detail that endpoints such as OpenAI's offer: auto, low or high."
    )
    thinking: Literal["auto", "on", "off"] = _option(
        "Thinking of the model before it answers. auto switches it off when a model thinks until "
        "its tokens are used up.",
        "auto",
    )
    preset: PresetName | None = _common(  # noqa: RUF009 - a Literal by another name
        "Ready-made prompt: caption, dense, alt-text, understanding, search, recaption, "
        "tags-to-prose or photo-library. It replaces the record's question. caption asks for a "
        "short and a detailed caption, understanding for scene, objects and text, search for "
        "keywords. The last three use the old caption, the tags beside the image, and its EXIF."
    )
    schema: str | None = _option(
        "File with a JSON Schema that responses must follow. The caption is an object; only with "
        "--accept truncated may it be the beginning of one, as text."
    )
    ask: tuple[str, ...] = _option(
        "NAME=QUESTION: replace the record's question and write the response to field NAME. "
        "Repeat the flag for several questions; each is a request of its own.",
        (),
    )
    samples: int = _option(
        "Responses to each question. With more than one, the caption is a list.", 1
    )
    pick: Literal["best", "longest", "merge", "judge"] | None = _option(
        "One caption of several --samples, 3 if not given: best (that which agrees most with the "
        "others), longest, merge (one more request puts together what is true in them) or judge "
        "(one more request chooses)."
    )
    stages: str | None = _option(
        "Ask in stages, of which later ones see earlier answers. The value is a TOML file with "
        "[[stage]] tables, or detailed, ocr-grounded, alt-text-checked, region, merge, translate "
        "or tags-prose; see captioner docs stages."
    )
    fallback: tuple[str, ...] = _option(
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


@dataclass(frozen=True, slots=True)
class RecordSettings(_Group):
    """Records."""

    input_format: InputFormat | None = _common(  # noqa: RUF009 - a Literal by another name
        "Format of INPUT. Default: by its name."
    )
    split: str | None = _option(
        "Split to read: of a data set on a hub, of a folder that save_to_disk wrote, or of an "
        "imagefolder. Default: train on a hub, else all, one after the other."
    )
    image_field: str | None = _common(
        "Field of the image or images; suffix of a tar member. Default: image, images, video or "
        "videos."
    )
    conversation_field: str | None = _option(
        "Field that holds the conversation. Default: conversation, conversations or messages."
    )
    prompt_field: str | None = _option(
        "Field that holds a plain question, which takes precedence over a conversation. Default: "
        "prompt, in records without a conversation."
    )
    output_field: str = _common("Field that receives the caption.", "caption")
    existing: Literal["error", "replace", "skip", "append", "prepend"] | None = _option(
        "What to do with records that have a caption already: error (do not start), replace the "
        "caption, skip (keep the record as it is), append the new caption to it, or prepend it. "
        "With text files as output, a file that is not empty is a caption. Default: error, and "
        "skip for text files."
    )
    id_field: str | None = _common("Field that identifies a record. Default: its whole content.")
    duplicates: Literal["keep", "skip", "error"] = _option("See --equal-records.", "keep")
    image_root: Path | None = _common(  # noqa: RUF009 - a name with Path in it, no mutable default
        "Folder of relative image paths. Images outside of it are refused. Default: the input's "
        "folder, then the working directory, without that restriction."
    )
    where: str | None = _common(
        "Take only records for which this is true. It is an expression over their fields and file, "
        "folder and size of their first image, such as \"folder == 'cats' and size > 100000\"."
    )
    sample: int | None = _common(
        "Take this many records, chosen at random. They come from the whole input and are the same "
        "each time. A run without it continues the output with the others."
    )
    seed: int = _option("Seed of the choices of --sample and --prompt-mix.", 0, zero=True)
    limit: int | None = _common("Number of records to take.")
    max_line: int = _tuning("Maximum size of a record. A longer one fails.", 16 << 20, unit="bytes")
    max_images: int = _tuning("Maximum images of a record. One with more fails.", 64)

    def _check(self) -> None:
        if self.split == "":
            raise SettingsError("split: must not be empty")
        if not self.output_field:
            raise SettingsError("output-field: must not be empty")
        if self.id_field == self.output_field:
            raise SettingsError("id-field: must not be the output field")
        if self.where is not None:
            Where(self.where, "where")
        if self.image_root is not None and not self.image_root.is_dir():
            raise SettingsError(f"image-root: there is no folder {self.image_root}")


@dataclass(frozen=True, slots=True)
class CaptionSettings(_Group):
    """Captions."""

    accept: tuple[str, ...] = _option(
        "Faults of captions to accept and flag in a field caption_flag: "
        f"{', '.join(CODES[:-1])} or {CODES[-1]}. Separate several by commas.",
        (),
    )
    min_length: int = _option("Minimum characters of a caption.", 1)
    max_length: int | None = _option("Maximum characters of a caption.")
    caption_template: str | None = _option(
        "Text around each caption, or @FILE, such as 'ohwx man, {{ caption }}'. It may also name "
        "what --prompt may."
    )
    prefix: str | None = _option(
        "Text before each caption that does not begin with it, such as 'ohwx man, '."
    )
    suffix: str | None = _option("Text after each caption that does not end with it.")
    replace: tuple[str, ...] = _option(
        "OLD=NEW: replace a text in captions. Repeat the flag for several.", ()
    )
    replace_re: tuple[str, ...] = _option(
        "PATTERN=NEW: replace a regular expression in captions. \\1 in NEW is its first group; \\= "
        "in PATTERN is the sign =. Repeat the flag for several.",
        (),
    )
    forbid: tuple[str, ...] = _option(
        "Words that captions must not have, such as 'image of', or @FILE with a line for each. A "
        "caption with one is requested again, and then its sentence is cut. Repeat the flag for "
        "several.",
        (),
    )
    max_clip_tokens: int | None = _option(
        "Maximum CLIP tokens of a caption with all that is put around it, such as 75. A longer one "
        "is requested again, and then cut after a sentence."
    )
    max_t5_tokens: int | None = _option(
        "The same for T5, such as 255, with the mark of the end. It needs --t5-tokenizer."
    )
    t5_tokenizer: str | None = _option(
        "The tokenizer.json of the T5 model for --max-t5-tokens, from its folder or repository."
    )
    tags: Literal["given", "sorted"] | None = _option(
        "Captions are lists of tags: write them in lower case, with spaces for underscores, once "
        "each. The order is as given, or sorted by name.",
        alone=("given", "ORDER"),
    )
    tag_blacklist: tuple[str, ...] = _option(
        "Tags to leave out, separated by commas, or @FILE with a line for each. It implies --tags.",
        (),
    )
    with_: tuple[str, ...] = _option(
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


SHAPE = (
    "caption_template", "prefix", "suffix", "replace", "replace_re", "forbid", "max_clip_tokens",
    "max_t5_tokens", "t5_tokenizer", "tags", "tag_blacklist",
)  # fmt: skip
"""Options of captions that change the text of a caption."""


def _lines(option: str, values: tuple[str, ...], between: str = "\n") -> tuple[str, ...]:
    """Return the texts of an option, one for each line of ``@FILE``."""
    texts = (text_of(option, value).replace(between, "\n") for value in values)
    return tuple(line.strip() for text in texts for line in text.split("\n") if line.strip())


@dataclass(frozen=True, slots=True)
class ImageSettings(_Group):
    """Images."""

    max_side: int | None = _option("See --resize.")
    max_pixels: int | None = _option("Pixels above which an image is made smaller.")
    min_side: int = _tuning(
        "Shorter side in pixels below which an image is made larger or, if very long, padded.", 28
    )
    size_for: str | None = _option("See --resize.")
    max_bytes: int = _option(
        "Maximum base64 characters of an image. A larger one is compressed further.",
        10_000_000,
        unit="bytes",
    )
    background: str = _option(
        "Colour under transparent parts, by name or as #rrggbb. With none, transparency is kept.",
        "white",
    )
    frames: int | str | None = _option(
        "Frames of a video or an animated image to send: N evenly spaced, or scene:N, the first "
        "and those at the strongest changes. Default: 8 of a video, 1 of an image."
    )
    frame_times: bool = _option(
        "Say before each frame of a video or an animated image when it is shown.", default=False
    )
    verify: Literal["structure", "full", "off"] = _option(
        "Check of images that are sent unchanged; full decodes each.", "structure"
    )
    pass_urls: bool = _option(
        "Send http(s) image URLs to the endpoint instead of fetching them.", default=False
    )
    allow_private_urls: bool = _option(
        "Fetch images also from private, loopback and link-local addresses.", default=False
    )
    fetch_concurrency: int = _tuning("Maximum images fetched at once.", 32)
    fetch_timeout: float = _tuning(
        "Seconds to fetch one image, retries included.", 60.0, unit="seconds"
    )
    image_timeout: float = _tuning("Seconds to decode one image.", 30.0, unit="seconds")
    max_image_bytes: int = _tuning("Maximum size of an image file.", 256 << 20, unit="bytes")
    max_video_bytes: int = _tuning("Maximum size of a video file.", 512 << 20, unit="bytes")
    max_image_pixels: int = _tuning("Maximum pixels of an image that is decoded.", 178_956_970)
    memory: int = _tuning(
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


@dataclass(frozen=True, slots=True)
class RunSettings(_Group):
    """Run."""

    concurrency: int = _common(
        "Maximum requests in flight. A run starts with a sixteenth of it, at least 8, and "
        "increases while the endpoint keeps up.",
        32,
    )
    processes: int = _common(
        "Processes that share the work on several cores. They divide the concurrency, the "
        "memory and the rate limits; each deduplicates its own records only.",
        1,
    )
    budget: float | None = _option("See --budget.")
    budget_tokens: int | None = _option("See --budget.")
    renew_budget: bool = _option("See --budget-per-run.", default=False)
    prices: Path | None = _option(  # noqa: RUF009 - a name with Path in it, no mutable default
        "TOML file of prices that override those of the library: a table for each model, with "
        "input and output in US dollars per million tokens."
    )
    max_attempts: int = _option("Attempts to get a valid caption for a record.", 5)
    stop_after: int | None = _option(
        "Stop the run after this many refusals alike in a row without a caption between them. "
        "Default: 10 before the first caption, 25 after it."
    )
    hedge: Literal["auto", "on", "off"] = _option(
        "At the end of a run, send a request a second time if it takes longer than 99 of 100 did; "
        "the first answer counts. auto does so where requests cost nothing: on your own network, "
        "without a price.",
        "auto",
    )
    probe: bool = _option(
        "Before a run of 20 records or more, send one request with a test image, to find a model "
        "that sees no images.",
        default=True,
    )
    dedup: bool = _option(
        "Send equal requests (same images, same question) once, and give each record the caption.",
        default=True,
    )
    cache: Path | None = _common(  # noqa: RUF009 - a name with Path in it, no mutable default
        "Folder of captions kept across runs. A request that was sent before with the same "
        "settings is not sent again."
    )
    redo: str | None = _common(
        "Caption again all records or those of WHERE. It is an expression over the fields of the "
        "row, code, length, model, prompt and review, such as "
        "\"length < 20 or code == 'truncated'\". What they had is kept beside the output in a "
        "file whose name ends in .replaced-1 and so on. Model and prompt may change.",
        alone=("all", "WHERE"),
    )
    retry_failed: str | None = _option("See --retry.", alone=("all", "CODE"))
    retry_rejected: bool = _option("See --retry.", default=False)
    output_format: OutputFormat | None = _common(  # noqa: RUF009 - a Literal by another name
        "Output format. Default: by its name. txt, caption and xmp write a file for each image, "
        "images a copy of each with the caption in it, dataset a folder for Hugging Face."
    )
    overwrite: bool = _common("Replace files that captioner did not write.", default=False)
    csv_safe: bool = _option(CSV_SAFE, default=False)
    order: Literal["input", "completion"] = _option(
        "Order of the finished output: as in the input, or as captions were completed.", "input"
    )
    accept_changes: bool = _option("See --accept-changes.", default=False)
    accept_edits: bool = _option("See --accept-changes.", default=False)
    metrics_port: int | None = _option(
        "Serve Prometheus metrics on this port of 127.0.0.1. With 0, a free port is chosen.",
        zero=True,
    )
    otel: bool = _option(
        "Export an OpenTelemetry span for each request, as OTEL_EXPORTER_OTLP_ENDPOINT says.",
        default=False,
    )
    view: bool = _common(
        "Show the captions in a browser during the run. The page is for this machine only.",
        default=False,
    )
    log_json: bool = _option(
        "Write events to standard error as lines of JSON instead of the display.", default=False
    )
    log_file: Path | None = _option(  # noqa: RUF009 - a name with Path in it, no mutable default
        "Add events to this file as lines of JSON, beside the display: settings, progress with "
        "the time left, warnings, and the result with its failures."
    )
    drain: float = _tuning(
        "Seconds for requests in flight to finish after an interruption.",
        30.0,
        unit="seconds",
        zero=True,
    )
    cache_size: int = _tuning(
        "Maximum size of the cache. Its oldest captions are removed first.", 10 << 30, unit="bytes"
    )
    disk_wait: float = _tuning(
        "Seconds to wait for space on a full disk.", 600.0, unit="seconds", zero=True
    )

    def _check(self) -> None:
        if self.metrics_port is not None and self.metrics_port > 65_535:
            raise SettingsError(f"metrics-port: {self.metrics_port} is not between 0 and 65535")
        if self.retry_failed == "":
            raise SettingsError("retry: name a code, or failed")
        if self.redo not in (None, "all"):
            Where(self.redo, "redo")

    @property
    def again(self) -> str | None:
        """What is captioned again, as an expression of ``redo``; None if nothing is."""
        wanted = []
        if self.redo is not None:
            wanted.append("True" if self.redo == "all" else f"({self.redo})")
        if self.retry_failed is not None:
            codes = self.retry_failed.split(",")
            wanted.append("failed" if "all" in codes else f"(failed and code in {codes!r})")
        if self.retry_rejected:
            wanted.append("review == 'rejected'")
        return " or ".join(wanted) or None

    @property
    def replaces_captions(self) -> bool:
        """Whether captions of the output are made again, and not only failures."""
        return self.redo is not None or self.retry_rejected


@dataclass(frozen=True, slots=True)
class BatchSettings(_Group):
    """Batch API."""

    batch_api: bool = _option(
        "Use the OpenAI Batch API, which costs half and may take a day. You can stop and run "
        "again: nothing is submitted twice.",
        default=False,
    )
    batch_requests: int = _tuning("Maximum requests of one batch.", 50_000)
    batch_bytes: int = _tuning("Maximum size of one batch's requests.", 190_000_000, unit="bytes")
    batch_poll: float = _tuning("Seconds between two checks of the batches.", 30.0, unit="seconds")
    batch_max_wait: float | None = _option(
        "Hours to wait for batches before the run ends with exit code 8. Default: no limit.",
        unit="hours",
    )
    to_batch_file: Path | None = _option(  # noqa: RUF009 - a name with Path in it
        "Write the requests to this file for vLLM's run-batch, and exit."
    )
    from_batch_file: Path | None = _option(  # noqa: RUF009 - a name with Path in it
        "Read the responses from this file, the output of run-batch."
    )

    def _check(self) -> None:
        given = [self.batch_api, self.to_batch_file is not None, self.from_batch_file is not None]
        if sum(given) > 1:
            raise SettingsError(
                "batch-api: it cannot be combined with --to-batch-file or --from-batch-file"
            )

    @property
    def any(self) -> bool:
        """Whether records go through batches."""
        return self.batch_api or (self.to_batch_file or self.from_batch_file) is not None


@dataclass(frozen=True, slots=True)
class ClusterSettings(_Group):
    """Cluster."""

    engine: Literal["local", "ray"] = _option("See --ray.", "local")
    ray_address: str | None = _option("See --ray.")
    shards: int | None = _tuning(
        "Parts to split the input into, fixed by the first run. Default: four for each worker."
    )
    workers: int | None = _option(
        "Ray workers, each with a core. Default: one for each core of the cluster."
    )


GROUPS: dict[str, Any] = {
    "endpoint": EndpointSettings,
    "prompt": PromptSettings,
    "records": RecordSettings,
    "captions": CaptionSettings,
    "images": ImageSettings,
    "run": RunSettings,
    "batch": BatchSettings,
    "cluster": ClusterSettings,
}


@cache
def option_groups() -> dict[str, str]:
    """Return the name of every option with the name of its group."""
    return {option.name: group for group, kind in GROUPS.items() for option in fields(kind)}


_WEIGHT = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)

_FRAMES = re.compile(r"(scene:)?0*([1-9]\d{0,5})", re.ASCII)

_FIELD_NAME = r"[\w!#$%&'*+.^`|~-]+"
"""A header's name; RFC 9110, section 5.6.2."""

_NOT_EXTRA = {
    "model": "--model",
    "messages": "--prompt",
    "max_tokens": "--max-tokens",
    "temperature": "--temperature",
    "stream": "--stream",
    "n": "--samples",
    "response_format": "--schema",
}
