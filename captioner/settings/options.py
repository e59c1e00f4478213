"""The options, each defined once: flags, environment, TOML, keywords and checks derive from here.

Groups exist for the reader and for the parts that need only one of them: every option's name is
unique, so that whoever types one never types a group.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path  # noqa: TC003 - read when the options are made into flags
from typing import Any, Literal, Self

from captioner.core.errors import SettingsError
from captioner.core.row import EXTRAS
from captioner.settings.model_sizes import FAMILIES, rule_of
from captioner.settings.presets import PRESETS, PresetName
from captioner.settings.validation import (
    check_colour,
    check_positive,
    check_url,
    flag_name,
    text_of,
    words,
)


def _option(default: Any, text: str) -> Any:
    """Define an option with what `--help`, the README and a written-out TOML file say of it."""
    return field(default=default, metadata={"help": text})


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

CODES = ("truncated", "refused", "looping", "too_short", "too_long")
"""Faults of captions that may be accepted."""

MAX_SIDE = 2_048
"""Longer side of an image where neither an option nor the model's rule says anything."""

IMAGE_FIELDS = ("image", "images")
CONVERSATION_FIELDS = ("conversation", "conversations", "messages")


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Endpoint."""

    base_url: tuple[str, ...] = _option(
        (),
        "Base URL of an OpenAI-compatible endpoint, for example http://localhost:8000/v1. "
        "Repeat it for several, among which the work is spread. Also read from OPENAI_BASE_URL.",
    )
    model: str | None = _option(
        None,
        "Model to ask for. Default: the one the endpoint serves, if it serves just one.",
    )
    api_key_env: tuple[str, ...] = _option(
        (),
        "Name of the environment variable that holds the key; repeat it for several keys, one "
        "for each base URL or all for the only one. Default: the first of CAPTIONER_API_KEY, "
        "OPENAI_API_KEY, DF_API_KEY that is set; local servers need none.",
    )
    header: tuple[str, ...] = _option(
        (),
        "Header of every request, as 'Name: value'; may be repeated.",
    )
    extra_body: str | None = _option(
        None,
        "JSON object of further members of every request, for example '{\"seed\": 7}'.",
    )
    stream: bool = _option(
        default=False,
        text="Have captions streamed, for gateways that cut silent connections. A stream counts "
        "only if it ends as it should.",
    )
    offline: bool = _option(
        default=False,
        text="Use the built-in describer instead of an endpoint: no key, no network. It names "
        "sizes, colours and legible text; it is no vision-language model.",
    )
    timeout: float = _option(
        300.0,
        "Seconds one request may take from start to end.",
    )
    max_outage: float | None = _option(
        None,
        "Seconds to wait for an endpoint that is away before giving up with exit code 7. "
        "Default: for ever, once it has answered.",
    )

    rpm: float | None = _option(
        None,
        "Requests a minute. Default: what the endpoint says of itself, if it does.",
    )
    tpm: float | None = _option(
        None,
        "Tokens a minute, input and output. Default: what the endpoint says of itself, if it does.",
    )
    weight: float = _option(
        1.0,
        "Share of the work beside other endpoints, in a TOML file's [[endpoint]] table.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "base_url", words(self.base_url))
        object.__setattr__(self, "api_key_env", words(self.api_key_env))
        check_positive("weight", self.weight)
        for line in self.header:
            name, _, value = line.partition(":")
            if not (re.fullmatch(_FIELD_NAME, name.strip(), re.ASCII) and value.strip()):
                raise SettingsError("header: one is not 'Name: value'")
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
        check_positive("rpm", self.rpm)
        check_positive("tpm", self.tpm)
        check_positive("timeout", self.timeout)
        check_positive("max_outage", self.max_outage)
        for url in self.base_url:
            check_url("base_url", url)

    def extra_fields(self) -> dict[str, Any]:
        """Return the members of ``extra_body``.

        Raises:
            SettingsError: It is no JSON object, or holds what other options say.
        """
        if self.extra_body is None:
            return {}
        try:
            members = json.loads(text_of("extra_body", self.extra_body))
        except ValueError as error:
            raise SettingsError(f"extra-body: it is not valid JSON: {error}") from None
        if not isinstance(members, dict):
            raise SettingsError("extra-body: it is no JSON object")
        for name, flag in _NOT_EXTRA.items():
            if name in members:
                raise SettingsError(f"extra-body: say {name!r} with {flag}")
        return members


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """What is asked."""

    system_prompt: str = _option(
        DEFAULT_SYSTEM_PROMPT,
        "System prompt, or @FILE to read it from a file. A system turn of the record's own "
        "takes its place.",
    )
    prompt: str = _option(
        DEFAULT_PROMPT,
        "Question for records that bring none, or @FILE to read it from a file. {{ member }} is "
        "what the record holds there, as in Jinja templates.",
    )
    max_tokens: int | None = _option(
        None,
        "Most tokens of a caption. Default: the endpoint's own.",
    )
    temperature: float | None = _option(
        None,
        "Sampling temperature. Default: the endpoint's own.",
    )
    detail: Literal["auto", "low", "high"] | None = _option(
        None,
        "How closely the model looks at images, where the endpoint has that choice: auto, low or "
        "high.",
    )
    preset: PresetName | None = _option(  # noqa: RUF009 - a Literal by another name
        None,
        "Prompts made for a use, in place of the record's question: caption (short and dense), "
        "dense, alt-text, understanding (scene, objects, text) or search (keywords).",
    )
    schema: str | None = _option(
        None,
        "File with the JSON Schema of an object that each answer has to follow; the caption is "
        "then that object.",
    )
    ask: tuple[str, ...] = _option(
        (),
        "NAME=QUESTION: ask this in place of the record's own question and write the answer to "
        "member NAME; may be repeated, each a request of its own.",
    )
    samples: int = _option(
        1,
        "Answers to each question; with more than one the caption is a list.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_positive("samples", self.samples)
        if self.preset is not None and (self.schema is not None or self.ask):
            raise SettingsError("preset: it brings its own question and schema; leave out others")
        names = [name for name, _ in self.questions()]
        if len(set(names)) < len(names):
            raise SettingsError("ask: two questions have the same name")
        check_positive("max_tokens", self.max_tokens)
        if self.temperature is not None and not self.temperature >= 0:
            raise SettingsError("temperature: must not be negative")
        if not self.prompt.strip():
            raise SettingsError("prompt: must not be empty")

    def questions(self) -> list[tuple[str, str]]:
        """Return names and texts of the questions that take the place of a record's own.

        Raises:
            SettingsError: One has no name or no text.
        """
        found = []
        for given in self.ask:
            name, _, question = given.partition("=")
            if not (name.strip() and question.strip()):
                raise SettingsError(f"ask: {given[:40]!r} is not NAME=QUESTION")
            found.append((name.strip(), question.strip()))
        return found

    def resolved(self) -> Self:
        """Return the same with ``@FILE`` replaced by the file's text, and a preset by its own.

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
        "What INPUT is: jsonl, json, csv, tsv, parquet, arrow, images, webdataset, img2dataset, "
        "imagefolder, llava, coco, hf or ms. Default: what its name says.",
    )
    image_field: str | None = _option(
        None,
        "Member that holds the image or images. Default: image, else images.",
    )
    conversation_field: str | None = _option(
        None,
        "Member that holds the conversation. Default: conversation, else conversations, else "
        "messages.",
    )
    prompt_field: str | None = _option(
        None,
        "Member that holds a plain question, which goes before a conversation. Default: prompt, "
        "where there is no conversation.",
    )
    output_field: str = _option(
        "caption",
        "Member that receives the caption.",
    )
    id_field: str | None = _option(
        None,
        "Member that identifies a record. Default: the whole record does.",
    )
    duplicates: Literal["keep", "skip", "error"] = _option(
        "keep",
        "Equal records: keep captions each and gives each its row, skip captions the first "
        "only, error refuses to start.",
    )
    image_root: Path | None = _option(  # noqa: RUF009 - a name with Path in it, no mutable default
        None,
        "Folder that relative paths start from, and that no image may lie outside of. "
        "Default: the input's folder, then the working directory, without that bound.",
    )
    limit: int | None = _option(
        None,
        "Only the first so many records.",
    )
    max_line: int = _option(
        16 << 20,
        "Longest record in bytes; a longer one is skipped unread and fails.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_positive("limit", self.limit)
        check_positive("max_line", self.max_line)
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
        "Faults of captions that are let pass, flagged in a member caption_flag: truncated, "
        "refused, looping, too_short or too_long. Separate several by commas.",
    )
    min_length: int = _option(
        1,
        "Fewest characters of a caption.",
    )
    max_length: int | None = _option(
        None,
        "Most characters of a caption.",
    )
    with_: tuple[str, ...] = _option(
        (),
        "Members to add to each row beside the caption: usage, finish_reason, model, attempts or "
        "latency (seconds), as caption_usage and so on. Separate several by commas.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "accept", words(self.accept))
        object.__setattr__(self, "with_", tuple(dict.fromkeys(words(self.with_))))
        check_positive("min_length", self.min_length)
        check_positive("max_length", self.max_length)
        for name, given, known in (("accept", self.accept, CODES), ("with", self.with_, EXTRAS)):
            for one in given:
                if one not in known:
                    raise SettingsError(f"{name}: {one!r} is not one of {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Images."""

    max_side: int | None = _option(
        None,
        "Longer side in pixels above which an image is made smaller. Default: 2048, or with "
        "--size-for what the model sees.",
    )
    max_pixels: int | None = _option(
        None,
        "Pixels above which an image is made smaller.",
    )
    min_side: int = _option(
        28,
        "Shorter side in pixels below which an image is made larger, or padded where that would "
        "make it too long.",
    )
    size_for: str | None = _option(
        None,
        "Model whose provider makes large images smaller by a published rule: they are sent as "
        "it would make them, which costs less and loses nothing.",
    )
    max_bytes: int = _option(
        10_000_000,
        "Most characters an image may have in base64; what has more is compressed further.",
    )
    background: str = _option(
        "white",
        "Colour under transparent parts, by name or as #rrggbb; none sends transparency as it is.",
    )
    frames: int = _option(
        1,
        "Frames of an animated image to send, spread evenly over it.",
    )
    verify: Literal["structure", "full", "off"] = _option(
        "structure",
        "Check of images that pass as they are: their structure, full decodes each, off sends "
        "files unread and unchanged, whatever they hold.",
    )
    pass_urls: bool = _option(
        default=False,
        text="Name http(s) images to the endpoint by their URL, in place of fetching them.",
    )
    allow_private_urls: bool = _option(
        default=False,
        text="Fetch images also from private, loopback and link-local addresses.",
    )
    fetch_concurrency: int = _option(
        32,
        "Most images fetched at once.",
    )
    fetch_timeout: float = _option(
        60.0,
        "Seconds to fetch one image, retries included.",
    )
    image_timeout: float = _option(
        30.0,
        "Seconds to decode one image.",
    )
    max_image_bytes: int = _option(
        256 << 20,
        "Largest image file in bytes that is read.",
    )
    max_image_pixels: int = _option(
        178_956_970,
        "Most pixels of an image that is decoded.",
    )
    memory: int = _option(
        256 << 20,
        "Bytes of prepared images held at once, whatever the concurrency.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        for name in (
            "max_side", "max_pixels", "min_side", "max_bytes", "frames", "fetch_concurrency",
            "fetch_timeout", "image_timeout", "max_image_bytes", "max_image_pixels", "memory",
        ):  # fmt: skip
            check_positive(name, getattr(self, name))
        if self.size_for is not None and rule_of(self.size_for) is None:
            raise SettingsError(
                f"size-for: no rule is known for {self.size_for!r}; there are some for {FAMILIES}"
            )
        if self.background not in ("white", "none"):
            check_colour("background", self.background)

    @property
    def longest_side(self) -> int | None:
        """Longer side in pixels above which an image is made smaller; None: the model's rule."""
        return self.max_side or (MAX_SIDE if self.size_for is None else None)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The run."""

    concurrency: int = _option(
        32,
        "Most requests in flight. A run begins with a sixteenth of it, 8 at least, and goes up as "
        "long as the endpoint keeps up.",
    )
    processes: int = _option(
        1,
        "Processes that share the work, for more than one core. Each has its part of the "
        "concurrency, the memory and the endpoint's limits, and knows the equal requests of its "
        "own records only.",
    )
    budget: float | None = _option(
        None,
        "Most US dollars that this run may spend: it ends with exit code 8 before more is spent, "
        "and what is in flight is finished.",
    )
    budget_tokens: int | None = _option(
        None,
        "Most tokens, input and output, that this run may spend; likewise.",
    )
    prices: Path | None = _option(  # noqa: RUF009 - a name with Path in it, no mutable default
        None,
        "TOML file of prices that go before those of the library: a table for each model, with "
        "input and output in US dollars a million tokens.",
    )
    max_attempts: int = _option(
        5,
        "Attempts after which a record whose replies are no captions fails.",
    )
    dedup: bool = _option(
        default=True,
        text="Ask once for equal requests, the same images and the same question, and give each "
        "record the caption.",
    )
    cache: Path | None = _option(  # noqa: RUF009 - a name with Path in it, no mutable default
        None,
        "Folder of captions kept from run to run: what was asked before, with the same settings, "
        "is not asked again.",
    )
    retry_failed: str | None = _option(
        None,
        "Try records again that failed in an earlier run: all of them, or with "
        "--retry-failed=CODE those of one code.",
    )
    retry_rejected: bool = _option(
        default=False,
        text="Caption records again whose captions a reviewer rejected (captioner view). Theirs go "
        "into a file beside the output whose name ends in .rejected-1, and so on.",
    )
    output_format: OutputFormat | None = _option(  # noqa: RUF009 - a Literal by another name
        None,
        "What the finished output is: jsonl, json, csv, tsv, parquet, webdataset, imagefolder, "
        "coco, llava, sqlite, or txt or caption for a file beside each image. Default: what "
        "the output's name says.",
    )
    overwrite: bool = _option(
        default=False,
        text="Replace an output, or txt and caption files, that no run has made.",
    )
    order: Literal["input", "completion"] = _option(
        "input",
        "Order of the finished output; completion leaves it as captions came in.",
    )
    accept_changes: bool = _option(
        default=False,
        text="Go on although model or prompt changed since the output was begun.",
    )
    accept_edits: bool = _option(
        default=False,
        text="Believe an output that was changed by hand, and caption what it lacks.",
    )
    metrics_port: int | None = _option(
        None,
        "Serve the run's numbers to Prometheus on this port of 127.0.0.1; 0 takes a free one.",
    )
    otel: bool = _option(
        default=False,
        text="Export a span for each request with OpenTelemetry, to where its environment "
        "variables say (OTEL_EXPORTER_OTLP_ENDPOINT).",
    )
    view: bool = _option(
        default=False,
        text="Serve a page that shows the captions as they come, to this machine only.",
    )
    log_json: bool = _option(
        default=False,
        text="Write events as lines of JSON to standard error, in place of the display.",
    )
    drain: float = _option(
        30.0,
        "Seconds to let requests in flight finish after an interruption.",
    )
    disk_wait: float = _option(
        600.0,
        "Seconds to wait for space when the disk is full.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_positive("concurrency", self.concurrency)
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65_535:
            raise SettingsError(f"metrics-port: {self.metrics_port} is not between 0 and 65535")
        if self.retry_failed == "":
            raise SettingsError("retry-failed: name a code, or all")
        check_positive("budget", self.budget)
        check_positive("budget_tokens", self.budget_tokens)
        check_positive("processes", self.processes)
        if self.processes > self.concurrency:
            raise SettingsError("processes: each needs a request in flight of --concurrency")
        check_positive("max_attempts", self.max_attempts)
        for name in ("drain", "disk_wait"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{flag_name(name)}: must not be negative")


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """The provider's batch API."""

    batch_api: bool = _option(
        default=False,
        text="Send the records through the OpenAI Batch API, which costs half and may take a day. "
        "Stop and run again as you like: nothing is submitted twice.",
    )
    batch_requests: int = _option(
        50_000,
        "Most requests of one batch.",
    )
    batch_bytes: int = _option(
        190_000_000,
        "Most bytes of one batch's requests.",
    )
    batch_poll: float = _option(
        30.0,
        "Seconds between two looks at the batches.",
    )
    batch_max_wait: float | None = _option(
        None,
        "Hours to wait for batches before the run ends with exit code 8. Default: as long as they "
        "take.",
    )
    to_batch_file: Path | None = _option(  # noqa: RUF009 - a name with Path in it
        None,
        "Write the requests to this file for vLLM's run-batch, and end.",
    )
    from_batch_file: Path | None = _option(  # noqa: RUF009 - a name with Path in it
        None,
        "Take the answers from this file, which run-batch made of one of --to-batch-file.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("batch_requests", "batch_bytes", "batch_poll", "batch_max_wait"):
            check_positive(name, getattr(self, name))
        given = [self.batch_api, self.to_batch_file is not None, self.from_batch_file is not None]
        if sum(given) > 1:
            raise SettingsError("batch-api: give one of it, --to-batch-file and --from-batch-file")

    @property
    def any(self) -> bool:
        """Records go through batches."""
        return self.batch_api or (self.to_batch_file or self.from_batch_file) is not None


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """More than one machine."""

    engine: Literal["local", "ray"] = _option(
        "local",
        "Where records are captioned: local, or ray, which spreads them over a Ray cluster. Input "
        "and output have to be where all its machines see them.",
    )
    ray_address: str | None = _option(
        None,
        "The cluster, as ray.init takes it, for example auto or ray://head:10001. Default: that of "
        "RAY_ADDRESS, else a small one on this machine.",
    )
    shards: int | None = _option(
        None,
        "Pieces to cut the input into, fixed by the first run. Default: four for each worker.",
    )
    workers: int | None = _option(
        None,
        "Workers, each with a core. Default: as many as the cluster has cores.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_positive("shards", self.shards)
        check_positive("workers", self.workers)


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
