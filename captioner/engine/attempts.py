"""Caption one prepared record: its attempts, and what each response means for the next one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from captioner.core.errors import (
    BadReplyError,
    EndpointFaultError,
    EndpointRefusedError,
    ImageRejectedError,
    ParameterError,
    RecordError,
    RefusedError,
    TokenLimitError,
)
from captioner.core.humanize import sentence
from captioner.core.retry import waits
from captioner.core.types import (
    NO_OVERRIDES,
    UNCHANGED,
    CaptionResult,
    Completion,
    Failure,
    ImageOverrides,
    PreparedRecord,
    RequestOverrides,
    ValidatedCompletion,
)
from captioner.endpoints.blame import PoisonDetector, RefusalGuard
from captioner.endpoints.replies import SHORT_REPLY
from captioner.engine.caption_checks import ask_again, attempts_for, check, may_cut
from captioner.engine.size_limit import SizeLimit, most_tokens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from captioner.core.cancellation import CancelToken
    from captioner.core.types import Outcome
    from captioner.endpoints.endpoint import Endpoint
    from captioner.endpoints.pool import EndpointPool
    from captioner.engine.caption_checks import CaptionRules

logger = logging.getLogger(__name__)

SMALLER = (0.7, 0.5, 0.35)
"""Factors of an image's sides to try if it is too large for the endpoint (after CaptionFlow)."""

MAX_ADAPTATIONS = 8
"""Parameters that are left out or renamed for one record."""

UNSEEN_TO_STOP = 5
"""First records whose answers say that there is no image, after which the run stops."""

FEWEST_TOKENS = 64
"""Tokens below which ``max_tokens`` is not lowered further."""

_MAYBE_SIZE = frozenset({"http_404", "disconnected"})

USUAL_FINISH = 3
"""Captions that ended twice for the same unknown reason, after which it is the endpoint's usual
one and costs no second request."""

MOST_AT_ONCE = 4
"""Attempts of a record without a pause where errors come by chance."""

LONGEST_PAUSE_S = 8.0
"""Longest wait of one record between attempts; the circuit breaker handles outages."""


