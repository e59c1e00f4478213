"""The settings of a run: frozen, comparable values made of options."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

from captioner.core.errors import SettingsError
from captioner.core.keys import RecordKeys, digest
from captioner.core.row import FLAG, field_names
from captioner.core.secrets import sealed
from captioner.settings.flags import all_options, stored_options
from captioner.settings.locations import (
    COMPRESSED,
    check_folder,
    check_stored,
    hub_name,
    is_elsewhere,
    location,
    storage_url,
)
from captioner.settings.options import (
    CONVERSATION_FIELDS,
    GROUPS,
    IMAGE_FIELDS,
    SHAPE,
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
from captioner.settings.presets import PRESETS
from captioner.settings.stages import StageSettings, models_of, stages_of
from captioner.settings.validation import did_you_mean, flag_name, words

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a run.

    Args:
        input: The records: a file, a folder, a pattern of paths, ``-`` for standard input, or
            the address of a hub's data set.
        output: The captions. Default: ``<input stem>.captions.jsonl`` beside the input. The
            ending selects the format. One in an object store is written to the current folder
            under its last name, and uploaded once the run is complete; on Ray it is written there.
        endpoint: The model and its endpoint.
        prompt: The prompts and sampling.
        records: How records are read.
        images: How images are prepared.
        captions: Which captions are valid.
        run: Speed, budget, retries and display.
        batch: The provider's batch API.
        cluster: Several machines.
        endpoints: Several endpoints, each with all its options.
        stages: What is asked of each record; none if just its questions are.
        files: Images and videos that were named one by one, instead of the input.
        upload: The address of the output in an object store; None if it has none.
        answers: Where the answers of finished stages are kept; None keeps none.
        is_resolved: The prompt's files and preset have been read; see `resolved`.
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
    stages: tuple[StageSettings, ...] = ()
    files: tuple[Path, ...] = ()
    upload: str | None = None
    answers: Path | None = field(default=None, compare=False, repr=False)
    is_resolved: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check options that depend on each other."""
        if not self.stages:
            made = stages_of(
                self.prompt, self.records.output_field, doubt="doubt" in self.captions.with_
            )
            object.__setattr__(self, "stages", made)
        run, batch, ray = self.run, self.batch, self.cluster.engine == "ray"
        if self.is_to_stdout and (
            batch.any or ray or run.view or run.again or run.output_format not in (None, "jsonl")
        ):
            raise SettingsError(
                "output: rows to standard output are JSON Lines, and cannot be combined with "
                "--batch-api, --ray, --view, --redo and --retry. Name a file with -o"
            )
        if self.output is not None and (url := storage_url(self.output)) and not ray:
            check_stored(url, run.output_format, name="output")
            object.__setattr__(self, "upload", url)
            object.__setattr__(self, "output", Path(self.output.name))
        if batch.any and (run.processes > 1 or len(self.each_endpoint) > 1):
            raise SettingsError("batch-api: it takes one endpoint and one process")
        if ray and (batch.any or run.processes > 1):
            raise SettingsError("ray: it cannot be combined with --batch-api or --processes")
        if (run.budget is not None or run.budget_tokens is not None) and (batch.any or ray):
            raise SettingsError("budget: it cannot be combined with --batch-api or --ray")
        if ray and (run.replaces_captions or run.view):
            raise SettingsError(
                "ray: it cannot be combined with --redo, --retry rejected or --view"
            )
        if run.replaces_captions and run.cache is not None:
            raise SettingsError(
                "redo: with --cache, captions would come back unchanged; leave --cache out"
            )
        if batch.any and self.endpoint.stream:
            raise SettingsError("batch-api: it cannot be combined with --stream")
        if self.endpoint.serve is not None and (ray or batch.any or self.endpoints):
            raise SettingsError(
                "serve: it cannot be combined with --ray, --batch-api or [[endpoint]] tables"
            )
        if self.stages and (batch.any or ray):
            raise SettingsError(
                "stages: they cannot be combined with --batch-api or --ray, and nor can --pick and "
                "--fallback"
            )
        self._check_field_names()
        self._check_shape()

    def _check_shape(self) -> None:
        shaped = [*self.captions.shape, *(["existing"] if self.joins else [])]
        preset = PRESETS[self.prompt.preset] if self.prompt.preset else None
        if shaped and (self.prompt.schema or (preset and preset.schema)):
            raise SettingsError(
                f"{flag_name(shaped[0])}: it needs captions that are text, and --schema or the "
                "preset makes objects"
            )
        if self.joins and self.run.replaces_captions and self.writes_text_files:
            raise SettingsError(
                f"existing: {self.records.existing} cannot be combined with --redo or --retry "
                "rejected for text files, which hold the new caption already"
            )

    def _check_field_names(self) -> None:
        records = self.records
        images = (records.image_field,) if records.image_field else IMAGE_FIELDS
        asked = (records.conversation_field,) if records.conversation_field else CONVERSATION_FIELDS
        taken = {*images, *asked, "prompt", records.id_field}
        for name in self.fields if self.stages else [n for n, _ in self.prompt.questions()]:
            if name in taken:
                raise SettingsError(
                    f"{'stage' if self.stages else 'ask'}: the record's own field {name!r} cannot "
                    "take a response"
                )
        read = {records.prompt_field, records.image_field, records.conversation_field}
        if written := {*read, records.id_field} & set(self.field_family):
            raise SettingsError(
                f"output-field: captioner writes the field {min(map(str, written))!r} itself; "
                "choose another --output-field"
            )
        if len(set(self.added_fields)) < len(self.added_fields):
            raise SettingsError("ask: a name is also that of a field that --with or --accept adds")

    @classmethod
    def create(
        cls,
        input: str | Path | Sequence[str | Path] | None = None,  # noqa: A002 - what users type
        output: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """Return settings from flat option names, as in ``create("in.jsonl", max_side=1024)``.

        The input may be a list of images and videos.

        Raises:
            SettingsError: An option does not exist or its value is invalid.
        """
        if output is not None:
            given = options.get("output_format")
            check_folder(output, given, name="output", flag="--output-format")
            if hub_name(Path(output)):
                raise SettingsError(
                    f"output: a run writes to this machine. Name a file, and upload it afterwards: "
                    f"captioner export FILE --to {output}"
                )
        if output is not None and not Path(output).name:
            raise SettingsError(f"the output {output} is a folder; name a file with -o")
        tables, stages = options.pop("endpoints", ()), options.pop("stage", ())
        groups: dict[str, dict[str, Any]] = {}
        for name, value in stored_options(options).items():
            groups.setdefault(option_groups()[name], {})[name] = value
        made = {group: GROUPS[group](**given) for group, given in groups.items()}
        endpoint = made.get("endpoint", EndpointSettings())
        if endpoint.serve is not None and endpoint.base_url:
            raise SettingsError("serve: it cannot be combined with --base-url")
        prompt = made.get("prompt", PromptSettings())
        field = made.get("records", RecordSettings()).output_field
        run = made.get("run", RunSettings())
        if run.processes > run.concurrency:  # the share of a process may be smaller
            raise SettingsError("processes: must not be more than --concurrency")
        path, files = None, tuple[Path, ...]()
        if isinstance(input, str | Path):
            path = Path(input)
        elif input is not None:
            files = tuple(map(Path, input))
        return cls(
            path,
            Path(output) if output is not None else None,
            **made,
            endpoints=tuple(_endpoint(table, endpoint) for table in tables),
            stages=stages_of(prompt, field, stages) if stages else (),
            files=files,
        )

    def resolved(self) -> Self:
        """Return the settings with the texts of ``@FILE`` and of the preset in the prompt.

        Raises:
            SettingsError: A file cannot be read.
        """
        if self.is_resolved:
            return self
        return replace(
            self,
            prompt=self.prompt.resolved(),
            captions=self.captions.resolved(),
            stages=tuple(stage.resolved() for stage in self.stages),
            is_resolved=True,
        )

    @property
    def all_endpoints(self) -> list[EndpointSettings]:
        """The endpoints that the run may ask, those of its stages included."""
        asked = [one for stage in self.stages for one in stage.everywhere(self)]
        return [one for settings in asked or [self] for one in settings.each_endpoint]

    @property
    def each_endpoint(self) -> list[EndpointSettings]:
        """The endpoints, each with at most one URL and one key."""
        found: list[EndpointSettings] = []
        for endpoint in self.endpoints or (self.endpoint,):
            urls, keys = endpoint.base_url or ("",), endpoint.api_key_env or ("",)
            pairs = zip(urls, keys, strict=True) if len(urls) == len(keys) else product(urls, keys)
            found += [
                replace(endpoint, base_url=words(url), api_key_env=words(key)) for url, key in pairs
            ]
        return found

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that receive responses, the caption's first."""
        if self.stages:
            own = dict.fromkeys(stage.field for stage in self.stages if stage.field)
            first = self.records.output_field
            return tuple(sorted(own, key=first.__ne__))
        asked = tuple(name for name, _ in self.prompt.questions())
        return asked or (self.records.output_field,)

    @property
    def questions(self) -> tuple[str, ...]:
        """Questions that replace each record's own; empty if it keeps its own."""
        if self.prompt.preset is not None:
            return (PRESETS[self.prompt.preset].prompt,)
        return tuple(question for _, question in self.prompt.questions())

    @property
    def added_fields(self) -> tuple[str, ...]:
        """Names of the fields that these settings may add to a row, the caption's first."""
        flags = [f"{name}_{FLAG}" for name in self.fields] if self.captions.accept else []
        extras = (f"{self.fields[0]}_{extra}" for extra in self.extras)
        return (*self.fields, *flags, *extras)

    @property
    def extras(self) -> tuple[str, ...]:
        """What is added to each row beside the caption; see ``with_``.

        The question is, if it is not the same for all records.
        """
        asked = [stage.options for stage in self.stages if stage.field == self.fields[0]]
        varies = bool(self.prompt.prompt_mix or self.prompt.prompt_file_in_folder)
        varies |= any("prompt" in options for options in asked)
        added = ("prompt",) if varies and "prompt" not in self.captions.with_ else ()
        return (*self.captions.with_, *added)

    @property
    def joins(self) -> bool:
        """Whether new captions are joined to old ones."""
        return self.records.existing in ("append", "prepend")

    @property
    def writes_text_files(self) -> bool:
        """Whether the output is a text file for each image."""
        return self.run.output_format in ("txt", "caption")

    @property
    def existing_files(self) -> str:
        """What to do with text files of the output that are not empty; see ``existing``."""
        replaces = self.run.overwrite or self.run.replaces_captions
        return self.records.existing or ("replace" if replaces else "skip")

    @property
    def field_family(self) -> tuple[str, ...]:
        """Names of the fields that other settings may have added to a row."""
        return field_names(self.fields)

    @property
    def record_keys(self) -> RecordKeys:
        """What computes the keys of records."""
        return RecordKeys(self.fields, self.records.id_field)

    @property
    def is_to_stdout(self) -> bool:
        """Whether rows go to standard output."""
        return self.output == Path("-")

    @property
    def output_path(self) -> Path:
        """The output that the user named, or the default one beside the input."""
        if self.output is not None:
            return self.output
        if self.files:
            raise SettingsError(
                "name the output with -o: several files have no default output; -o - prints rows"
            )
        if self.input is None:
            raise SettingsError("name an output: without an input there is no default")
        named = self.input if self.input.name not in ("", "..") else self.input.resolve()
        if is_elsewhere(self.input) or not named.name:
            raise SettingsError(
                f"name the output with -o: {location(self.input)} has no default output"
            )
        if named.suffix.lower() in COMPRESSED:
            named = named.with_suffix("")
        return named.with_name(f"{named.stem}.captions.jsonl")

    def shaping(self, model: str) -> dict[str, Any]:
        """Return the options that affect captions, by name. They must not change within a job.

        Speed, addresses and keys do not affect captions. What may hold a secret is a digest.
        """
        prompt, records, defaults = self.prompt, self.records, ImageSettings()
        images = [(n, getattr(self.images, n), getattr(defaults, n)) for n in _SHAPING_IMAGES]
        shaping = {
            "model": model,
            **{name: getattr(prompt, name) for name in _SHAPING_PROMPT},
            "missing": None if prompt.missing == "fail" else prompt.missing,
            "thinking": None if prompt.thinking == "auto" else prompt.thinking,
            "ask": list(prompt.ask) or None,
            "prompt_mix": list(prompt.prompt_mix) or None,
            "prompt_file_in_folder": prompt.prompt_file_in_folder,
            "seed": records.seed if prompt.prompt_mix and records.seed else None,
            "samples": prompt.samples if prompt.samples > 1 else None,
            "stages": [stage.shaping() for stage in self.stages] or None,
            "fallback": models_of(prompt.fallback) or None,
            "with": list(self.captions.with_) or None,
            **{name: _as_json(self.captions.shape.get(name)) for name in SHAPE},
            "existing": records.existing if self.joins else None,
            "extra_body": self.endpoint.extra_body,
            "max_side": self.images.longest_side,
            **{name: value if value != default else None for name, value, default in images},
            **{name: getattr(records, name) for name in _SHAPING_RECORDS},
            "output_field": self.fields[0],
            "id_field": records.id_field,
        }
        return sealed(shaping)

    def fingerprint(self, model: str) -> str:
        """Return a digest of the options that affect captions; equal for rows made alike."""
        shaping = {name: value for name, value in self.shaping(model).items() if name != "with"}
        return digest(orjson.dumps(shaping, option=orjson.OPT_SORT_KEYS)).hex()


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# Options that affect captions.
_SHAPING_PROMPT = (
    "system_prompt", "prompt", "max_tokens", "temperature", "detail", "preset", "schema",
)  # fmt: skip
_SHAPING_IMAGES = (
    "max_pixels", "min_side", "size_for", "max_bytes", "background", "frames", "frame_times",
)  # fmt: skip
_SHAPING_RECORDS = (
    "split", "image_field", "input_format", "prompt_field", "conversation_field",
)  # fmt: skip


def _endpoint(table: dict[str, Any], common: EndpointSettings) -> EndpointSettings:
    """Return an endpoint from its table, with the common options for the rest."""
    known = {option.name for option in fields(EndpointSettings)} - _NOT_IN_TABLES
    given: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            hint = did_you_mean(flag_name(name), map(flag_name, known))
            raise SettingsError(f"endpoint: a table has no option {key!r}.{hint}")
        given[name] = all_options()[name].typed(value)
    if not given.get("base_url") and not common.base_url:
        raise SettingsError("endpoint: a table needs a base-url")
    return replace(common, **given)


_NOT_IN_TABLES = frozenset({"offline", "timeout", "max_outage", "serve", "serve_args", "replicas"})
