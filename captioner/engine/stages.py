"""Answer a record in stages: one request after the other, each of which sees earlier answers.

`captioner.engine.stage_plan` compiles the stages; each asks by a `RecordAttempts` of its own.
Answers of finished stages are kept by what was asked: after a crash, or after one stage changed,
only requests that were not made before are sent.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.core.cells import from_cell
from captioner.core.errors import (
    EndpointGaveOutError,
    EndpointRefusedError,
    LimitReachedError,
    RecordError,
    ServerDiedError,
)
from captioner.core.keys import digest
from captioner.core.types import (
    Asked,
    CaptionResult,
    Completion,
    Failure,
    ImageOverrides,
    ImageRef,
    PreparedRecord,
    Turn,
    Usage,
    ValidatedCompletion,
)
from captioner.engine.dedup import dump, load
from captioner.engine.doubt import doubt_of, longest, most_agreed, probability_of_yes
from captioner.engine.frames import with_frames
from captioner.engine.stage_plan import MOST_ITEMS, StagePlan, values_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.core.errors import RunError
    from captioner.core.protocols import Dialect
    from captioner.core.types import Outcome
    from captioner.core.where import Where
    from captioner.endpoints.endpoint import Endpoint
    from captioner.engine.attempts import RecordAttempts
    from captioner.engine.most_doubtful import MostDoubtfulFirst
    from captioner.engine.prepare_async import AsyncPreparer
    from captioner.journal.answers import KeptAnswers

logger = logging.getLogger(__name__)

FALL_BACK = frozenset({"refused", "filtered", "looping", "schema", "no_image_seen"})
"""Codes of failures after which the next endpoint of ``fallback`` is asked."""

SKIPPED = "skipped"

MOST_CHARS = 1 << 24
"""Most characters of the answers of a stage that asks for each item of a list."""

_SIDES = 4
_MOST_PIXELS = 1e9


class Stage(NamedTuple):
    """A stage of a run.

    Attributes:
        plan: What it asks.
        chain: What sends it: its endpoint's, then those of its fallbacks.
        digest: Differs for stages whose answers to the same question differ.
    """

    plan: StagePlan
    chain: list[RecordAttempts]
    digest: bytes


class Requests:
    """Makes the requests of stages.

    Args:
        dialect: Builds messages.
        preparer: Reads an image again.
        timed: See `with_frames`.
    """

    def __init__(self, dialect: Dialect, preparer: AsyncPreparer, *, timed: bool) -> None:
        self._dialect = dialect
        self._preparer = preparer
        self._timed = timed

    async def again(
        self, prepared: PreparedRecord, image_overrides: ImageOverrides
    ) -> PreparedRecord | Outcome:
        """Return a request whose images are encoded differently."""
        asked = prepared.asked
        if asked is not None:
            image_overrides = image_overrides._replace(crop=asked.crop)
        found = await self._preparer.again(prepared.record, image_overrides)
        if asked is None or not isinstance(found, PreparedRecord):
            return found
        return self.of(found, asked)

    def of(self, prepared: PreparedRecord, asked: Asked) -> PreparedRecord:
        """Return the request for the question of a stage."""
        if not asked.turns:
            return prepared._replace(questions=(prepared.questions[asked.own],), asked=asked)
        frames = prepared.pictures.frames if asked.image and prepared.pictures else ()
        *before, last = asked.turns
        places = [ImageRef() for _ in frames]
        turns = [*before, Turn(last.role, (*places, *last.parts))]
        encoded = {id(place): [frame] for place, frame in zip(places, frames, strict=True)}
        messages = self._dialect.messages(*with_frames(turns, encoded, timed=self._timed))
        pixels = prepared.pixels if frames else 0
        return prepared._replace(questions=(messages,), asked=asked, pixels=pixels)


class Stages:
    """Answers records in stages.

    Args:
        stages: The stages, in order.
        fields: The fields of a row, the caption's first.
        requests: Makes their requests.
        kept: The answers that earlier runs have kept; None keeps none.
        wants_doubt: Something depends on how doubtful answers are.
        first: Chooses the records of which stages with ``order = "doubt"`` ask; None lets them ask
            of all.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        fields: Sequence[str],
        requests: Requests,
        kept: KeptAnswers | None = None,
        *,
        wants_doubt: bool = False,
        first: MostDoubtfulFirst | None = None,
    ) -> None:
        self._stages = stages
        self._fields = fields
        self._requests = requests
        self._kept = kept
        self._warns_of_doubt = wants_doubt
        self._first = first
        self._has_answered = False

    async def answers(self, prepared: PreparedRecord) -> CaptionResult | Failure:
        """Return the answers that make a row, one for each field, or the record's failure.

        Raises:
            StoppedError: The run is cancelled before there is an outcome.
            PostponedError: The record waits until more doubtful ones were asked.
            RunError: No record will be captioned.
        """
        found = _Found(dict(prepared.notes.known) if prepared.notes is not None else {})
        by_field: dict[str, list[ValidatedCompletion]] = {}
        for stage in self._stages:
            plan = stage.plan
            if plan.when is not None and not await _value(plan, plan.when, found.values):
                found.add(plan.name, None, SKIPPED)
                continue
            first = self._first if plan.stage.order == "doubt" else None
            if first is not None:
                first.admit(prepared.record, found.values["doubt"])
            try:
                result = await self._stage(stage, prepared, found)
            except LimitReachedError:
                if first is None:
                    raise
                first.is_used = True
                first.left_out += 1
                found.add(plan.name, None, SKIPPED)
                continue
            except (EndpointRefusedError, EndpointGaveOutError) as error:
                raise self._named(plan, error) from None
            if isinstance(result, Failure):
                if plan.stage.on_failure != "go-on":
                    message = f"stage {plan.name}: {result.message}"
                    return result._replace(message=message, attempts=found.attempts)
                found.add(plan.name, None, result.code)
                continue
            value = [one.value for one in result] if len(result) > 1 else result[0].value
            found.add(plan.name, value, "", result[0].doubt)
            self._warn_if_unknown(found)
            if plan.stage.field is not None:
                by_field[plan.stage.field] = result
        self._has_answered |= {"", SKIPPED}.issuperset(found.codes.values())
        caption = by_field.get(self._fields[0])
        if caption is None:
            which = ", ".join(f"{name}: {code}" for name, code in found.codes.items() if code)
            message = f"no stage gave a caption ({which})"
            return Failure(prepared.record, "no_caption", message, found.attempts)
        each = [
            [_with_usage(one, Usage(), 0.0) for one in by_field.get(name) or [_nothing()]]
            for name in self._fields
        ]
        each[0][0] = _with_usage(each[0][0], found.usage, found.latency_s)
        return CaptionResult(each, found.attempts)

    def warn_of_unseen(self) -> None:
        """Say what expressions named that no record had, which may be a typing error."""
        for plan in (stage.plan for stage in self._stages):
            if self._has_answered and plan.unseen:
                names = ", ".join(sorted(plan.unseen))
                logger.warning(
                    "stage %s: no record and no earlier stage had a value for %s", plan.name, names
                )

    def _named(self, plan: StagePlan, error: RunError) -> RunError:
        """Return an error that ends the run, with the name of the stage where there are several."""
        if len(self._stages) == 1 or isinstance(error, ServerDiedError):
            return error
        named = type(error)(f"stage {plan.name}: {error}")
        named.code, named.reason = error.code, error.reason
        return named

    def _warn_if_unknown(self, found: _Found) -> None:
        """Say once that a stage waits for a doubt that the endpoint does not tell."""
        if self._warns_of_doubt and found.doubt is None:
            self._warns_of_doubt = False
            logger.warning(
                "the endpoint gives no logprobs, so that the doubt of its answers is not known and "
                "counts as 0; it is also known with samples = 2 or more"
            )

    async def _stage(
        self, stage: Stage, prepared: PreparedRecord, found: _Found
    ) -> list[ValidatedCompletion] | Failure:
        """Return the samples of a stage's answer, or what failed."""
        plan, record = stage.plan, prepared.record
        if plan.each is None:
            return await self._answer(stage, prepared, found, found.values)
        items = _list_of(await _value(plan, plan.each, found.values))
        if not isinstance(items, list | tuple) or len(items) > MOST_ITEMS:
            is_long = isinstance(items, list | tuple)
            what = f"more than {MOST_ITEMS} items" if is_long else "no list"
            return Failure(record, "stage_items", f"{plan.stage.each} gives {what}", 0)
        answers: list[dict[str, Any]] = []
        doubts: list[float] = []
        last = failure = None
        chars = 0
        for number, item in enumerate(items, 1):
            values = {**found.values, "item": item, "number": number}
            result = await self._answer(stage, prepared, found, values)
            if isinstance(result, Failure):
                failure = result._replace(message=f"item {number}: {result.message}")
                if plan.stage.on_failure != "skip-item":
                    return failure
                answers.append({"item": item, "answer": None})
                continue
            last = result[0]
            chars += sum(len(one.completion.text) for one in result)
            if chars > MOST_CHARS:
                message = f"the answers have more than {MOST_CHARS:,} characters"
                return Failure(record, "stage_items", message, 0)
            own = [one.value for one in result] if len(result) > 1 else last.value
            answers.append({"item": item, "answer": own})
            if last.doubt is not None:
                doubts.append(last.doubt)
        if last is None and failure is not None:
            return failure
        doubt = round(sum(doubts) / len(doubts), 4) if doubts else None
        return [(last or _nothing())._replace(value=answers, doubt=doubt)]

    async def _answer(
        self, stage: Stage, prepared: PreparedRecord, found: _Found, values: dict[str, Any]
    ) -> list[ValidatedCompletion] | Failure:
        """Return the samples of the answer to one question, kept from an earlier run or asked."""
        plan = stage.plan
        try:
            asked = await asyncio.to_thread(_asked, plan, values)
        except RecordError as error:
            return Failure(prepared.record, error.code, error.message, 0)
        key = _key(stage, prepared, asked)
        result: CaptionResult | Failure
        kept = await asyncio.to_thread(self._read, key)
        if kept is not None:
            result = kept
        else:
            if plan.stage.order == "doubt" and self._first is not None and self._first.is_used:
                raise LimitReachedError
            request = await self._request(prepared, asked)
            if isinstance(request, Failure):
                return request
            result = await _sent(stage, request, found.endpoint)
            found.attempts += result.attempts
            if isinstance(result, Failure):
                return result
            found.count(result)
            result = CaptionResult([_with_doubt(plan, result.each[0], asked.text)], 0)
            if self._kept is not None:
                self._kept.put(key, dump(result))
        return _chosen(plan, result.each[0], values, prepared)

    def _read(self, key: bytes) -> CaptionResult | None:
        """Return the answer that an earlier run has kept."""
        stored = self._kept.get(key) if self._kept is not None else b""
        try:
            return load(stored) if stored else None
        except (ValueError, TypeError):
            return None  # not written by us

    async def _request(self, prepared: PreparedRecord, asked: Asked) -> PreparedRecord | Failure:
        request = self._requests.of(prepared, asked)
        if asked.crop is None:
            return request
        cropped = await self._requests.again(request, ImageOverrides())
        if isinstance(cropped, PreparedRecord | Failure):
            return cropped
        raise AssertionError("a record that was prepared has no caption yet")


