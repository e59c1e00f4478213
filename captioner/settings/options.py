"""The options. Each is defined once: flags, variables, TOML keys and keywords derive from here.

Option names are unique across the groups, so users never name a group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path  # noqa: TC003 - evaluated by get_type_hints
from typing import Any, Literal, Self

from captioner.core.errors import SettingsError
from captioner.core.row import EXTRAS
from captioner.settings.presets import PRESETS, PresetName
from captioner.settings.validation import (
    check_choices,
    check_colour,
    check_model,
    check_numbers,
    check_url,
    text_of,
    words,
)


def _option(default: Any, text: str, **metadata: Any) -> Any:
    """Define an option.

    Args:
        default: The default value.
        text: The description in `--help`, in the documentation and in a written TOML file.
        **metadata: ``common``: `--help` shows the option. ``tuning``: it also belongs to the
            TOML table ``[tuning]``. ``unit``: bytes, seconds or hours. ``zero``: 0 is allowed.
            ``alone``: the value that the flag has without one.
    """
    return field(default=default, metadata={"help": text, **metadata})


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
    "caption", "sqlite",
]  # fmt: skip

CODES = (
    "truncated", "refused", "looping", "too_short", "too_long", "no_image_seen", "garbage",
    "unknown_finish",
)  # fmt: skip
"""Faults of captions that ``--accept`` takes."""

MAX_SIDE = 2_048
"""Longer side of an image if neither an option nor the model's rule sets one."""

