"""Make the fields of a row from the answers of a record. Pure, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.core.errors import RecordError
from captioner.core.row import RowLayout
from captioner.core.types import Caption, Failure, Usage

if TYPE_CHECKING:
    from captioner.core.types import CaptionResult, InputRecord, Notes, Outcome
    from captioner.engine.shape import Shape
    from captioner.settings.settings import Settings


class Rows:
    """Makes captions of answers.

    Args:
        settings: The settings.
        model: The model of the run.
        shape: What is cut from captions and put around them; None leaves them as they are.
    """

    def __init__(self, settings: Settings, model: str, shape: Shape | None) -> None:
        layout = RowLayout(settings.fields, settings.extras, settings.fingerprint(model))
        self._compose = layout.compose
        self._shape = shape
        self._is_staged = bool(settings.stages)
        self._captions = len(settings.prompt.ask) or 1  # other answers of stages are no captions

    def caption_of(
        self,
        record: InputRecord,
        result: CaptionResult,
        *,
        replaces: bool,
        notes: Notes | None = None,
    ) -> Outcome:
        """Return the caption that the answers make; see `PreparedRecord` for the rest.

        It is a failure if nothing is left of a caption in its final shape.
        """
        each = result.each
        if self._shape is not None:
            shaped = each[: self._captions] if self._is_staged else each
            try:
                each = [*self._shape.shaped(shaped, notes), *each[len(shaped) :]]
            except RecordError as error:
                return Failure(record, error.code, error.message, result.attempts)
        if self._is_staged and notes is not None:
            asked = tuple(answer.asked for answer in each[0][:1] if answer.asked)
            notes = notes._replace(prompts=asked or notes.prompts)
        value, more = self._compose(each, result.attempts, notes)
        first = each[0]
        usage = first[0].completion.usage
        if len(each) > 1 or len(first) > 1:
            kept = [answer.completion.usage for several in each for answer in several]
            usage = Usage(*map(sum, zip(*kept, strict=True)))
        return Caption(record, value, replaces, result.attempts, usage, more)