class _Found:
    """What the stages of a record have found so far.

    Attributes:
        values: What templates and expressions may name.
        codes: Why a stage has no answer, by its name; empty if it has one.
        doubt: Doubt of the last answer; None if it is not known.
    """

    def __init__(self, known: dict[str, Any]) -> None:
        self.codes: dict[str, str] = {}
        self.doubt: float | None = None
        self.attempts = 0
        self.endpoint: Endpoint | None = None
        self.usage = Usage()
        self.latency_s = 0.0
        self.values = {**known, "codes": self.codes, "doubts": {}, "doubt": 0.0}

    def add(self, name: str, value: Any, code: str, doubt: float | None = None) -> None:
        """Add the answer of a stage, or why it has none. It hides a field of that name."""
        self.values[name] = value
        self.codes[name] = code
        if not code:
            self.doubt = doubt
            self.values["doubt"] = self.values["doubts"][name] = doubt or 0.0

    def count(self, result: CaptionResult) -> None:
        """Add the tokens and the time of a request."""
        self.endpoint = result.endpoint
        for one in result.each[0]:
            used = one.completion.usage
            self.usage = Usage(*map(sum, zip(self.usage, used, strict=True)))
            self.latency_s += one.latency_s


async def _value(plan: StagePlan, expression: Where, known: dict[str, Any]) -> Any:
    """Return the value of an expression; a thread finds it, because a record may be long."""
    return await asyncio.to_thread(expression.value, values_of(plan, known))