IMAGE_FIELDS = ("image", "images")
CONVERSATION_FIELDS = ("conversation", "conversations", "messages")


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Endpoint."""

    base_url: tuple[str, ...] = _option(
        (),
        "Base URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1. Repeat the "
        "flag to spread the work over several endpoints. Also read from OPENAI_BASE_URL.",
        common=True,
    )
    model: str | None = _option(
        None, "Model name. Default: the model that the endpoint serves, if it is one.", common=True
    )
    api_key_env: tuple[str, ...] = _option(
        (),
        "Environment variable that holds the API key. Repeat the flag for several "
        "keys: one for each base URL, or all for a single one. Default: the first of "
        "CAPTIONER_API_KEY, OPENAI_API_KEY and DF_API_KEY that is set. Local servers need no key.",
        common=True,
    )
    header: tuple[str, ...] = _option(
        (), "Header of every request, as 'Name: value'. Repeat the flag for several."
    )
    extra_body: str | None = _option(
        None, "JSON object of further fields of every request, such as '{\"seed\": 7}'."
    )
    stream: bool = _option(
        default=False,
        text="Stream the responses, for gateways that close idle connections. A stream that ends "
        "early is an error.",
    )
    offline: bool = _option(
        default=False,
        text="Use the built-in describer: no endpoint, no key. It names "
        "sizes, colours and legible text. It is not a vision-language model.",
        common=True,
    )
    timeout: float = _option(300.0, "Seconds that one request may take.", unit="seconds")
    max_outage: float | None = _option(
        None,
        "Seconds to wait for an endpoint that does not respond before the run ends with exit "
        "code 7. Default: no limit, once the endpoint has responded.",
        unit="seconds",
    )
    rpm: float | None = _option(
        None,
        "Requests per minute. Default: the limit that the endpoint reports, if any.",
        common=True,
    )
    tpm: float | None = _option(
        None,
        "Tokens per minute, input and output. Default: the limit that the endpoint reports, if "
        "any.",
        common=True,
    )
    weight: float = _option(
        1.0,
        "Share of the work relative to other endpoints, in an [[endpoint]] table of a TOML file.",
        tuning=True,
    )

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "base_url", words(self.base_url))
        object.__setattr__(self, "api_key_env", words(self.api_key_env))
        check_numbers(self)
        for line in self.header:
            name, _, value = line.partition(":")
            if not (re.fullmatch(_FIELD_NAME, name.strip(), re.ASCII) and value.strip()):
                raise SettingsError("header: every header must be 'Name: value'")
            if not (value.isascii() and value.strip().isprintable()):
                raise SettingsError(f"header: the value of {name.strip()} cannot be sent")
        self.extra_fields()
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
class PromptSettings:
    """Prompt."""

    system_prompt: str = _option(
        DEFAULT_SYSTEM_PROMPT,
        "System prompt, or @FILE. A system turn in the record replaces it.",
        common=True,
    )
    prompt: str = _option(
        DEFAULT_PROMPT,
        "Question for records without one, or @FILE. {{ field }} inserts "
        "a field of the record, as in Jinja templates.",
        common=True,
    )
    max_tokens: int | None = _option(
        None, "Maximum tokens of a caption. Default: the endpoint's.", common=True
    )
    temperature: float | None = _option(
        None, "Sampling temperature. Default: the endpoint's.", zero=True, common=True
    )
    detail: Literal["auto", "low", "high"] | None = _option(
        None, "Image detail that endpoints such as OpenAI's offer: auto, low or high."
    )
    thinking: Literal["auto", "on", "off"] = _option(
        "auto",
        "Thinking of the model before it answers: on, off, or auto, which switches it off when a "
        "model thinks until its tokens are used up.",
    )
    preset: PresetName | None = _option(  # noqa: RUF009 - a Literal by another name
        None,
        "Ready-made prompt: caption, dense, alt-text, understanding or search. It replaces the "
        "record's question. caption is a short and a dense one, understanding is scene, objects "
        "and text, search is keywords.",
        common=True,
    )
    schema: str | None = _option(
        None, "File with a JSON Schema that every response must follow. The caption is an object."
    )
    ask: tuple[str, ...] = _option(
        (),
        "NAME=QUESTION: replace the record's question and write the response to field NAME. "
        "Repeat the flag for several questions; each is a request of its own.",
    )
    samples: int = _option(
        1, "Responses to each question. With more than one, the caption is a list."
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_numbers(self)
        if self.preset is not None and (self.schema is not None or self.ask):
            raise SettingsError("preset: it cannot be combined with --schema or --ask")
        names = [name for name, _ in self.questions()]
        if len(set(names)) < len(names):
            raise SettingsError("ask: two questions have the same name")
        if not self.prompt.strip():
            raise SettingsError("prompt: must not be empty")

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

    def resolved(self) -> Self:
        """Return the same settings with the texts of ``@FILE`` and of the preset in place.

        Resolved settings have no preset's prompt or file left to read: resolving them again
        changes nothing.

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
            schema=text_of("schema", f"@{schema}") if schema and schema[0] != "{" else schema,
        )


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """Records."""

    input_format: InputFormat | None = _option(  # noqa: RUF009 - a Literal by another name
        None,
        "Format of INPUT. Default: by its name. One of jsonl, json, csv, tsv, parquet, arrow, "
        "images, webdataset, img2dataset, imagefolder, llava, coco, hf or ms.",
        common=True,
    )
    image_field: str | None = _option(
        None, "Field that holds the image or images. Default: image, else images.", common=True
    )
    conversation_field: str | None = _option(
        None,
        "Field that holds the conversation. Default: conversation, else conversations, else "
        "messages.",
    )
    prompt_field: str | None = _option(
        None,
        "Field that holds a plain question, which takes precedence over a conversation. Default: "
        "prompt, in records without a conversation.",
    )
    output_field: str = _option("caption", "Field that receives the caption.", common=True)
    id_field: str | None = _option(
        None, "Field that identifies a record. Default: its whole content.", common=True
    )
    duplicates: Literal["keep", "skip", "error"] = _option("keep", "See --equal-records.")
    image_root: Path | None = _option(  # noqa: RUF009 - a name with Path in it, no mutable default
        None,
        "Folder of relative image paths. Images outside of it are refused. Default: the input's "
        "folder, then the working directory, without that restriction.",
        common=True,
    )
    limit: int | None = _option(None, "Number of records to read.", common=True)
    max_line: int = _option(
        16 << 20, "Maximum size of a record. A longer one fails.", unit="bytes", tuning=True
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_numbers(self)
        if not self.output_field:
            raise SettingsError("output-field: must not be empty")
        if self.id_field == self.output_field:
            raise SettingsError("id-field: must not be the output field")
        if self.image_root is not None and not self.image_root.is_dir():
            raise SettingsError(f"image-root: there is no folder {self.image_root}")


@dataclass(frozen=True, slots=True)
class CaptionSettings:
    """Captions."""

    accept: tuple[str, ...] = _option(
        (),
        "Faults of captions to accept and flag in a field caption_flag: truncated, refused, "
        "looping, too_short or too_long. Separate several by commas.",
    )
    min_length: int = _option(1, "Minimum characters of a caption.")
    max_length: int | None = _option(None, "Maximum characters of a caption.")
    with_: tuple[str, ...] = _option(
        (),
        "Fields to add to each row beside the caption: usage, finish_reason, model, attempts or "
        "latency (seconds), as caption_usage and so on. Separate several by commas.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "accept", words(self.accept))
        object.__setattr__(self, "with_", tuple(dict.fromkeys(words(self.with_))))
        check_numbers(self)
        check_choices("accept", self.accept, CODES)
        check_choices("with", self.with_, EXTRAS)


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Images."""

    max_side: int | None = _option(
        None, "Longer side in pixels above which an image is made smaller. Default: 2048."
    )
    max_pixels: int | None = _option(None, "Pixels above which an image is made smaller.")
    min_side: int = _option(
        28,
        "Shorter side in pixels below which an image is made larger, or padded if that would make "
        "it too long.",
        tuning=True,
    )
    size_for: str | None = _option(
        None, "Model for whose published image rules to make large images smaller."
    )
    max_bytes: int = _option(
        10_000_000,
        "Maximum base64 characters of an image. A larger one is compressed further.",
        unit="bytes",
    )
    background: str = _option(
        "white",
        "Colour under transparent parts, by name or as #rrggbb. With none, transparency is kept.",
    )
    frames: int = _option(1, "Frames of an animated image to send, evenly spaced.")
    verify: Literal["structure", "full", "off"] = _option(
        "structure",
        "Check of images that are sent unchanged: structure, full (decode each) or off.",
    )
    pass_urls: bool = _option(
        default=False, text="Send http(s) image URLs to the endpoint in place of fetching them."
    )
    allow_private_urls: bool = _option(
        default=False, text="Fetch images also from private, loopback and link-local addresses."
    )
    fetch_concurrency: int = _option(32, "Maximum images fetched at once.", tuning=True)
    fetch_timeout: float = _option(
        60.0, "Seconds to fetch one image, retries included.", unit="seconds", tuning=True
    )
    image_timeout: float = _option(
        30.0, "Seconds to decode one image.", unit="seconds", tuning=True
    )
    max_image_bytes: int = _option(
        256 << 20, "Maximum size of an image file.", unit="bytes", tuning=True
    )
    max_image_pixels: int = _option(
        178_956_970, "Maximum pixels of an image that is decoded.", tuning=True
    )
    memory: int = _option(
        256 << 20,
        "Memory for prepared images, independent of the concurrency.",
        unit="bytes",
        tuning=True,
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_numbers(self)
        if self.size_for is not None:
            check_model("size_for", self.size_for)
        if self.background not in ("white", "none"):
            check_colour("background", self.background)

    @property
    def longest_side(self) -> int | None:
        """Longer side in pixels above which an image is made smaller; None: the model's rule."""
        return self.max_side or (MAX_SIDE if self.size_for is None else None)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Run."""

    concurrency: int = _option(
        32,
        "Maximum requests in flight. A run starts with a sixteenth of it, at least 8, and "
        "increases while the endpoint keeps up.",
        common=True,
    )
    processes: int = _option(
        1,
        "Processes that share the work on several cores. They divide the concurrency, the "
        "memory and the rate limits; each deduplicates its own records only.",
        common=True,
    )
    budget: float | None = _option(None, "Maximum US dollars that this run may spend.")
    budget_tokens: int | None = _option(None, "Maximum tokens that this run may spend.")
    prices: Path | None = _option(  # noqa: RUF009 - a name with Path in it, no mutable default
        None,
        "TOML file of prices that override those of the library: a table for each model, with "
        "input and output in US dollars per million tokens.",
    )
    max_attempts: int = _option(5, "Attempts to get a valid caption for a record.", common=True)
    stop_after: int | None = _option(
        None,
        "Stop the run after this many refusals alike in a row without a caption between them. "
        "Default: 10 before the first caption, 25 after it.",
    )
    probe: bool = _option(
        default=True,
        text="Before a run of 20 records or more, send one request with a test image, to find a "
        "model that sees no images.",
    )
    dedup: bool = _option(
        default=True,
        text="Send equal requests (same images, same question) once, and give each record the "
        "caption.",
    )
    cache: Path | None = _option(  # noqa: RUF009 - a name with Path in it, no mutable default
        None,
        "Folder of captions kept across runs. A request that was sent before with the same "
        "settings is not sent again.",
        common=True,
    )
    retry_failed: str | None = _option(
        None,
        "Retry records that failed in an earlier run: all, or those with one code.",
        alone=("all", "CODE"),
    )
    retry_rejected: bool = _option(
        default=False,
        text="Caption again the records whose captions a reviewer rejected (captioner view).",
    )
    output_format: OutputFormat | None = _option(  # noqa: RUF009 - a Literal by another name
        None,
        "Format of the finished output. Default: by its name. One of jsonl, json, csv, tsv, "
        "parquet, webdataset, imagefolder, coco, llava, sqlite, or txt or caption for a file per "
        "image.",
        common=True,
    )
    overwrite: bool = _option(
        default=False,
        text="Replace files that captioner did not write.",
        common=True,
    )
    order: Literal["input", "completion"] = _option(
        "input", "Order of the finished output: as in the input, or as captions were completed."
    )
    accept_changes: bool = _option(
        default=False, text="Continue although model or prompt changed since the run began."
    )
    accept_edits: bool = _option(
        default=False, text="Accept an output that was edited by hand, and caption what it lacks."
    )
    metrics_port: int | None = _option(
        None,
        "Serve Prometheus metrics on this port of 127.0.0.1. With 0, a free port is chosen.",
        zero=True,
    )
    otel: bool = _option(
        default=False,
        text="Export an OpenTelemetry span for each request, as OTEL_EXPORTER_OTLP_ENDPOINT says.",
    )
    view: bool = _option(
        default=False,
        text="Show the captions in a browser during the run, on this machine only.",
        common=True,
    )
    log_json: bool = _option(
        default=False,
        text="Write events to standard error as lines of JSON, in place of the display.",
    )
    drain: float = _option(
        30.0,
        "Seconds for requests in flight to finish after an interruption.",
        unit="seconds",
        zero=True,
        tuning=True,
    )
    disk_wait: float = _option(
        600.0, "Seconds to wait for space on a full disk.", unit="seconds", zero=True, tuning=True
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_numbers(self)
        if self.metrics_port is not None and self.metrics_port > 65_535:
            raise SettingsError(f"metrics-port: {self.metrics_port} is not between 0 and 65535")
        if self.retry_failed == "":
            raise SettingsError("retry-failed: name a code, or all")
        if self.processes > self.concurrency:
            raise SettingsError("processes: must not be more than --concurrency")


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Batch API."""

    batch_api: bool = _option(
        default=False,
        text="Use the OpenAI Batch API, which costs half and may take a day. You can stop and run "
        "again: nothing is submitted twice.",
    )
    batch_requests: int = _option(50_000, "Maximum requests of one batch.", tuning=True)
    batch_bytes: int = _option(
        190_000_000, "Maximum size of one batch's requests.", unit="bytes", tuning=True
    )
    batch_poll: float = _option(
        30.0, "Seconds between two checks of the batches.", unit="seconds", tuning=True
    )
    batch_max_wait: float | None = _option(
        None,
        "Hours to wait for batches before the run ends with exit code 8. Default: no limit.",
        unit="hours",
    )
    to_batch_file: Path | None = _option(  # noqa: RUF009 - a name with Path in it
        None, "Write the requests to this file for vLLM's run-batch, and exit."
    )
    from_batch_file: Path | None = _option(  # noqa: RUF009 - a name with Path in it
        None, "Read the responses from this file, the output of run-batch."
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_numbers(self)
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
class ClusterSettings:
    """Cluster."""

    engine: Literal["local", "ray"] = _option("local", "Where to run: local or ray. See --ray.")
    ray_address: str | None = _option(None, "Address of the Ray cluster. See --ray.")
    shards: int | None = _option(
        None,
        "Parts to split the input into, fixed by the first run. Default: four for each worker.",
        tuning=True,
    )
    workers: int | None = _option(
        None, "Ray workers, each with a core. Default: one for each core of the cluster."
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_numbers(self)


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


def option_groups() -> dict[str, str]:
    """Return the name of every option with the name of its group."""
    return {option.name: group for group, kind in GROUPS.items() for option in fields(kind)}


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
