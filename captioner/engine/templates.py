"""Questions with parts of the record in them: Jinja templates, sandboxed.

``{{ title }}`` is a field of the record, ``{{ record["a name"] }}`` one with any name, and
``{{ sidecar }}`` among others what is known about its image (`template_context`); see
https://jinja.palletsprojects.com/templates/ for the rest. A text without ``{{`` and ``{%`` is no
template, and needs nothing installed.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.core.errors import BadRecordError, SettingsError
from captioner.engine.template_context import NAMES
from captioner.engine.template_sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from captioner.engine.template_context import RecordContext


class Texts(NamedTuple):
    """What is asked of a record.

    Attributes:
        system_prompt: The system turn where the record brings none.
        prompt: The question where the record brings none.
        questions: Those that take the place of the record's own.
    """

    system_prompt: str
    prompt: str
    questions: tuple[str, ...] = ()


class Filled:
    """The same for one record, filled in when needed: `RecordError` may come of it.

    Args:
        templates: The templates.
        record: The record.
        context: What is known about its image.
        chosen: Position of its question among those of the mix; None if there is none.
        own: A question that goes before all these; empty if there is none.
    """

    def __init__(
        self,
        templates: Templates,
        record: dict[str, Any],
        context: RecordContext | None,
        chosen: int | None = None,
        own: str = "",
    ) -> None:
        self._templates = templates
        self._chosen = chosen
        self._own = own
        self._context = context
        self._record = record
        self._values: dict[str, Any] | None = None

    @property
    def system_prompt(self) -> str:
        """See `Texts`."""
        return self._render(0) if self._templates.texts[0] else ""

    @property
    def prompt(self) -> str:
        """See `Texts`."""
        if self._own or self._chosen is None:
            return self._own or self._render(1)
        return self._render(2 + len(self._templates.texts.questions) + self._chosen)

    @property
    def questions(self) -> tuple[str, ...]:
        """See `Texts`."""
        return tuple(self._render(2 + at) for at in range(len(self._templates.texts.questions)))

    def _render(self, number: int) -> str:
        if self._values is None:
            known = self._context.values if self._context and self._templates.names else {}
            self._values = {**known, **self._record, "record": self._record}
        return self._templates.render(number, self._values)


class CaptionTemplate:
    """Puts a caption into a template, ``{{ caption }}``.

    Args:
        text: The template.
        strict: See `Templates`.

    Attributes:
        names: What it names besides the caption.

    Raises:
        SettingsError: The template is wrong, or the library for templates is not installed.
    """

    def __init__(self, text: str, *, strict: bool = True) -> None:
        jinja = import_module("jinja2")
        environment = sandbox(jinja, strict=strict)
        template, named = _compiled(environment, text, "caption-template")
        if "caption" not in named:
            raise SettingsError("caption-template: it does not name {{ caption }}")
        self.names = frozenset(named - {"caption"})
        self._fill = partial(_filled, partial(environment.text_of, template), "caption template")

    def values(self, fields: dict[str, Any], context: RecordContext) -> dict[str, Any]:
        """Return what the template names besides the caption, of a record.

        Raises:
            RecordError: The template cannot be filled in; better now than after the request.
        """
        known = {**fields, "record": fields, **(context.values if self.names & NAMES else {})}
        values = {name: known[name] for name in self.names if name in known}
        self.fill("caption", values)
        return values

    def fill(self, caption: str, values: Mapping[str, Any]) -> str:
        """Return the template with a caption and what else it names.

        Raises:
            BadRecordError: See `Templates.render`.
        """
        return self._fill({**values, "caption": caption})


class Templates:
    """Fills in the question with the fields of the record.

    Args:
        system_prompt: See `Texts`.
        prompt: See `Texts`.
        questions: See `Texts`.
        mix: Prompts of which each record gets one.
        strict: What a record lacks is its failure; else it is empty.

    Attributes:
        texts: The texts, not filled in.
        all_texts: The same with those of the mix, in one tuple.
        named: All that the templates name.
        names: What they name of `captioner.engine.template_context.NAMES`.

    Raises:
        SettingsError: A template is wrong, or the library for templates is not installed.
    """

    def __init__(
        self,
        system_prompt: str,
        prompt: str,
        questions: Sequence[str] = (),
        mix: Sequence[str] = (),
        *,
        strict: bool = True,
    ) -> None:
        self.texts = Texts(system_prompt, prompt, tuple(questions))
        self.named: frozenset[str] = frozenset()
        self.names: frozenset[str] = frozenset()
        self._render: list[Callable[[dict[str, Any]], str]] = []
        texts = self.all_texts = (system_prompt, prompt, *questions, *mix)
        if not any("{{" in text or "{%" in text for text in texts):
            return
        environment = sandbox(import_module("jinja2"), strict=strict)
        named: set[str] = set()
        for text in texts:
            template, names = _compiled(environment, text, "prompt")
            named |= names
            self._render.append(partial(environment.text_of, template))
        self.named = frozenset(named)
        self.names = NAMES & named

    @property
    def any(self) -> bool:
        """Whether there is a template among them."""
        return bool(self._render)

    def fill(self, record: dict[str, Any], context: RecordContext | None = None) -> Texts | Filled:
        """Return the question for a record; ``context`` is what is known about its image."""
        return Filled(self, record, context) if self._render else self.texts

    def render(self, number: int, values: dict[str, Any]) -> str:
        """Return one of the texts, filled in.

        Raises:
            BadRecordError: ``prompt_field`` if the record lacks what a template names,
                ``prompt_template`` if a template can do nothing with it.
        """
        if not self._render:
            return self.all_texts[number]
        return _filled(self._render[number], "prompt", values)


def _compiled(environment: Any, text: str, option: str) -> tuple[Any, set[str]]:
    """Return a template and what it names.

    Raises:
        SettingsError: It is wrong.
    """
    jinja, meta = import_module("jinja2"), import_module("jinja2.meta")
    try:
        named = meta.find_undeclared_variables(environment.parse(text))
        return environment.from_string(text), set(named)
    except jinja.TemplateSyntaxError as error:
        raise SettingsError(
            f"{option}: the template is wrong in line {error.lineno}: {error.message}"
        ) from None


def _filled(render: Callable[[dict[str, Any]], str], what: str, values: dict[str, Any]) -> str:
    """Return a template, filled in; the errors are those of `Templates.render`."""
    jinja = import_module("jinja2")
    try:
        text = render(values).strip()
    except jinja.UndefinedError as error:
        raise BadRecordError(
            "prompt_field", f"the {what} needs what the record does not have: {error.message}"
        ) from None
    except Exception as error:  # noqa: BLE001 - a template may do anything to a value
        reason = " ".join(str(error).split())[:200]
        raise BadRecordError(
            "prompt_template", f"the {what} cannot be made of the record: {reason}"
        ) from None
    if not text:
        raise BadRecordError("prompt_template", f"the {what} made of the record is empty")
    return text
