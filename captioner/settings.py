"""The options, each defined once: flags, environment, TOML, keywords and checks derive from here.

A settings tree is frozen and comparable; it reads no globals. Groups exist for the reader and for
the parts that need only one of them: every option's name is unique, so that whoever types one
never types a group.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from captioner.answers import EXTRAS, FLAG, member_names
from captioner.checks import CODES
from captioner.errors import SettingsError
from captioner.presets import PRESETS, PresetName


def _option(default: Any, text: str) -> Any:
    """Define an option with what `--help`, the README and a written-out TOML file say of it."""
    return field(default=default, metadata={"help": text})


DEFAULT_SYSTEM_PROMPT = (
    "You are an image caption generator. Your task is to write a concise and informative caption "
    "of the given image content."
)
DEFAULT_PROMPT = "Describe the content of this image in detail."


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
        object.__setattr__(self, "base_url", _each(self.base_url))
        object.__setattr__(self, "api_key_env", _each(self.api_key_env))
        _positive("weight", self.weight)
        for line in self.header:
            name, colon, value = line.partition(":")
            if not (colon and re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name.strip()) and value.strip()):
                raise SettingsError(f"header: {name.strip()[:40]!r} is not 'Name: value'")
            if not (value.isascii() and value.strip().isprintable()):
                raise SettingsError(f"header: the value of {name.strip()} cannot be sent")
        self.extra_members()
        if len(self.api_key_env) > 1 and len(self.base_url) not in (1, len(self.api_key_env)):
            raise SettingsError("api-key-env: give one key, or one for each base URL")
        _positive("rpm", self.rpm)
        _positive("tpm", self.tpm)
        _positive("timeout", self.timeout)
        _positive("max_outage", self.max_outage)
        for url in self.base_url:
            _check_url("base_url", url)

    def extra_members(self) -> dict[str, Any]:
        """Return the members of ``extra_body``.

        Raises:
            SettingsError: It is no JSON object, or holds what other options say.
        """
        if self.extra_body is None:
            return {}
        try:
            members = json.loads(_text("extra_body", self.extra_body))
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
        "Question for records that bring none, or @FILE to read it from a file.",
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
        "How closely the model looks at pictures, where the endpoint has that choice.",
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
        _positive("samples", self.samples)
        if self.detail not in (None, "auto", "low", "high"):
            raise SettingsError(f"detail: {self.detail!r} is not auto, low or high")
        if self.preset is not None and self.preset not in PRESETS:
            raise SettingsError(f"preset: {self.preset!r} is not one of {', '.join(PRESETS)}")
        if self.preset is not None and (self.schema is not None or self.ask):
            raise SettingsError("preset: it brings its own question and schema; leave out others")
        names = [name for name, _ in self.questions()]
        if len(set(names)) < len(names):
            raise SettingsError("ask: two questions have the same name")
        _positive("max_tokens", self.max_tokens)
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
            system_prompt=_text("system_prompt", system_prompt),
            prompt=_text("prompt", prompt),
            ask=tuple(f"{name}={_text('ask', text)}" for name, text in self.questions()),
            schema=_text("schema", f"@{schema}") if schema and schema[0] != "{" else schema,
        )


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """Records."""

    image_field: str | None = _option(
        None,
        "Member that holds the picture or pictures. Default: image, else images.",
    )
    conversation_field: str | None = _option(
        None,
        "Member that holds the conversation. Default: conversation, else conversations, else "
        "messages.",
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
        "Folder that relative paths start from, and that no picture may lie outside of. "
        "Default: the input's folder, then the working directory, without that bound.",
    )
    limit: int | None = _option(
        None,
        "Only the first so many records.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        _positive("limit", self.limit)
        if not self.output_field:
            raise SettingsError("output-field: must not be empty")
        if self.duplicates not in ("keep", "skip", "error"):
            raise SettingsError(f"duplicates: {self.duplicates!r} is not keep, skip or error")
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
        object.__setattr__(self, "accept", _each(self.accept))
        object.__setattr__(self, "with_", tuple(dict.fromkeys(_each(self.with_))))
        _positive("min_length", self.min_length)
        _positive("max_length", self.max_length)
        for name, given, known in (("accept", self.accept, CODES), ("with", self.with_, EXTRAS)):
            for one in given:
                if one not in known:
                    raise SettingsError(f"{name}: {one!r} is not one of {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Pictures."""

    max_side: int = _option(
        2048,
        "Longer side in pixels above which a picture is made smaller.",
    )
    max_image_bytes: int = _option(
        256 << 20,
        "Largest picture file in bytes that is read.",
    )
    memory: int = _option(
        256 << 20,
        "Bytes of prepared pictures held at once, whatever the concurrency.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        _positive("max_side", self.max_side)
        _positive("max_image_bytes", self.max_image_bytes)
        _positive("memory", self.memory)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The run."""

    concurrency: int = _option(
        32,
        "Most requests in flight. A run begins with 8 and goes up as long as the endpoint "
        "keeps up.",
    )
    max_attempts: int = _option(
        5,
        "Attempts after which a record whose replies are no captions fails.",
    )
    retry_failed: str | None = _option(
        None,
        "Try records again that failed in an earlier run: all of them, or with "
        "--retry-failed=CODE those of one code.",
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
        _positive("concurrency", self.concurrency)
        _positive("max_attempts", self.max_attempts)
        for name in ("drain", "disk_wait"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{flag_name(name)}: must not be negative")
        if self.order not in ("input", "completion"):
            raise SettingsError(f"order: {self.order!r} is neither input nor completion")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a run needs to know.

    Args:
        input: The records: JSONL, or a JSON array in a ``.json`` file.
        output: The captions. Default: ``<input stem>.captions.jsonl`` beside the input. With
            ``.json`` it becomes a JSON array when all is done.
        endpoint: Which model, where.
        prompt: What is asked.
        records: How records are read.
        captions: What captions have to be like.
        images: What is done to pictures.
        run: How the run goes.
        endpoints: Several endpoints, each with what it has of its own; what it leaves out is
            that of ``endpoint``.
    """

    input: Path | None = None
    output: Path | None = None
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    records: RecordSettings = field(default_factory=RecordSettings)
    images: ImageSettings = field(default_factory=ImageSettings)
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    run: RunSettings = field(default_factory=RunSettings)
    endpoints: tuple[EndpointSettings, ...] = ()

    def __post_init__(self) -> None:
        """Check the names of asked questions against those of the record."""
        records = self.records
        images = (records.image_field,) if records.image_field else IMAGE_FIELDS
        asked = (records.conversation_field,) if records.conversation_field else CONVERSATION_FIELDS
        taken = {*images, *asked, "prompt", records.id_field}
        for name, _ in self.prompt.questions():
            if name in taken:
                raise SettingsError(f"ask: {name!r} is a member that the record needs itself")
        if len(set(self.added_members)) < len(self.added_members):
            raise SettingsError("ask: a name is that of a member that --with or --accept adds")

    @classmethod
    def create(
        cls,
        input: str | Path | None = None,  # noqa: A002 - the name users type
        output: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """Return settings from flat option names, as in ``create("in.jsonl", max_side=1024)``.

        Raises:
            SettingsError: An option does not exist or its value cannot work.
        """
        groups: dict[str, dict[str, Any]] = {}
        homes = option_groups()
        tables = options.pop("endpoints", ())
        for name, value in options.items():
            if name not in homes:
                near = get_close_matches(name, homes, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise SettingsError(f"there is no option {name!r}{hint}")
            groups.setdefault(homes[name], {})[name] = _value(name, value, GROUPS[homes[name]])
        made = {group: GROUPS[group](**given) for group, given in groups.items()}
        endpoint = made.get("endpoint", EndpointSettings())
        return cls(
            Path(input) if input is not None else None,
            Path(output) if output is not None else None,
            **made,
            endpoints=tuple(_endpoint(table, endpoint) for table in tables),
        )

    @property
    def each_endpoint(self) -> list[EndpointSettings]:
        """The endpoints, each with at most one URL and one key."""
        found: list[EndpointSettings] = []
        for endpoint in self.endpoints or (self.endpoint,):
            urls, keys = endpoint.base_url or ("",), endpoint.api_key_env or ("",)
            pairs = (
                zip(urls, keys, strict=True)
                if len(urls) == len(keys)
                else ((url, key) for url in urls for key in keys)
            )
            found += [
                replace(endpoint, base_url=_each(url), api_key_env=_each(key)) for url, key in pairs
            ]
        return found

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the members that take answers, one for each question."""
        asked = tuple(name for name, _ in self.prompt.questions())
        return asked or (self.records.output_field,)

    @property
    def questions(self) -> tuple[str, ...]:
        """Questions that take the place of each record's own; none where it keeps it."""
        if self.prompt.preset is not None:
            return (self.prompt.resolved().prompt,)
        return tuple(question for _, question in self.prompt.questions())

    @property
    def added_members(self) -> tuple[str, ...]:
        """Names of the members that a row may get by these settings, the caption's first."""
        flags = [f"{name}_{FLAG}" for name in self.fields] if self.captions.accept else []
        extras = (f"{self.fields[0]}_{extra}" for extra in self.captions.with_)
        return (*self.fields, *flags, *extras)

    @property
    def member_family(self) -> tuple[str, ...]:
        """Names of the members that a row may have got by other settings."""
        return member_names(self.fields)

    @property
    def output_path(self) -> Path:
        """The output the user asked for, or its default beside the input."""
        if self.output is not None:
            return self.output
        if self.input is None:
            raise SettingsError("an output is needed: there is no input to name it after")
        return self.input.with_name(f"{self.input.stem}.captions.jsonl")

    def shaping(self, model: str) -> dict[str, Any]:
        """Return what shapes a caption, by option name; a change of it is a different job.

        Speed, addresses and keys are no part of it: a job may go on elsewhere and faster.
        """
        return {
            "model": model,
            "system_prompt": self.prompt.system_prompt,
            "prompt": self.prompt.prompt,
            "max_tokens": self.prompt.max_tokens,
            "temperature": self.prompt.temperature,
            "detail": self.prompt.detail,
            "preset": self.prompt.preset,
            "schema": self.prompt.schema,
            "ask": list(self.prompt.ask) or None,
            "samples": self.prompt.samples if self.prompt.samples > 1 else None,
            "with": list(self.captions.with_) or None,
            "extra_body": self.endpoint.extra_body,
            "max_side": self.images.max_side,
            "image_field": self.records.image_field,
            "conversation_field": self.records.conversation_field,
            "output_field": self.fields[0],
            "id_field": self.records.id_field,
        }


GROUPS: dict[str, Any] = {
    "endpoint": EndpointSettings,
    "prompt": PromptSettings,
    "records": RecordSettings,
    "captions": CaptionSettings,
    "images": ImageSettings,
    "run": RunSettings,
}


def option_groups() -> dict[str, str]:
    """Return the name of every option with the name of its group."""
    return {option.name: group for group, kind in GROUPS.items() for option in fields(kind)}


def flag_name(name: str) -> str:
    """Return an option's name as it is typed; ``with_`` is ``with``, a word that Python keeps."""
    return name.rstrip("_").replace("_", "-")


def _each(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the words of an option that may be given several times, or once with several."""
    several = (value,) if isinstance(value, str) else value or ()
    return tuple(word for one in several for word in re.split(r"[\s,]+", one) if word)


def _value(name: str, value: Any, group: Any) -> Any:
    """Return an option's value in its own type, where a near one was given."""
    hint = get_type_hints(group)[name]
    if name == "image_root" and isinstance(value, str):
        value = Path(value)
    if name == "extra_body" and isinstance(value, dict):
        value = json.dumps(value)
    if get_origin(hint) is tuple:
        several = (value,) if isinstance(value, str) else value
        if several is None:
            return ()
        if not isinstance(several, list | tuple) or not all(isinstance(v, str) for v in several):
            raise SettingsError(
                f"{flag_name(name)}: must be text or a list of texts, not {value!r}"
            )
        return tuple(several)
    _check_type(name, value, hint)
    return value


def _endpoint(table: dict[str, Any], usual: EndpointSettings) -> EndpointSettings:
    """Return one endpoint from its table, the rest as usual."""
    known = {option.name for option in fields(EndpointSettings)} - _NOT_IN_TABLES
    given: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {flag_name(near[0])!r}?" if near else ""
            raise SettingsError(f"endpoint: a table has no option {key!r}{hint}")
        given[name] = _value(name, value, EndpointSettings)
    if not given.get("base_url") and not usual.base_url:
        raise SettingsError("endpoint: a table needs a base-url")
    return replace(usual, **given)


_NOT_IN_TABLES = frozenset({"offline", "timeout", "max_outage"})
_NOT_EXTRA = {
    "model": "--model",
    "messages": "--prompt",
    "max_tokens": "--max-tokens",
    "temperature": "--temperature",
    "stream": "--stream",
    "n": "--samples",
    "response_format": "--schema",
}


def _positive(name: str, value: float | None) -> None:
    if value is not None and not value > 0:  # NaN, too
        raise SettingsError(f"{flag_name(name)}: must be more than 0")


def _check_url(name: str, url: str) -> None:
    shown = without_secrets(url)
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"{flag_name(name)}: {shown!r} does not begin with http:// or https://")
    try:
        parts = urlsplit(url)
        fine = bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise SettingsError(f"{flag_name(name)}: {shown!r} has no host, or a port that cannot be")


def without_secrets(url: str) -> str:
    """Return a URL without what may be secret in it: user, password, query and fragment."""
    return re.sub(r"//[^/]*@|[?#].*", lambda found: "//" if found[0][0] == "/" else "", url)


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Refuse a value of a wrong type; what an option may be, its annotation says."""
    allowed = get_args(hint) or (hint,)
    if get_origin(hint) is Literal or any(get_origin(kind) is Literal for kind in allowed):
        return  # choices, checked where they are used
    kinds = [kind for kind in allowed if isinstance(kind, type)]
    fits = isinstance(value, (*kinds, int) if float in kinds else tuple(kinds))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_KINDS[kind] for kind in kinds if kind in _KINDS)
        raise SettingsError(f"{flag_name(name)}: must be {wanted}, not {value!r}")


_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
}


def _text(name: str, value: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"{flag_name(name)}: cannot read {value[1:]}: {reason}") from None