def _asked(plan: StagePlan, values: dict[str, Any]) -> Asked:
    """Return the question of a stage.

    Raises:
        RecordError: A template cannot be filled in, or a box is none.
    """
    if plan.texts is None:
        return Asked(own=plan.stage.question)
    system = plan.texts.render(0, values) if plan.texts.texts.system_prompt else ""
    turn = Turn("user", (plan.texts.render(1, values),))
    turns = (Turn("system", (system,)), turn) if system else (turn,)
    crop = None
    if plan.crop is not None:
        box = _list_of(plan.crop.value(values_of(plan, values)))
        numbers = [one for one in box if _is_number(one)] if _is_list(box) else []
        if len(numbers) != _SIDES:
            raise RecordError(
                "bad_box",
                f"{plan.stage.crop} gives no box: it must be a list of left, top, right, bottom",
            )
        crop = (numbers[0], numbers[1], numbers[2], numbers[3])
    return Asked(turns, plan.stage.image, crop)


def _list_of(value: Any) -> Any:
    """Return the list that a text is, as cells of CSV files are; another value as it is."""
    return from_cell(value) if isinstance(value, str) else value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _MOST_PIXELS


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == _SIDES


def _key(stage: Stage, prepared: PreparedRecord, asked: Asked) -> bytes:
    """Return the key of an answer: a digest of all that it depends on."""
    pictures = prepared.pictures
    if not asked.turns:
        frames = {id(frame.base64) for frame in pictures.frames} if pictures else set()
        pieces = prepared.questions[asked.own]
        text = b"".join(piece for piece in pieces if id(piece) not in frames)
    else:
        text = orjson.dumps(([tuple(turn) for turn in asked.turns], asked.crop))
    seen = pictures.digest if pictures and asked.image else b""
    return digest(b"%b%b%b" % (stage.digest, seen, text))


