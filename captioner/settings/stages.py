"""Stages: several requests for a record, of which later ones see the answers of earlier ones."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_type_hints

from captioner.core.errors import SettingsError
from captioner.core.secrets import sealed
from captioner.settings.flags import all_options
from captioner.settings.options import CaptionSettings, EndpointSettings, PromptSettings
from captioner.settings.validation import did_you_mean, flag_name, text_of, typed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from captioner.settings.settings import Settings

SETS = "captioner.settings.stage_sets"
"""Where the stages that captioner brings are, a TOML file for each set."""

_ENDPOINT = (
    "base_url", "model", "api_key_env", "header", "extra_body", "timeout", "max_outage", "rpm",
    "tpm", "stream",
)  # fmt: skip
_PROMPT = (
    "system_prompt", "prompt", "max_tokens", "temperature", "detail", "thinking", "schema",
    "samples", "pick", "fallback",
)  # fmt: skip
_OUTSIDE = frozenset(_ENDPOINT) - {"model", "extra_body"}
_CAPTIONS = ("accept", "min_length", "max_length")
_TEXTS = ("system_prompt", "prompt")
_INHERITED = ("max_tokens", "temperature", "detail", "thinking", "missing")
"""Options of prompts that a stage takes from the run if it does not give them."""

_CANDIDATES = (
    "These captions were written for the same image:\n"
    "{% for caption in SAMPLES %}{{ loop.index }}. {{ caption }}\n{% endfor %}"
    "Look at the image. "
)
PICKS = {
    "merge": _CANDIDATES + "Write one caption that says all that is true in them, and nothing that "
    "the image does not show. Answer with the caption alone.",
    "judge": _CANDIDATES + "Which caption is the most accurate and the most complete? Answer with "
    "its number alone.",
}
"""What is asked to make one caption of several samples."""


SAMPLES = 3
"""Samples of which one caption is made, if no number is given."""


@dataclass(frozen=True, slots=True)
class StageSettings:
    """One stage.

    Args:
        name: By this name later stages and failures speak of it.
        given: Options of the run for which it has its own value.
        image: The images of the record are sent with its question.
        when: Expression that says whether it runs. Default: it always does.
        each: Expression for a list. The stage asks once for each ``item``, and its answer is a list
            of objects with ``item`` and ``answer``.
        crop: Expression for a box; only the part of the image in it is sent.
        answer: ``yes-no`` makes its answer a number from 0 (no) to 1 (yes).
        choose: Name of a stage with several samples. The answer is the number of one of them.
        field: Field of the row for its answer. Default: none; for the last stage the caption's, if
            no other stage has it.
        on_failure: ``fail``: the record fails as well. ``go-on``: its answer is empty, and
            ``codes['name']`` is the code. ``skip-item``: with ``each``, the answer for that item is
            None; the record fails if all items do.
        order: ``doubt``: within a ``--budget``, it asks the records whose last answer is most
            doubtful first, and does not run for the others when the budget is used.
        question: Which of the record's own questions it asks if it has no ``prompt``.
    """

    name: str
    given: tuple[tuple[str, Any], ...] = ()
    image: bool = True
    when: str | None = None
    each: str | None = None
    crop: str | None = None
    answer: Literal["text", "yes-no"] = "text"
    choose: str | None = None
    field: str | None = None
    on_failure: Literal["fail", "go-on", "skip-item"] = "fail"
    order: Literal["input", "doubt"] = "input"
    question: int = 0

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """Return a stage from its table in a TOML file.

        Raises:
            SettingsError: It has no name, an unknown key or a wrong value.
        """
        name = _name_of(table)
        hints, options = get_type_hints(cls), all_options()
        known = {one.name for one in fields(cls)} - {"name", "given", "question"}
        taken = (*_ENDPOINT, *_PROMPT, *_CAPTIONS)
        own: dict[str, Any] = {}
        given: dict[str, Any] = {}
        for key, value in table.items():
            option = key.replace("-", "_")
            if option not in (*known, *taken, "name"):
                hint = did_you_mean(flag_name(option), map(flag_name, (*known, *taken)))
                raise SettingsError(f"stage {name}: there is no option {key!r}.{hint}")
            try:
                if option in known:
                    own[option] = typed(option, value, hints[option])
                elif option in taken:
                    given[option] = options[option].typed(value)
            except SettingsError as error:
                raise SettingsError(f"stage {name}: {error}") from None
        return cls(name, tuple(given.items()), **own)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the run for which it has its own value."""
        return dict(self.given)

    def changed(self, **options: Any) -> Self:
        """Return the stage with other values for options of the run."""
        return replace(self, given=tuple({**self.options, **options}.items()))

    def applied(self, settings: Settings) -> Settings:
        """Return the settings of a run that would ask just this question.

        Raises:
            SettingsError: An option of the stage is wrong; the message names the stage.
        """
        own = self.options
        prompt = settings.prompt
        if "prompt" in own:
            inherited = {name: getattr(prompt, name) for name in _INHERITED}
            prompt = PromptSettings(system_prompt="", **inherited)
        asked = {name: value for name, value in own.items() if name in _PROMPT}
        asked |= {"samples": own.get("samples", 1), "pick": None, "stages": None, "fallback": ()}
        captions, records = settings.captions, settings.records
        if not self._is_caption(settings):
            captions, records = CaptionSettings(), replace(records, existing=None)
        checks = {name: value for name, value in own.items() if name in _CAPTIONS}
        endpoint = {name: value for name, value in own.items() if name in _ENDPOINT}
        try:
            return replace(
                self.reaching(settings, endpoint),
                prompt=replace(prompt, **asked),
                records=records,
                captions=replace(captions, **checks),
                stages=(),
            )
        except SettingsError as error:
            raise SettingsError(f"stage {self.name}: {error}") from None

    def _is_caption(self, settings: Settings) -> bool:
        """Return whether its answers must be what the run asks of captions."""
        if self.choose is not None or self.answer != "text":
            return False
        captions = {settings.records.output_field, *dict(settings.prompt.questions())}
        return "prompt" not in self.options or self.field in captions

    def reaching(self, settings: Settings, own: Mapping[str, Any]) -> Settings:
        """Return settings with its own endpoint options.

        Its own address gets none of the run's keys and headers.
        """
        if "base_url" in own:
            run = settings.endpoint
            bare = EndpointSettings(
                timeout=run.timeout, max_outage=run.max_outage, courtesy=run.courtesy
            )
            return replace(settings, endpoint=replace(bare, **own), endpoints=())
        return replace(
            settings,
            endpoint=replace(settings.endpoint, **own),
            endpoints=tuple(replace(one, **own) for one in settings.endpoints),
        )

    def everywhere(self, settings: Settings) -> list[Settings]:
        """Return its settings, and those for each endpoint to which it falls back, in order.

        Raises:
            SettingsError: One of these is neither a model nor options of an endpoint.
        """
        own = self.applied(settings)
        models = self.options.get("fallback", settings.prompt.fallback)
        return [own, *(self.reaching(own, _endpoint_options(given)) for given in models)]

    def resolved(self) -> Self:
        """Return the stage with the texts of ``@FILE`` in place.

        Raises:
            SettingsError: A file cannot be read.
        """
        own = self.options
        for name in _TEXTS:
            if name in own:
                own[name] = text_of(f"stage {self.name}: {name}", own[name])
        schema = own.get("schema")
        if schema and not schema.startswith("{"):
            own["schema"] = text_of(f"stage {self.name}: schema", f"@{schema}")
        return self.changed(**own)

    def shaping(self) -> dict[str, Any]:
        """Return what of it affects captions; addresses and keys do not. Secrets are digests."""
        own = {name: value for name, value in self.given if name not in _OUTSIDE}
        own["fallback"] = models_of(own.get("fallback", ()))
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        del values["order"]
        return {**values, "given": sealed(own)}