class RecordAttempts:
    """Captions records through the endpoints of a run.

    Args:
        endpoints: The endpoints.
        prepare_again: Prepares a record again with its images encoded differently.
        cancel: Ends waits.
        rules: What a caption must be like.
        defaults: Temperature and length of the settings.
        samples: Answers to each question.
        stop_after: See `RefusalGuard`.
    """

    def __init__(
        self,
        endpoints: EndpointPool,
        prepare_again: Callable[
            [PreparedRecord, ImageOverrides], Awaitable[PreparedRecord | Outcome]
        ],
        cancel: CancelToken,
        *,
        rules: CaptionRules,
        defaults: RequestOverrides = NO_OVERRIDES,
        samples: int = 1,
        stop_after: int | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._prepare_again = prepare_again
        self._cancel = cancel
        self._rules = rules
        self._defaults = defaults
        self._samples = samples
        self._size_limit = SizeLimit()
        self._guard = RefusalGuard(stop_after)
        self._max_tokens: int | None = None  # lowered for the endpoint's context
        self._auto_thinking = defaults.thinking is None
        self._thinking_off = False
        self._has_seen = False  # a caption came that needs an image
        self._unknown_finishes: Counter[str] = Counter()  # captions flagged for a reason
        self._unseen: set[int] = set()  # records whose answer says that there is no image

    async def answers(
        self, prepared: PreparedRecord, before: Endpoint | None = None
    ) -> CaptionResult | Failure:
        """Return the answers that make a record's caption, or its failure.

        Errors of an endpoint cost time but no attempts. Unusable responses cost attempts. A
        record that keeps failing on an endpoint that serves other records fails as well.

        Args:
            prepared: The record.
            before: An endpoint that had its images before.

        Raises:
            StoppedError: The run is cancelled before there is an outcome.
            RunError: No record will be captioned.
        """
        state = _RecordState(prepared, before)
        answers: list[list[ValidatedCompletion]] = []
        try:
            if scale := self._size_limit.scale_for(prepared):
                await self._encode_again(state, ImageOverrides(scale))
            for question in range(len(prepared.questions)):
                answers.append([])
                for _ in range(self._samples):
                    answers[-1].append(await self._answer(state, question))
        except RecordError as error:
            if state.attempts and (self._guard.works or not state.unusable):
                self._failed(error)
            return Failure(prepared.record, error.code, error.message, state.attempts)
        if state.poison is not None:
            state.poison.succeeded()
        return CaptionResult(answers, state.attempts, state.endpoint)

    async def _answer(self, state: _RecordState, question: int) -> ValidatedCompletion:
        """Return an answer to one of the record's questions.

        Raises:
            RecordError: There will be none.
        """
        overrides = NO_OVERRIDES
        thinking = False if self._thinking_off else self._defaults.thinking
        if self._max_tokens is not None or thinking is not None:
            overrides = RequestOverrides(max_tokens=self._max_tokens, thinking=thinking)
        bad_replies: Counter[str] | None = None
        state.is_retry = False
        state.pauses = None
        while True:
            completion = None
            try:
                completion, latency_s = await self._complete(state, question, overrides)
                reason = completion.finish_reason
                again = bad_replies is not None and bad_replies["unknown_finish"] > 0
                usual = self._unknown_finishes[reason] >= USUAL_FINISH
                rules = self._rules
                any_finish = again or usual
                cut = rules.shape is not None and may_cut(bad_replies, rules)
                if not completion.text[SHORT_REPLY:]:  # len would be a call more
                    answer = check(completion, rules, any_finish=any_finish, may_cut=cut)
                else:
                    answer = await asyncio.to_thread(
                        check, completion, rules, any_finish=any_finish, may_cut=cut
                    )
            except BadReplyError as error:
                bad_replies = Counter() if bad_replies is None else bad_replies
                self._unusable(state, error, bad_replies)
                if completion is not None:
                    overrides = ask_again(error, completion, overrides, self._defaults, self._rules)
                    if error.code == "thinking" and self._auto_thinking:
                        overrides = overrides._replace(thinking=False)
                if state.keep_defaults:
                    overrides = RequestOverrides(turns=overrides.turns, thinking=overrides.thinking)
                await self._pause(state)
            else:
                if answer.flag == "unknown_finish":
                    self._unknown_finishes[reason] += 1
                self._has_seen = True
                self._guard.caption(self._guard.begin())
                self._size_limit.accepted(state.image_overrides.scale)
                return ValidatedCompletion(answer.value, completion, answer.flag, latency_s)

    def _unusable(
        self, state: _RecordState, error: BadReplyError, bad_replies: Counter[str]
    ) -> None:
        """Count a response that is no caption.

        Raises:
            RefusedError: It was the last attempt.
            RunError: The first records all got such responses.
        """
        bad_replies[error.code] += 1
        state.unusable += 1
        if state.unusable > 1 and not self._guard.works:
            self._failed(error)
        if error.code == "no_image_seen":
            self._no_image_seen(state, error)
        elif error.code == "thinking" and self._auto_thinking and not self._thinking_off:
            self._thinking_off = True
            logger.warning("%s: switching thinking off (--thinking off)", error.message)
        last = bad_replies[error.code] >= attempts_for(error.code, self._rules)
        if last or bad_replies.total() >= self._rules.max_attempts:
            raise RefusedError(error.code, error.message) from None

    def _failed(self, error: RecordError | BadReplyError) -> None:
        """Count a record that fails, or before the first caption a second unusable response.

        Raises:
            RunError: Too many came in a row; see `RefusalGuard`.
        """
        self._guard.refusal(error, error.code, self._guard.begin(), verdict=False)

    def _no_image_seen(self, state: _RecordState, error: BadReplyError) -> None:
        """Count records whose answer says that there is no image.

        Raises:
            EndpointRefusedError: The first records all got such an answer.
        """
        self._unseen.add(state.prepared.record.number)
        if not self._has_seen and len(self._unseen) >= UNSEEN_TO_STOP:
            raise EndpointRefusedError(
                f"The first {UNSEEN_TO_STOP} answers all say that there is no image. "
                f"{sentence(error.message)} The model reads text only, or a gateway drops the "
                "images. Choose a vision-language model with --model."
            )

    async def _complete(
        self, state: _RecordState, question: int, overrides: RequestOverrides
    ) -> tuple[Completion, float]:
        """Return the model's text and its latency in seconds, through all that costs no attempts.

        Raises:
            BadReplyError: The response has no usable text.
            RecordError: There will be none.
        """
        adaptations = 0
        asked = overrides.thinking
        tried: Exception | None = None  # the refusal of a request with thinking parameters
        while True:
            state.attempts += 1
            began = time.monotonic()
            endpoint, result = await self._endpoints.attempt(
                state.prepared.questions[question],
                overrides,
                retry=state.is_retry,
                poison=state.poison,
                before=state.endpoint,
            )
            # A connection that was never made is no request.
            state.is_retry |= getattr(result, "code", "") != "connection"
            if isinstance(result, Completion):
                state.endpoint = endpoint
                if tried is not None and overrides.thinking is None:
                    endpoint.leave_out_thinking(tried)
                return result, time.monotonic() - began
            if tried is not None and isinstance(result, RefusedError | ImageRejectedError):
                overrides = overrides._replace(thinking=asked)  # they were not the reason
            elif is_thinking_refused(endpoint, overrides, result):
                tried, overrides = result, overrides._replace(thinking=None)
                continue
            if overrides.raised and isinstance(result, ImageRejectedError | RefusedError):
                # The endpoint may not allow that many tokens or that temperature.
                state.keep_defaults = True
                overrides = RequestOverrides(turns=overrides.turns, thinking=overrides.thinking)
            elif isinstance(result, ParameterError):
                adaptations += 1
                if adaptations > MAX_ADAPTATIONS:
                    raise RefusedError(result.code, result.message)
            elif isinstance(result, ImageRejectedError):
                await self._change_images(state, result)
            elif isinstance(result, TokenLimitError):
                overrides = self._fewer_tokens(overrides, result)
            elif isinstance(result, EndpointFaultError):
                await self._fault(state, endpoint, result)
            else:
                raise result

    async def _pause(self, state: _RecordState) -> None:
        if state.pauses is None:
            state.pauses = waits(LONGEST_PAUSE_S)
        await self._cancel.sleep(min(next(state.pauses), self._endpoints.seconds_left))

    async def _fault(
        self, state: _RecordState, endpoint: Endpoint, fault: EndpointFaultError
    ) -> None:
        """Handle an error of the endpoint, and wait; the record may be its cause.

        Raises:
            RefusedError: It is, and smaller images do not help.
        """
        state.poison = state.poison or PoisonDetector()
        if times := state.poison.check(endpoint, fault):
            message = f"{fault.message} ({times} times, while other records succeeded)"
            if fault.code not in _MAYBE_SIZE or state.image_overrides.scale == SMALLER[-1]:
                raise RefusedError(fault.code, message)
            # Some gateways answer a body that is too large with a 404, or close the connection.
            await self._shrink(state, ImageRejectedError(fault.code, message, smaller=True))
        if state.at_once < MOST_AT_ONCE and endpoint.fails_by_chance(fault):
            state.at_once += 1
        else:
            await self._pause(state)

    def _fewer_tokens(
        self, overrides: RequestOverrides, error: TokenLimitError
    ) -> RequestOverrides:
        """Return overrides whose ``max_tokens`` fit into the context."""
        sent = overrides.max_tokens or self._defaults.max_tokens
        if self._max_tokens is not None and (sent is None or sent > self._max_tokens):
            return overrides._replace(max_tokens=self._max_tokens)  # learned meanwhile
        fewer = (sent or 2 * FEWEST_TOKENS) // 2
        if error.limit and (sent is None or error.limit < sent):
            fewer = error.limit
        elif sent is not None and sent <= FEWEST_TOKENS:
            raise RefusedError(error.code, error.message)
        if self._max_tokens is None:
            logger.warning("max_tokens is too large for the endpoint: sending fewer")
        self._max_tokens = fewer
        return overrides._replace(max_tokens=self._max_tokens)

    async def _change_images(self, state: _RecordState, error: ImageRejectedError) -> None:
        if error.smaller:
            await self._shrink(state, error)
        elif state.image_overrides.reencode:
            raise RefusedError(error.code, error.message)
        else:
            await self._encode_again(state, state.image_overrides._replace(reencode=True))

    async def _shrink(self, state: _RecordState, error: ImageRejectedError) -> None:
        if error.excess > most_tokens(state.prepared):
            raise RefusedError(error.code, error.message)  # the text alone is too long
        if not self._size_limit.known:
            logger.warning(
                "images are too large for the endpoint (%s): sending them smaller", error.message
            )
        self._size_limit.rejected(state.prepared, error)
        scale = next((scale for scale in SMALLER if scale < state.image_overrides.scale), 0.0)
        if not scale or not state.prepared.pixels:
            raise RefusedError(error.code, error.message)
        await self._encode_again(state, state.image_overrides._replace(scale=scale))

    async def _encode_again(self, state: _RecordState, image_overrides: ImageOverrides) -> None:
        prepared = await self._prepare_again(state.prepared, image_overrides)
        if isinstance(prepared, Failure):
            raise RefusedError(prepared.code, prepared.message)
        if isinstance(prepared, PreparedRecord):  # as every record that was sent before
            state.prepared, state.image_overrides = prepared, image_overrides


def is_thinking_refused(endpoint: Endpoint, overrides: RequestOverrides, result: Exception) -> bool:
    """Return whether parameters for thinking may be why an endpoint refused a request.

    Some gateways refuse them without naming them.
    """
    if overrides.thinking is None or endpoint.thinking_settled:
        return False
    return isinstance(result, RefusedError) and result.code.startswith("http_4")


@dataclass(slots=True)
class _RecordState:
    """The state of a record between its attempts."""

    prepared: PreparedRecord
    endpoint: Endpoint | None = None  # that has answered and may still have the image
    poison: PoisonDetector | None = None
    pauses: Iterator[float] | None = None
    image_overrides: ImageOverrides = UNCHANGED
    attempts: int = 0
    is_retry: bool = False
    unusable: int = 0  # responses that are no captions
    at_once: int = 0  # attempts after an error without a pause
    keep_defaults: bool = False  # the endpoint refused other sampling parameters
