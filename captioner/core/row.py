"""Which fields of an output row hold what. Does no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.core.types import Notes, ValidatedCompletion

EXTRAS = (
    "usage", "finish_reason", "model", "attempts", "latency", "raw", "prompt", "image_digest",
    "settings", "doubt",
)  # fmt: skip
"""Fields that ``--with`` can add to a row."""

FLAG = "flag"


def field_names(fields: Sequence[str], extras: Sequence[str] = EXTRAS) -> tuple[str, ...]:
    """Return the names of the fields that a row may get, the captions first."""
    flags = (f"{name}_{FLAG}" for name in fields)
    return (*fields, *flags, *(f"{fields[0]}_{extra}" for extra in extras))


class RowLayout:
    """Composes the fields that a row gets.

    Args:
        fields: The caption fields, one for each question.
        extras: Which of `EXTRAS` to add.
        settings: Digest of the settings that shape captions.
    """

    def __init__(
        self, fields: Sequence[str], extras: Sequence[str] = (), settings: str = ""
    ) -> None:
        self._fields = tuple(fields)
        self._extras = tuple(extras)
        self._settings = settings

    def compose(
        self,
        answers: Sequence[Sequence[ValidatedCompletion]],
        attempts: int,
        notes: Notes | None = None,
    ) -> tuple[Any, tuple[tuple[str, Any], ...]]:
        """Return the value of the first field, and names and values of the other fields.

        Args:
            answers: The answers to each question; several become a list in the row.
            attempts: Requests sent for the record.
            notes: What the row needs besides the answers.
        """
        if len(answers) == len(answers[0]) == 1 and not self._extras and not answers[0][0].flag:
            return answers[0][0].value, ()  # the usual case
        values = [_one_or_all([answer.value for answer in several]) for several in answers]
        more = list(zip(self._fields[1:], values[1:], strict=True))
        for name, several in zip(self._fields, answers, strict=True):
            if any(answer.flag for answer in several):
                more.append((f"{name}_{FLAG}", _one_or_all([answer.flag for answer in several])))
        every = [answer for several in answers for answer in several]
        doubt = answers[0][0].doubt
        own: dict[str, Any] = {"attempts": attempts, "settings": self._settings, "doubt": doubt}
        if notes is not None:
            own |= {
                "prompt": _one_or_all(notes.prompts),
                "image_digest": _one_or_all(notes.digests),
            }
        more += [
            (f"{self._fields[0]}_{extra}", own[extra] if extra in own else _extra(extra, every))
            for extra in self._extras
        ]
        return values[0], tuple(more)


def _extra(name: str, answers: Sequence[ValidatedCompletion]) -> Any:
    if name == "latency":
        return round(sum(answer.latency_s for answer in answers), 3)
    if name == "raw":
        return _one_or_all([one.value if one.raw is None else one.raw for one in answers])
    if name == "usage":
        used = [answer.completion.usage for answer in answers]
        return {
            "prompt_tokens": sum(tokens.prompt_tokens for tokens in used),
            "completion_tokens": sum(tokens.completion_tokens for tokens in used),
        }
    return _one_or_all([getattr(answer.completion, name) for answer in answers])


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else list(values)
