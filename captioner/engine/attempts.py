"""One prepared record to its outcome: the attempts, and what each of them means."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captioner.core.errors import (
    BadReplyError,
    EndpointFaultError,
    ImageRejectedError,
    NotFoundError,
    ParameterError,
    RecordError,
    RefusedError,
)
from captioner.core.retry import waits
from captioner.core.types import (
    NO_OVERRIDES,
    UNCHANGED,
    Caption,
    CaptionResult,
    Completion,
    Failure,
    ImageOverrides,
    RequestOverrides,
    Usage,
    ValidatedCompletion,
)
from captioner.endpoints.pool import NOT_FOUND_TIMES, PoisonDetector, unknown_model
from captioner.engine.caption_checks import ask_again, attempts_for, check

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from captioner.core.cancellation import CancelToken
    from captioner.core.types import InputRecord, PreparedRecord
    from captioner.endpoints.pool import Endpoint, EndpointPool
    from captioner.engine.caption_checks import CaptionRules

SMALLER = (0.7, 0.5, 0.35)
"""Factors of an image's sides to try when the endpoint finds it too large (after CaptionFlow)."""

PARAMETERS_TO_LEAVE_OUT = 8


LONGEST_PAUSE_S = 8.0
"""Longest wait of one record between attempts: an endpoint in trouble rests as a whole anyway."""


class RecordAttempts:
    """Captions records through the endpoints of a run.

    Args:
        endpoints: Where they are sent.
        image_overrides: Prepares a record again with its images made otherwise.
        compose: Makes the members of a row from the answers of a record.
        cancel: Ends waits.
        rules: What a caption has to be like.
        overrides: Temperature and length of the settings.
        samples: Answers to each question.
        warn: Called with a sentence when images turn out too large.
    """

    def __init__(
        self,
        endpoints: EndpointPool,
        image_overrides: Callable[
            [InputRecord, ImageOverrides], Awaitable[PreparedRecord | Failure]
        ],
        compose: Callable[
            [list[list[ValidatedCompletion]], int], tuple[Any, tuple[tuple[str, Any], ...]]
        ],
        cancel: CancelToken,
        *,
        rules: CaptionRules,
        overrides: RequestOverrides = RequestOverrides(),  # noqa: B008 - frozen
        samples: int = 1,
        warn: Callable[[str], None],
    ) -> None:
        self._endpoints = endpoints
        self._image_overrides = image_overrides
        self._compose = compose
        self._cancel = cancel
        self._rules = rules
        self._overrides = overrides
        self._samples = samples
        self._warn = warn
        self._too_large = _TooLarge()

    async def answers(self, prepared: PreparedRecord) -> CaptionResult | Failure:
        """Return the answers that make a record's caption, or why there are none.

        Trouble of an endpoint costs time only; replies that are no captions cost attempts. A
        record that alone keeps failing on an endpoint that serves others is failed as well.

        Raises:
            StoppedError: The run is stopping before there is an outcome.
            RunError: No record will be captioned.
        """
        record = _Record(prepared)
        answers: list[list[ValidatedCompletion]] = []
        try:
            if scale := self._too_large.scale_for(prepared):
                await self._make_again(record, ImageOverrides(scale))
            for question in range(len(prepared.questions)):
                answers.append([])
                for _ in range(self._samples):
                    answers[-1].append(await self._answer(record, question))
        except RecordError as error:
            return Failure(prepared.record, error.code, error.message, record.attempts)
        return CaptionResult(answers, record.attempts)

    def caption_of(self, line: InputRecord, answers: CaptionResult, *, replaces: bool) -> Caption:
        """Return the caption that the answers make; see `PreparedRecord` for ``replaces``."""
        value, more = self._compose(answers.each, answers.attempts)
        first = answers.each[0]
        usage = first[0].completion.usage
        if len(answers.each) > 1 or len(first) > 1:
            kept = [answer.completion.usage for several in answers.each for answer in several]
            usage = Usage(*map(sum, zip(*kept, strict=True)))
        return Caption(line, value, replaces, answers.attempts, usage, more)

    async def _answer(self, record: _Record, question: int) -> ValidatedCompletion:
        """Return an answer to one of the record's questions.

        Raises:
            RecordError: There will be none.
        """
        overrides = NO_OVERRIDES
        bad_replies: Counter[str] | None = None
        record.retrying = False
        record.pauses = None
        while True:
            completion = None
            try:
                completion, latency_s = await self._complete(record, question, overrides)
                answer = check(completion, self._rules)
            except BadReplyError as error:
                bad_replies = Counter() if bad_replies is None else bad_replies
                bad_replies[error.code] += 1
                if (
                    bad_replies[error.code] >= attempts_for(error.code, self._rules)
                    or bad_replies.total() >= self._rules.max_attempts
                ):
                    raise RefusedError(error.code, error.message) from None
                if completion is not None:
                    overrides = ask_again(
                        error, completion, overrides, self._overrides, self._rules
                    )
                if record.as_usual:
                    overrides = RequestOverrides(turns=overrides.turns)
                await self._pause(record)
            else:
                self._too_large.worked(record.remade.scale)
                return ValidatedCompletion(answer.value, completion, answer.flag, latency_s)

    async def _complete(
        self, record: _Record, question: int, overrides: RequestOverrides
    ) -> tuple[Completion, float]:
        """Return what a model said and the seconds it took, through all that costs no attempts.

        Raises:
            BadReplyError: The reply is none.
            RecordError: There will be none.
        """
        left_out = 0
        while True:
            record.attempts += 1
            began = time.monotonic()
            endpoint, result = await self._endpoints.attempt(
                record.prepared.questions[question], overrides, retry=record.retrying
            )
            record.retrying = True
            if isinstance(result, Completion):
                return result, time.monotonic() - began
            if overrides.raised and isinstance(result, ImageRejectedError | RefusedError):
                # More tokens, or a higher temperature, than the endpoint has: as the settings say.
                record.as_usual = True
                overrides = RequestOverrides(turns=overrides.turns)
            elif isinstance(result, ParameterError):
                left_out += 1
                if left_out > PARAMETERS_TO_LEAVE_OUT:
                    raise RefusedError(result.code, result.message)
            elif isinstance(result, ImageRejectedError):
                await self._make_otherwise(record, result)
            elif isinstance(result, NotFoundError):
                await self._not_found(record, endpoint, result)
            elif isinstance(result, EndpointFaultError):
                record.faults = record.faults or PoisonDetector(self._rules.max_attempts)
                if times := await record.faults.check(endpoint, result):
                    message = f"{result.message} ({times} times, while the endpoint was well)"
                    raise RefusedError(result.code, message)
                await self._pause(record)
            else:
                raise result

    async def _pause(self, record: _Record) -> None:
        if record.pauses is None:
            record.pauses = waits(LONGEST_PAUSE_S)
        await self._cancel.sleep(min(next(record.pauses), self._endpoints.left_s))

    async def _not_found(self, record: _Record, endpoint: Endpoint, error: NotFoundError) -> None:
        """Wait for what others meet; then take it for the size, or for the record's own fault."""
        captions = endpoint.health.captions
        record.not_found += 1
        if record.not_found == 1:
            record.captions_before = captions
        if record.not_found == 1 or not captions:
            await self._pause(record)
        elif error.certain:
            if record.not_found >= NOT_FOUND_TIMES and captions > record.captions_before:
                raise RefusedError(error.code, error.message)
            await self._pause(record)
        elif record.remade.scale == SMALLER[-1] and not await endpoint.answers():
            raise unknown_model(error)
        else:
            await self._make_smaller(record, error)

    async def _make_otherwise(self, record: _Record, error: ImageRejectedError) -> None:
        if error.smaller:
            await self._make_smaller(record, error)
        elif record.remade.redraw:
            raise RefusedError(error.code, error.message)
        else:
            await self._make_again(record, record.remade._replace(redraw=True))

    async def _make_smaller(
        self, record: _Record, error: ImageRejectedError | NotFoundError
    ) -> None:
        if isinstance(error, ImageRejectedError):
            if not self._too_large.known:
                self._warn(
                    f"images are too large for the endpoint ({error.message}): sending them smaller"
                )
            self._too_large.refused(record.prepared, error)
        scale = next((scale for scale in SMALLER if scale < record.remade.scale), 0.0)
        if not scale or not record.prepared.pixels:
            raise RefusedError(error.code, error.message)
        await self._make_again(record, record.remade._replace(scale=scale))

    async def _make_again(self, record: _Record, image_overrides: ImageOverrides) -> None:
        made = await self._image_overrides(record.prepared.record, image_overrides)
        if isinstance(made, Failure):
            raise RefusedError(made.code, made.message)
        record.prepared, record.remade = made, image_overrides


