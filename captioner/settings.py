"""The options, each defined once: flags, environment, TOML, keywords and checks derive from here.

A settings tree is frozen and comparable; it reads no globals. Groups exist for the reader and for
the parts that need only one of them: every option's name is unique, so that whoever types one
never types a group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_type_hints
from urllib.parse import urlsplit

from captioner.errors import SettingsError


def _option(default: Any, text: str) -> Any:
    """Define an option with what `--help`, the README and a written-out TOML file say of it."""
    return field(default=default, metadata={"help": text})


DEFAULT_SYSTEM_PROMPT = (
    "You are an image caption generator. Your task is to write a concise and informative caption "
    "of the given image content."
)
DEFAULT_PROMPT = "Describe the content of this image in detail."


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Endpoint."""

    base_url: str | None = _option(
        None,
        "Base URL of an OpenAI-compatible endpoint, for example http://localhost:8000/v1. "
        "Also read from OPENAI_BASE_URL.",
    )
    model: str | None = _option(
        None,
        "Model to ask for. Default: the one the endpoint serves, if it serves just one.",
    )
    api_key_env: str | None = _option(
        None,
        "Name of the environment variable that holds the key. Default: the first of "
        "CAPTIONER_API_KEY, OPENAI_API_KEY, DF_API_KEY that is set; local servers need none.",
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

    def __post_init__(self) -> None:
        """Check the values."""
        _positive("rpm", self.rpm)
        _positive("tpm", self.tpm)
        _positive("timeout", self.timeout)
        _positive("max_outage", self.max_outage)
        if self.base_url is not None:
            _check_url("base_url", self.base_url)


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

    def __post_init__(self) -> None:
        """Check the values."""
        _positive("max_tokens", self.max_tokens)
        if self.temperature is not None and not self.temperature >= 0:
            raise SettingsError("temperature: must not be negative")
        if not self.prompt.strip():
            raise SettingsError("prompt: must not be empty")

    def resolved(self) -> Self:
        """Return the same with ``@FILE`` replaced by the file's text.

        Raises:
            SettingsError: A file cannot be read.
        """
        return replace(
            self,
            system_prompt=_text("system_prompt", self.system_prompt),
            prompt=_text("prompt", self.prompt),
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
                raise SettingsError(f"{_flag(name)}: must not be negative")
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
        images: What is done to pictures.
        run: How the run goes.
    """

    input: Path | None = None
    output: Path | None = None
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    records: RecordSettings = field(default_factory=RecordSettings)
    images: ImageSettings = field(default_factory=ImageSettings)
    run: RunSettings = field(default_factory=RunSettings)

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
        for name, value in options.items():
            if name not in homes:
                near = get_close_matches(name, homes, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise SettingsError(f"there is no option {name!r}{hint}")
            given = Path(value) if name == "image_root" and isinstance(value, str) else value
            _check_type(name, given, get_type_hints(GROUPS[homes[name]])[name])
            groups.setdefault(homes[name], {})[name] = given
        made = {group: GROUPS[group](**given) for group, given in groups.items()}
        return cls(
            Path(input) if input is not None else None,
            Path(output) if output is not None else None,
            **made,
        )

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
            "max_side": self.images.max_side,
            "image_field": self.records.image_field,
            "conversation_field": self.records.conversation_field,
            "output_field": self.records.output_field,
            "id_field": self.records.id_field,
        }


GROUPS: dict[str, Any] = {
    "endpoint": EndpointSettings,
    "prompt": PromptSettings,
    "records": RecordSettings,
    "images": ImageSettings,
    "run": RunSettings,
}


def option_groups() -> dict[str, str]:
    """Return the name of every option with the name of its group."""
    return {option.name: group for group, kind in GROUPS.items() for option in fields(kind)}


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _positive(name: str, value: float | None) -> None:
    if value is not None and not value > 0:  # NaN, too
        raise SettingsError(f"{_flag(name)}: must be more than 0")


def _check_url(name: str, url: str) -> None:
    shown = without_secrets(url)
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"{_flag(name)}: {shown!r} does not begin with http:// or https://")
    try:
        parts = urlsplit(url)
        fine = bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise SettingsError(f"{_flag(name)}: {shown!r} has no host, or a port that cannot be")


def without_secrets(url: str) -> str:
    """Return a URL without what may be secret in it: user, password, query and fragment."""
    return re.sub(r"//[^/]*@|[?#].*", lambda found: "//" if found[0][0] == "/" else "", url)


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Refuse a value of a wrong type; what an option may be, its annotation says."""
    kinds = [kind for kind in (get_args(hint) or (hint,)) if isinstance(kind, type)]
    if not kinds:  # choices, checked where they are used
        return
    fits = isinstance(value, (*kinds, int) if float in kinds else tuple(kinds))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_KINDS[kind] for kind in kinds if kind in _KINDS)
        raise SettingsError(f"{_flag(name)}: must be {wanted}, not {value!r}")


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
        raise SettingsError(f"{_flag(name)}: cannot read {value[1:]}: {reason}") from None
