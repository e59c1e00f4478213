"""Questions with parts of the record in them: Jinja templates, sandboxed.

``{{ title }}`` is the record's member, ``{{ record["a name"] }}`` one by any name; see
https://jinja.palletsprojects.com/templates/ for the rest. A text without ``{{`` and ``{%`` is no
template, and needs nothing installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.errors import BadRecordError, SettingsError
from captioner.extras import needed

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


class Templates:
    """Fills what is asked with what the record holds.

    Args:
        system_prompt: See `Texts`.
        prompt: See `Texts`.
        questions: See `Texts`.

    Raises:
        SettingsError: A template is wrong, or the library for templates is not installed.
    """

    def __init__(self, system_prompt: str, prompt: str, questions: Sequence[str] = ()) -> None:
        self._texts = Texts(system_prompt, prompt, tuple(questions))
        self._render: list[Callable[[dict[str, Any]], str]] = []
        texts = (system_prompt, prompt, *questions)
        if not any("{{" in text or "{%" in text for text in texts):
            return
        self._jinja = needed("jinja2", "templates")
        sandbox = needed("jinja2.sandbox", "templates").ImmutableSandboxedEnvironment(
            undefined=self._jinja.StrictUndefined
        )
        for text in texts:
            try:
                self._render.append(sandbox.from_string(text).render)
            except self._jinja.TemplateSyntaxError as error:
                raise SettingsError(
                    f"prompt: the template is wrong in line {error.lineno}: {error.message}"
                ) from None

    def fill(self, record: dict[str, Any]) -> Texts:
        """Return what is asked of a record.

        Raises:
            BadRecordError: ``prompt_field`` if it lacks a member that a template names,
                ``prompt_template`` if a template can do nothing with it.
        """
        if not self._render:
            return self._texts
        try:
            system_prompt, prompt, *questions = [
                render({**record, "record": record}).strip() for render in self._render
            ]
        except self._jinja.UndefinedError as error:
            raise BadRecordError(
                "prompt_field", f"the prompt needs what the record does not have: {error.message}"
            ) from None
        except Exception as error:  # noqa: BLE001 - a template may do anything to a value
            reason = " ".join(str(error).split())[:200]
            raise BadRecordError(
                "prompt_template", f"the prompt cannot be made of the record: {reason}"
            ) from None
        if not prompt or not all(questions):
            raise BadRecordError("prompt_template", "the prompt made of the record is empty")
        return Texts(system_prompt, prompt, tuple(questions))