async def _sent(
    stage: Stage, request: PreparedRecord, before: Endpoint | None
) -> CaptionResult | Failure:
    """Send a request to the stage's endpoint and, if that gives no caption, to its fallbacks.

    Args:
        stage: The stage.
        request: Its request.
        before: The endpoint of an earlier stage of the record.

    Raises:
        RunError: The stage's own endpoint will caption no record.
    """
    first, *others = stage.chain
    result = await first.answers(request, before)
    attempts = result.attempts
    for other in others:
        if not isinstance(result, Failure) or result.code not in FALL_BACK:
            break
        try:
            result = await other.answers(request)
        except (EndpointRefusedError, EndpointGaveOutError) as error:
            if other in stage.chain:
                stage.chain.remove(other)
                logger.warning("going on without a fallback of %s: %s", stage.plan.name, error)
        else:
            attempts += result.attempts
    return result._replace(attempts=attempts)


def _with_doubt(
    plan: StagePlan, several: list[ValidatedCompletion], asked: str
) -> list[ValidatedCompletion]:
    """Return the samples of an answer with what was asked, the first one with their doubt."""
    doubt = doubt_of(several)
    if plan.stage.answer == "yes-no":
        several = [one._replace(value=probability_of_yes(one)) for one in several]
        doubt = round(1 - sum(one.value for one in several) / len(several), 4)
    first, *others = (one._replace(asked=asked) for one in several)
    return [first._replace(doubt=doubt), *others]


def _chosen(
    plan: StagePlan,
    several: list[ValidatedCompletion],
    values: dict[str, Any],
    prepared: PreparedRecord,
) -> list[ValidatedCompletion] | Failure:
    """Return the samples that count as the answer."""
    stage = plan.stage
    if stage.choose is not None:
        candidates = values.get(stage.choose)
        number = several[0].value
        if not isinstance(candidates, list) or not 0 < number <= len(candidates):
            message = f"the answer {number} is the number of none of the answers of {stage.choose}"
            return Failure(prepared.record, "unclear", message, 0)
        several = [several[0]._replace(value=candidates[number - 1])]
    pick = stage.options.get("pick")
    if pick is None:
        return several
    best = (longest if pick == "longest" else most_agreed)(several)
    return [best._replace(doubt=several[0].doubt)]


def _with_usage(answer: ValidatedCompletion, usage: Usage, latency_s: float) -> ValidatedCompletion:
    return answer._replace(completion=answer.completion._replace(usage=usage), latency_s=latency_s)


def _nothing() -> ValidatedCompletion:
    """Return what a field has whose stage did not run."""
    return ValidatedCompletion(None, Completion("", SKIPPED, "", Usage()))
