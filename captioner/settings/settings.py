"""The settings of a run: a frozen, comparable tree made of options. It reads no globals."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from captioner.core.errors import SettingsError
from captioner.core.row import FLAG, field_names
from captioner.settings.locations import COMPRESSED, is_elsewhere
from captioner.settings.options import (
    CONVERSATION_FIELDS,
    GROUPS,
    IMAGE_FIELDS,
    BatchSettings,
    CaptionSettings,
    ClusterSettings,
    EndpointSettings,
    ImageSettings,
    PromptSettings,
    RecordSettings,
    RunSettings,
    option_groups,
)
from captioner.settings.validation import did_you_mean, flag_name, hints_of, typed, words


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a run needs to know.

    Args:
        input: The records: a file, a folder, a pattern of paths, ``-`` for standard input, or
            the address of a hub's data set.
        output: The captions. Default: ``<input stem>.captions.jsonl`` beside the input. With
            ``.json`` it becomes a JSON array when all is done.
        endpoint: Which model, where.
        prompt: What is asked.
        records: How records are read.
        captions: What captions have to be like.
        images: What is done to images.
        run: How the run goes.
        cluster: Whether it goes on upon several machines.
        batch: Whether it goes through the provider's batch API.
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
    batch: BatchSettings = field(default_factory=BatchSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    endpoints: tuple[EndpointSettings, ...] = ()

    def __post_init__(self) -> None:
        """Check what only several options together can tell."""
        if self.output == Path("-"):
            raise SettingsError("output: captions go to a file, which a run continues; name one")
        if self.batch.any and (self.run.processes > 1 or len(self.each_endpoint) > 1):
            raise SettingsError("batch-api: it takes one endpoint and one process")
        if self.cluster.engine == "ray" and (self.batch.any or self.run.processes > 1):
            raise SettingsError("engine: ray goes without --batch-api and --processes")
        capped = self.run.budget is not None or self.run.budget_tokens is not None
        if capped and (self.batch.any or self.cluster.engine == "ray"):
            raise SettingsError("budget: it goes without --batch-api and --engine ray")
        if self.cluster.engine == "ray" and (self.run.retry_rejected or self.run.view):
            raise SettingsError("engine: ray goes without --retry-rejected and --view")
        if self.run.retry_rejected and self.run.cache is not None:
            raise SettingsError("retry-rejected: --cache would give the same captions again")
        if self.batch.any and self.endpoint.stream:
            raise SettingsError("batch-api: leave out --stream")
        records = self.records
        images = (records.image_field,) if records.image_field else IMAGE_FIELDS
        asked = (records.conversation_field,) if records.conversation_field else CONVERSATION_FIELDS
        taken = {*images, *asked, "prompt", records.id_field}
        for name, _ in self.prompt.questions():
            if name in taken:
                raise SettingsError(f"ask: {name!r} is a member that the record needs itself")
        if len(set(self.added_fields)) < len(self.added_fields):
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
                raise SettingsError(f"there is no option {name!r}.{did_you_mean(name, homes)}")
            groups.setdefault(homes[name], {})[name] = typed(
                name, value, hints_of(GROUPS[homes[name]])[name]
            )
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
                replace(endpoint, base_url=words(url), api_key_env=words(key)) for url, key in pairs
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
    def added_fields(self) -> tuple[str, ...]:
        """Names of the members that a row may get by these settings, the caption's first."""
        flags = [f"{name}_{FLAG}" for name in self.fields] if self.captions.accept else []
        extras = (f"{self.fields[0]}_{extra}" for extra in self.captions.with_)
        return (*self.fields, *flags, *extras)

    @property
    def field_family(self) -> tuple[str, ...]:
        """Names of the members that a row may have got by other settings."""
        return field_names(self.fields)

    @property
    def output_path(self) -> Path:
        """The output the user asked for, or its default beside the input."""
        if self.output is not None:
            return self.output
        if self.input is None:
            raise SettingsError("an output is needed: there is no input to name it after")
        if is_elsewhere(self.input):
            raise SettingsError(f"name the output with -o: {self.input} has no place of its own")
        named = self.input if self.input.name not in ("", "..") else self.input.resolve()
        if not named.name:
            raise SettingsError(f"name the output with -o: {self.input} has no name of its own")
        if named.suffix.lower() in COMPRESSED:
            named = named.with_suffix("")
        return named.with_name(f"{named.stem}.captions.jsonl")

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
            "max_side": self.images.longest_side,
            **_unusual(self.images, _SHAPING),
            "image_field": self.records.image_field,
            "input_format": self.records.input_format,
            "prompt_field": self.records.prompt_field,
            "conversation_field": self.records.conversation_field,
            "output_field": self.fields[0],
            "id_field": self.records.id_field,
        }


_SHAPING = (
    "max_pixels", "min_side", "size_for", "max_bytes", "background", "frames",
)  # fmt: skip
"""Options of images that change what a model sees; others change how it gets there."""


def _unusual(group: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return options by name, None for each that has its default."""
    usual = {option.name: option.default for option in fields(group)}
    given = {name: getattr(group, name) for name in names}
    return {name: None if value == usual[name] else value for name, value in given.items()}


def _endpoint(table: dict[str, Any], usual: EndpointSettings) -> EndpointSettings:
    """Return one endpoint from its table, the rest as usual."""
    known = {option.name for option in fields(EndpointSettings)} - _NOT_IN_TABLES
    given: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            hint = did_you_mean(flag_name(name), map(flag_name, known))
            raise SettingsError(f"endpoint: a table has no option {key!r}.{hint}")
        given[name] = typed(name, value, hints_of(EndpointSettings)[name])
    if not given.get("base_url") and not usual.base_url:
        raise SettingsError("endpoint: a table needs a base-url")
    return replace(usual, **given)


_NOT_IN_TABLES = frozenset({"offline", "timeout", "max_outage"})
