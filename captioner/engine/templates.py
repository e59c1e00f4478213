"""Questions with parts of the record in them: Jinja templates, sandboxed.

``{{ title }}`` is a field of the record, ``{{ record["a name"] }}`` one with any name; see
https://jinja.palletsprojects.com/templates/ for the rest. A text without ``{{`` and ``{%`` is no
template, and needs nothing installed.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.core.errors import BadRecordError, SettingsError
from captioner.engine.template_sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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
    """The same for one record, filled in when needed: `BadRecordError` may come of it."""

    def __init__(self, templates: Templates, record: dict[str, Any]) -> None:
        self._templates = templates
        self._record = record

    @property
    def system_prompt(self) -> str:
        """See `Texts`."""
        return self._templates.render(0, self._record) if self._templates.texts[0] else ""

    @property
    def prompt(self) -> str:
        """See `Texts`."""
        return self._templates.render(1, self._record)

    @property
    def questions(self) -> tuple[str, ...]:
        """See `Texts`."""
        count = len(self._templates.texts.questions)
        return tuple(self._templates.render(2 + at, self._record) for at in range(count))


class Templates:
    """Fills in the question with the fields of the record.

    Args:
        system_prompt: See `Texts`.
        prompt: See `Texts`.
        questions: See `Texts`.

    Raises:
        SettingsError: A template is wrong, or the library for templates is not installed.
    """

    def __init__(self, system_prompt: str, prompt: str, questions: Sequence[str] = ()) -> None:
        self.texts = Texts(system_prompt, prompt, tuple(questions))
        self._render: list[Callable[[dict[str, Any]], str]] = []
        texts = (system_prompt, prompt, *questions)
        if not any("{{" in text or "{%" in text for text in texts):
            return
        self._jinja = import_module("jinja2")
        environment = sandbox(self._jinja)
        for text in texts:
            try:
                template = environment.from_string(text)
            except self._jinja.TemplateSyntaxError as error:
                raise SettingsError(
                    f"prompt: the template is wrong in line {error.lineno}: {error.message}"
                ) from None
            self._render.append(partial(environment.text_of, template))

    def fill(self, record: dict[str, Any]) -> Texts | Filled:
        """Return the question for a record."""
        return Filled(self, record) if self._render else self.texts

    def render(self, number: int, record: dict[str, Any]) -> str:
        """Return one of the texts, filled in.

        Raises:
            BadRecordError: ``prompt_field`` if the record lacks what a template names,
                ``prompt_template`` if a template can do nothing with it.
        """
        try:
            text = self._render[number]({**record, "record": record}).strip()
        except self._jinja.UndefinedError as error:
            raise BadRecordError(
                "prompt_field", f"the prompt needs what the record does not have: {error.message}"
            ) from None
        except Exception as error:  # noqa: BLE001 - a template may do anything to a value
            reason = " ".join(str(error).split())[:200]
            raise BadRecordError(
                "prompt_template", f"the prompt cannot be made of the record: {reason}"
            ) from None
        if not text:
            raise BadRecordError("prompt_template", "the prompt made of the record is empty")
        return text