def _name_of(table: Any) -> str:
    """Return the name in a stage's table.

    Raises:
        SettingsError: It is no table, or has no name.
    """
    name = table.get("name") if isinstance(table, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        raise SettingsError(
            f"stage: a stage is a table with a name of small letters, digits and _, not {name!r}"
        )
    return name


def models_of(fallback: Sequence[str]) -> list[str | None]:
    """Return the models that are fallen back to; None is that of the run."""
    return [_endpoint_options(given).get("model") for given in fallback]


def _endpoint_options(given: str) -> dict[str, Any]:
    if not given.startswith("{"):
        return {"model": given}
    try:
        table = json.loads(given)
    except ValueError as error:
        raise SettingsError(f"fallback: not valid JSON: {error}") from None
    found = {}
    for key, value in table.items() if isinstance(table, dict) else ():
        name = key.replace("-", "_")
        if name not in _ENDPOINT:
            hint = did_you_mean(flag_name(name), map(flag_name, _ENDPOINT))
            raise SettingsError(f"fallback: an endpoint has no option {key!r}.{hint}")
        found[name] = all_options()[name].typed(value)
    return found


def known_sets() -> list[str]:
    """Return the names of the sets of stages that captioner brings."""
    names = (Path(one.name) for one in resources.files(SETS).iterdir())
    return sorted(name.stem for name in names if name.suffix == ".toml")


def tables_of(named: str) -> list[dict[str, Any]]:
    """Return the stage tables of a set, or of a TOML file.

    Raises:
        SettingsError: There is no such set or file, or it holds something else.
    """
    try:
        if named in known_sets():
            text = resources.files(SETS).joinpath(f"{named}.toml").read_text("utf-8")
        elif named.endswith(".toml"):
            text = Path(named).read_text("utf-8-sig")
        else:
            raise SettingsError(
                f"stages: {named!r} is neither a TOML file nor one of {', '.join(known_sets())}"
            )
        data = tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"stages: cannot read {named}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"stages: {named} is not valid TOML: {error}") from None
    tables = data.pop("stage", None)
    if data or not tables or not isinstance(tables, list):
        raise SettingsError(f"stages: {named} must hold tables [[stage]] and nothing else")
    return tables


def stages_of(
    prompt: PromptSettings,
    output_field: str,
    tables: Sequence[Mapping[str, Any]] = (),
    *,
    doubt: bool = False,
) -> tuple[StageSettings, ...]:
    """Return the stages of a run, none if it asks each record its questions and no more.

    A table changes the stage of its name in the set of ``--stages``; others come after it.
    ``--pick``, ``--fallback`` and ``--with doubt`` make a stage of each question.

    Raises:
        SettingsError: A stage is wrong, or stages contradict each other or the prompt.
    """
    if not (prompt.stages or tables):
        if not (prompt.pick or prompt.fallback or doubt):
            return ()
        names = [name for name, _ in prompt.questions()] or [output_field]
        given = (("samples", prompt.samples), ("pick", prompt.pick), ("schema", prompt.schema))
        asked = [
            StageSettings(_word(name, at), given, field=name, question=at)
            for at, name in enumerate(names)
        ]
        return tuple(part for stage in asked for part in _with_pick(stage))
    if prompt.samples > 1 or prompt.pick or prompt.ask or prompt.preset or prompt.prompt_mix:
        raise SettingsError(
            "stages: they cannot be combined with --samples, --pick, --ask, --preset and "
            "--prompt-mix; say it in the stage that asks"
        )
    if not isinstance(tables, list | tuple):
        raise SettingsError("stage: give a list of tables")
    merged: dict[str, dict[str, Any]] = {}
    ours = tables_of(prompt.stages) if prompt.stages else []
    if prompt.stages in known_sets():
        is_caption = {"field": output_field}
        ours = [table | is_caption if table.get("field") == "caption" else table for table in ours]
    for number, group in enumerate((ours, tables)):
        seen = set()
        for table in group:
            name = _name_of(table)
            if name in seen:
                raise SettingsError(f"stage: two stages have the name {name!r}")
            seen.add(name)
            merged[name] = {**merged.get(name, {}), **table} if number else dict(table)
    found = [StageSettings.of(table) for table in merged.values()]
    _refuse_unused(prompt, found)
    if not any(stage.field == output_field for stage in found):
        if found[-1].field is not None:
            raise SettingsError(f"stages: none has field = {output_field!r}, for the caption")
        found[-1] = replace(found[-1], field=output_field)
    return tuple(part for stage in found for part in _with_pick(stage))


def _refuse_unused(prompt: PromptSettings, stages: Sequence[StageSettings]) -> None:
    """Refuse options of the run's own question if no stage asks it.

    Raises:
        SettingsError: One is given.
    """
    unused = {"--schema": prompt.schema, "--prompt-file-in-folder": prompt.prompt_file_in_folder}
    for flag, value in unused.items():
        if value and all("prompt" in stage.options for stage in stages):
            raise SettingsError(
                f"stages: no stage would use {flag}, for each has a prompt of its own; leave it "
                "out, or say it in a stage"
            )


def _word(name: str, at: int) -> str:
    """Return a name for a stage that asks one of the run's questions."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else f"question_{at + 1}"


def _with_pick(stage: StageSettings) -> list[StageSettings]:
    """Return a stage, as two if another request makes one answer of its samples."""
    pick = stage.options.get("pick")
    if pick is None:
        return [stage]
    if stage.options.get("samples", 1) == 1:
        stage = stage.changed(samples=SAMPLES)
    own = stage.options
    if own.get("schema"):
        raise SettingsError("pick: it needs captions that are text, and --schema makes objects")
    if stage.each is not None:
        raise SettingsError(f"stage {stage.name}: pick cannot be combined with each")
    if pick not in PICKS:
        return [stage]
    samples = f"{stage.name}_samples"
    first = replace(stage.changed(pick=None), name=samples, field=None)
    second = replace(
        stage,
        given=tuple((name, value) for name, value in own.items() if name not in _PROMPT),
        choose=samples if pick == "judge" else None,
        when=f"{samples} is not None",
    ).changed(prompt=PICKS[pick].replace("SAMPLES", samples))
    return [first, second]