@dataclass(slots=True)
class _Record:
    """Where a record stands between its attempts."""

    prepared: PreparedRecord
    faults: PoisonDetector | None = None
    pauses: Iterator[float] | None = None
    remade: ImageOverrides = UNCHANGED
    attempts: int = 0
    retrying: bool = False
    as_usual: bool = False
    not_found: int = 0
    captions_before: int = 0


class _TooLarge:
    """What the endpoint found too large, and what it took then: later records profit from it.

    Only a record with at least as many pixels, or bytes, as one that was refused is made smaller
    before it is sent.
    """

    def __init__(self) -> None:
        self._pixels = math.inf
        self._bytes = math.inf
        self._scale = 0.0

    @property
    def known(self) -> bool:
        return min(self._pixels, self._bytes) < math.inf

    def refused(self, prepared: PreparedRecord, error: ImageRejectedError) -> None:
        if error.code == "too_large":
            self._pixels = min(self._pixels, prepared.pixels or math.inf)
        else:
            self._bytes = min(self._bytes, _size(prepared))

    def worked(self, scale: float) -> None:
        if scale < 1:
            self._scale = max(self._scale, scale) if self._scale else scale

    def scale_for(self, prepared: PreparedRecord) -> float:
        """Return the factor to begin with, 0 to send it as it is."""
        if not self._scale or not prepared.pixels:
            return 0.0
        large = prepared.pixels >= self._pixels or _size(prepared) >= self._bytes
        return self._scale if large else 0.0


def _size(prepared: PreparedRecord) -> int:
    return sum(map(len, prepared.questions[0]))
